"""TLS in registries' names: who gets which certificate, when they are made anew, and what becomes of bad files."""

import asyncio
import datetime
import logging
import os
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from proxy.server import tls
from proxy.server.intercept_ca import Authority, Pair, create_authority
from proxy.server.intercept_tls import Interception
from proxy.server.tls import TLSError
from proxy.settings import InterceptSettings
from proxy.settings.units import parse_address
from tests.fakes.clock import ManualClock
from tests.fakes.handshake import Shaken, careless, shake, trusting

DAY = 86400.0
NAMES = ("registry.test", "alias.test")


class House:
    """What an Interception is made of: files, names, a clock, and counts of what it does."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # The real time, since clients go by that; and to the second, as certificates do.
        self.clock = ManualClock(float(int(datetime.datetime.now(datetime.UTC).timestamp())))
        self.names = set(NAMES)
        self.refused, self.issued = 0, list[str]()
        self.certificate, self.key = folder / "ca.crt", folder / "ca.key"
        self.started: list[Interception] = []
        issue = Authority.issue

        def counted(authority: Authority, name: str, now: datetime.datetime, life: datetime.timedelta) -> Pair:
            self.issued.append(name)
            return issue(authority, name, now, life)

        monkeypatch.setattr(Authority, "issue", counted)

    def authority(self, days: float = 100) -> Pair:
        """A new one, from now on."""
        now = datetime.datetime.fromtimestamp(self.clock(), datetime.UTC)
        return create_authority([], now, datetime.timedelta(days=days))

    def write(self, pair: Pair) -> Pair:
        """Put it into the files."""
        self.certificate.write_bytes(pair.certificate)
        self.key.write_bytes(pair.key)
        return pair

    def made(self) -> Interception:
        """One that has not started."""
        settings = InterceptSettings(ca_certificate=self.certificate, ca_key=self.key)
        address = parse_address("0.0.0.0:443")
        one = Interception(address, settings, lambda: self.names, self._refuse, self.clock)
        self.started.append(one)
        return one

    async def start(self, days: float = 100) -> Interception:
        """One that has, with a new authority in its files."""
        await asyncio.to_thread(lambda: self.write(self.authority(days)))
        one = self.made()
        await one.start()
        self.issued.clear()
        return one

    def _refuse(self) -> None:
        self.refused += 1


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    made = House(tmp_path, monkeypatch)
    yield made
    for one in made.started:
        await one.close()


def seen(interception: Interception, name: str = "registry.test") -> x509.Certificate:
    """The certificate that a client which asks for `name` is shown."""
    return x509.load_der_x509_certificate(shake(careless(), interception.front, name).shown)


def named(shaken: Shaken) -> list[str]:
    certificate = x509.load_der_x509_certificate(shaken.shown)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What operators have been told since this was asked last."""
    ours = [one for one in caplog.records if one.name == "pullthrough.server" and one.levelno > logging.DEBUG]
    lines = [f"{one.levelname} {one.getMessage()}" for one in ours]
    caplog.clear()
    return lines


def swap(file: Path, content: bytes | None) -> None:
    """Give a file another content, or none."""
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)


async def test_each_name_has_a_certificate(house: House) -> None:
    """From the start on, one that clients trust, for this name alone; TLS 1.2 or later, and HTTP/1.1."""
    interception = await house.start()
    client = trusting(house.certificate.read_bytes())
    client.set_alpn_protocols(["h2", "http/1.1"])
    for name in NAMES:
        shaken = shake(client, interception.front, name)
        assert named(shaken) == [name]
        assert shaken.server.server_name == name
        assert shaken.client.selected_alpn_protocol() == "http/1.1"
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake(client, interception.front, "registry.test").client.version() == "TLSv1.2"
    for context in (interception.front.made, *(interception.context(name) for name in NAMES)):
        assert context is not None
        made = getattr(context, "made", context)
        assert made.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("asked", ["REGISTRY.test", "registry.TEST", "registry.test.", "Registry.Test."])
async def test_names_as_clients_write_them(house: House, asked: str) -> None:
    """In any case, and with the dot at the end that some send."""
    interception = await house.start()
    shaken = shake(careless(), interception.front, asked)
    assert named(shaken) == ["registry.test"]
    assert shaken.server.server_name == "registry.test"


@pytest.mark.parametrize("asked", ["other.test", "a.registry.test", "test", "registry.testx", "10.0.0.1", None])
async def test_other_names_are_refused(house: House, asked: str | None) -> None:
    """And none, which is how clients ask for an address: by an alert that says so, and it is counted, once each."""
    interception = await house.start()
    for count in (1, 2):
        with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
            shake(careless(), interception.front, asked)
        assert house.refused == count


async def test_handshakes_make_nothing(house: House) -> None:
    """However many come, for names that are known and for others: what there is was made before."""
    interception = await house.start()
    before = seen(interception)
    for number in range(50):
        with pytest.raises(ssl.SSLError):
            shake(careless(), interception.front, f"{number}.test")
        assert seen(interception) == before
    assert house.issued == []
    assert house.refused == 50


async def test_who_came_by_connect_gets_what_it_asked_for_there(house: House) -> None:
    """Whatever name its handshake has, or none; nothing is refused, and names that are not configured have nothing."""
    interception = await house.start()
    for asked in ("registry.test", "alias.test", "other.test", "10.0.0.1", None):
        context = interception.context("alias.test")
        assert context is not None
        shaken = shake(careless(), context, asked)
        assert named(shaken) == ["alias.test"]
        assert shaken.server.server_name == "alias.test"
    assert interception.context("other.test") is None
    assert interception.context("") is None
    assert (house.refused, house.issued) == (0, [])


async def test_names_that_change(house: House) -> None:
    """A new one has a certificate from the next look on, one that is gone has none; all others have new ones too."""
    interception = await house.start()
    kept, before = interception.context("registry.test"), seen(interception)
    house.names.add("new.test")
    house.names.remove("alias.test")
    with pytest.raises(ssl.SSLError):
        seen(interception, "new.test")
    await interception.look()
    assert sorted(house.issued) == ["new.test", "registry.test"]
    assert named(shake(careless(), interception.front, "new.test")) == ["new.test"]
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        seen(interception, "alias.test")
    assert interception.context("alias.test") is None
    # Who had its context before goes on with that.
    assert kept is not None
    assert x509.load_der_x509_certificate(shake(careless(), kept, None).shown) == before


@pytest.mark.parametrize(("days", "half"), [(100.0, DAY / 2), (0.5, DAY / 4)])
async def test_half_of_a_life_is_over(house: House, days: float, half: float) -> None:
    """Certificates are made anew then, and not a second before: of a day, or of what the authority has left."""
    interception = await house.start(days)
    before = seen(interception)
    house.clock.advance(half - 1)
    await interception.look()
    assert (seen(interception), house.issued) == (before, [])
    house.clock.advance(1)
    await interception.look()
    assert sorted(house.issued) == sorted(NAMES)
    assert seen(interception).not_valid_before_utc == before.not_valid_before_utc + datetime.timedelta(seconds=half)
    await interception.look()
    assert len(house.issued) == len(NAMES)


async def test_a_clock_that_is_set_back(house: House) -> None:
    """Certificates that begin in the future are of no use to anybody: they are made anew at the next look."""
    interception = await house.start(1000)
    house.clock.advance(400 * 86400.0)
    await interception.look()
    before = seen(interception)
    house.issued.clear()
    house.clock.advance(-400 * 86400.0)
    await interception.look()
    assert sorted(house.issued) == sorted(NAMES)
    assert seen(interception).not_valid_before_utc < before.not_valid_before_utc


async def test_files_that_change(house: House) -> None:
    """Another authority counts from the next look on; a file that was only written again is no change."""
    interception = await house.start()
    before, old = seen(interception), house.certificate.read_bytes()
    await asyncio.to_thread(swap, house.certificate, old)
    for asked in (False, True):
        await interception.look(asked)
    assert (seen(interception), house.issued) == (before, [])
    new = await asyncio.to_thread(lambda: house.write(house.authority()))
    await interception.look()
    assert sorted(house.issued) == sorted(NAMES)
    shake(trusting(new.certificate), interception.front, "registry.test")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(trusting(old), interception.front, "registry.test")


async def test_two_looks_at_once(house: House) -> None:
    """Are one after the other, and the second finds nothing to do."""
    interception = await house.start()
    house.names.add("new.test")
    await asyncio.gather(*(interception.look() for _ in range(5)))
    assert sorted(house.issued) == sorted([*NAMES, "new.test"])


BAD = {
    "no key": (None, "ca.key: No such file or directory"),
    "no PEM": (b"nonsense", "ca.key is no private key (PEM)"),
    "another key": (create_authority([], datetime.datetime.now(datetime.UTC), datetime.timedelta(1)).key, "together"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_bad_files_take_nothing_away(house: House, caplog: pytest.LogCaptureFixture, bad: str) -> None:
    """What works goes on; it is told once, and again to an operator who asks. Good files count at once."""
    interception = await house.start()
    before, (content, why) = seen(interception), BAD[bad]
    await asyncio.to_thread(swap, house.key, content)
    for asked, count in ((False, 1), (False, 0), (True, 1), (False, 0), (True, 1)):
        await interception.look(asked)
        lines = told(caplog)
        assert len(lines) == count
        for line in lines:
            assert line.startswith("ERROR 0.0.0.0:443 goes on with the certificates it has: ")
            assert why in line
        house.clock.advance(DAY / 4)
    assert (seen(interception), house.issued) == (before, [])
    await asyncio.to_thread(lambda: house.write(house.authority()))
    await interception.look()
    assert told(caplog) == []
    assert seen(interception) != before


async def test_files_that_are_bad_in_another_way_are_told_of_again(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """And so are those that were bad, were replaced, and are bad as before."""
    interception = await house.start()
    kept = await asyncio.to_thread(house.key.read_bytes)
    for content, count in ((b"nonsense", 1), (None, 1), (kept + b"\n", 0), (None, 1)):
        await asyncio.to_thread(swap, house.key, content)
        await interception.look()
        assert len(told(caplog)) == count


async def test_files_that_came_back_and_are_gone_again(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """That is told again, also where they came back as they were before."""
    interception = await house.start()
    kept = await asyncio.to_thread(house.key.read_bytes)
    for content, count in ((None, 1), (kept, 0), (None, 1)):
        await asyncio.to_thread(swap, house.key, content)
        await interception.look()
        assert len(told(caplog)) == count


async def test_without_files_nothing_starts(house: House) -> None:
    """It says which one is missing, and leaves no task behind; nobody is let in."""
    interception = house.made()
    with pytest.raises(TLSError, match=r"ca\.crt: No such file or directory"):
        await interception.start()
    assert tasks() == []
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        seen(interception)


async def test_an_authority_that_has_ended_does_not_start(house: House) -> None:
    """And one that ends while it is used is told of."""
    await asyncio.to_thread(lambda: house.write(house.authority(1)))
    house.clock.advance(DAY)
    with pytest.raises(TLSError, match=r"ca\.crt ended on "):
        await house.made().start()


async def test_an_authority_that_is_too_weak_does_not_start(house: House) -> None:
    """For OpenSSL, as it is set up on this machine; it is told in one line, as all that cannot be used."""
    await asyncio.to_thread(lambda: house.write(weak()))
    with pytest.raises(TLSError):
        await house.made().start()


async def test_an_authority_that_ends_soon(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """From thirty days before its end on operators are told, once a day, however often certificates are made."""
    interception = await house.start(31)
    assert told(caplog) == []
    house.clock.advance(DAY)
    await interception.look()
    assert told(caplog) == []
    house.clock.advance(DAY)
    for name in ("one.test", "two.test"):
        house.names.add(name)
        await interception.look()
    why = "WARNING 0.0.0.0:443: the authority that nodes trust ends in {} days: give them another"
    assert told(caplog) == [why.format(29)]
    found: list[str] = []
    for _ in range(8):
        house.clock.advance(DAY / 4)
        await interception.look()
        found += told(caplog)
    assert found == [why.format(28), why.format(27)]


async def test_it_looks_by_itself(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Again and again, also after a look that could not be taken; a close ends that."""
    looks, enough = 0, asyncio.Event()

    async def look(_: Interception, asked: bool = False) -> None:
        nonlocal looks
        looks += 1
        assert not asked
        if looks == 1:
            raise OSError("no file descriptor is left")
        enough.set()

    monkeypatch.setattr(tls, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(Interception, "look", look)
    interception = await house.start()
    async with asyncio.timeout(10):
        await enough.wait()
    why = "the certificates of 0.0.0.0:443 could not be looked at: no file descriptor is left"
    assert told(caplog) == [f"ERROR {why}"]
    assert tasks() == ["certificates of 0.0.0.0:443"]
    await interception.close()
    assert tasks() == []
    await interception.close()


async def test_close_without_a_start(house: House) -> None:
    """Is nothing to do."""
    await house.made().close()


async def test_systems_without_files_in_memory(house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key is in a file for a moment there, and nothing is left of it."""
    folder = tmp_path / "temporary"
    await asyncio.to_thread(folder.mkdir)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delattr(os, "memfd_create", raising=False)
    interception = await house.start()
    assert named(shake(careless(), interception.front, "registry.test")) == ["registry.test"]
    assert await asyncio.to_thread(os.listdir, folder) == []


def tasks() -> list[str]:
    """Those that look at certificates."""
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("certificates")]


def weak() -> Pair:
    """An authority whose key is too short."""
    now, key = datetime.datetime.now(datetime.UTC), rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "weak")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(7)
    builder = builder.public_key(key.public_key()).not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=100))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(pem)
    return Pair(certificate, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
