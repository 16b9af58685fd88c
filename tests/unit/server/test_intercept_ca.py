"""An authority and what it issues, as Python's own TLS client judges them; and files that are none."""

import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy.server.intercept_ca import Authority, Pair, create_authority, read_authority
from proxy.server.tls import TLSError
from tests.fakes.handshake import Shaken, shake, trusting

# Clients go by the real time.
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
HOUR, DAY = datetime.timedelta(hours=1), datetime.timedelta(days=1)
PEM = serialization.Encoding.PEM


def usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, signs, False, False, False)


BASIC = x509.BasicConstraints(ca=True, path_length=None)


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | x25519.X25519PrivateKey, password: bytes = b"") -> bytes:
    kept = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, kept)


def own(key: object, *extensions: x509.ExtensionType, public: object = None) -> Pair:
    """What an operator's own tools have made: a certificate with just these extensions, and its key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an operator's own")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(7)
    builder = builder.not_valid_before(NOW - DAY).not_valid_after(NOW + 100 * DAY)
    builder = builder.public_key(public or key.public_key())  # type: ignore[attr-defined, arg-type]
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    return Pair(builder.sign(key, digest).public_bytes(PEM), pem(key))  # type: ignore[arg-type]


class Files:
    """Where an authority is kept."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "ca.crt", folder / "ca.key"

    def read(self, pair: Pair, now: datetime.datetime = NOW) -> Authority:
        """The authority of `pair`, by way of its files."""
        self.certificate.write_bytes(pair.certificate)
        self.key.write_bytes(pair.key)
        return read_authority(self.certificate, self.key, now)

    def refusal(self, certificate: bytes, key: bytes, now: datetime.datetime = NOW) -> str:
        """Why these are no authority."""
        with pytest.raises(TLSError) as caught:
            self.read(Pair(certificate, key), now)
        message = str(caught.value)
        assert "\n" not in message
        return message.replace(f"{self.certificate.parent}/", "")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def met(trusted: Pair, shown: Pair, name: str, folder: Path) -> Shaken:
    """A client that trusts one, asks for `name`, and is shown the other. Raises ssl.SSLError."""
    file = folder / "shown.pem"
    file.write_bytes(shown.certificate + shown.key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return shake(trusting(trusted.certificate), server, name)


def leaf(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pair.certificate)[0]


@pytest.mark.parametrize("name", ["registry.test", "a_b.registry.test", "local", "10.1.2.3", "2606:4700::1111"])
def test_clients_that_trust_the_authority_trust_what_it_issues(name: str, files: Files, tmp_path: Path) -> None:
    """For this name, or address, and for no other one; who does not trust it does not."""
    made = create_authority([], NOW, 100 * DAY)
    issued = files.read(made).issue(name, NOW, DAY)
    assert met(made, issued, name, tmp_path).client.version() == "TLSv1.3"
    for other in ("other.test", "sub.registry.test", "10.1.2.4"):
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            met(made, issued, other, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed|issuer|signature"):
        met(create_authority([], NOW, 100 * DAY), issued, name, tmp_path)


@pytest.mark.parametrize(
    ("permitted", "good", "bad"),
    [
        (["registry.test"], ["registry.test", "sub.registry.test"], ["other.test", "xregistry.test", "test"]),
        (["a.test", "b.test"], ["a.test", "b.test"], ["c.test"]),
        (["10.1.2.3"], ["10.1.2.3"], ["10.1.2.4"]),
        (["10.0.0.0/8", "a.test"], ["10.9.9.9", "a.test"], ["11.0.0.1", "b.test"]),
        (["::1"], ["::1"], ["::2"]),
    ],
)
def test_an_authority_for_some_names(
    permitted: list[str], good: list[str], bad: list[str], files: Files, tmp_path: Path
) -> None:
    """Clients refuse what it has signed for others, whoever has got hold of its key."""
    made = create_authority(permitted, NOW, 100 * DAY)
    held = files.read(made)
    for name in good:
        met(made, held.issue(name, NOW, DAY), name, tmp_path)
    for name in bad:
        with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
            met(made, held.issue(name, NOW, DAY), name, tmp_path)


@pytest.mark.parametrize(
    ("permitted", "name"), [("registry.test", "10.0.0.1"), ("registry.test", "::1"), ("10.1.2.3", "other.test")]
)
def test_names_of_another_kind(permitted: str, name: str, files: Files, tmp_path: Path) -> None:
    """An authority for names signs for no address, and one for addresses for no name (RFC 5280, 4.2.1.10)."""
    made = create_authority([permitted], NOW, 100 * DAY)
    with pytest.raises(ssl.SSLCertVerificationError):
        met(made, files.read(made).issue(name, NOW, DAY), name, tmp_path)


def test_an_empty_name_is_no_limit() -> None:
    """Whoever writes an unset variable there gets no authority for every name."""
    with pytest.raises(ValueError, match="name"):
        create_authority([""], NOW, DAY)


def test_an_authority_issues_for_servers_alone(files: Files, tmp_path: Path) -> None:
    """Neither does it have authorities below it, nor can what it has issued sign anything."""
    made = create_authority(["registry.test"], NOW, 100 * DAY)
    authority = leaf(made)
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    limits = authority.extensions.get_extension_for_class(x509.NameConstraints)
    assert limits.critical
    issued = files.read(made).issue("registry.test", NOW, DAY)
    found = leaf(issued).extensions
    assert not found.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not found.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert list(found.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = found.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["registry.test"]
    assert names.critical
    assert files.refusal(issued.certificate, issued.key) == "ca.crt is no authority's: it may not sign certificates"
    for certificate in (authority, leaf(issued)):
        assert str(certificate.signature_hash_algorithm and certificate.signature_hash_algorithm.name) == "sha256"


def test_addresses_are_named_as_such(files: Files) -> None:
    """Not as names that look like them."""
    issued = files.read(create_authority([], NOW, DAY)).issue("10.1.2.3", NOW, DAY)
    names = leaf(issued).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.IPAddress(ipaddress.ip_address("10.1.2.3"))]


def test_how_long_they_live(files: Files) -> None:
    """From an hour ago, since clocks may be late; a day, and never outside of the authority's own time."""
    made = create_authority([], NOW, 10 * DAY)
    authority, held = leaf(made), files.read(made)
    assert (authority.not_valid_before_utc, authority.not_valid_after_utc) == (NOW - HOUR, NOW + 10 * DAY)
    assert held.ends == NOW + 10 * DAY
    for now, begins, ends in [
        (NOW, NOW - HOUR, NOW + DAY),
        (NOW + 2 * DAY, NOW + 2 * DAY - HOUR, NOW + 3 * DAY),
        (NOW - HOUR / 2, NOW - HOUR, NOW - HOUR / 2 + DAY),
        (NOW + 10 * DAY - HOUR, NOW + 10 * DAY - 2 * HOUR, NOW + 10 * DAY),
    ]:
        issued = leaf(held.issue("registry.test", now, DAY))
        assert (issued.not_valid_before_utc, issued.not_valid_after_utc) == (begins, ends)


def test_no_two_certificates_have_one_number(files: Files) -> None:
    """Nor does an issued one carry the authority's key."""
    made = create_authority([], NOW, DAY)
    held = files.read(made)
    issued = [held.issue("registry.test", NOW, DAY) for _ in range(3)]
    assert len({leaf(one).serial_number for one in [made, *issued]}) == 4
    assert all(one.key != made.key for one in issued)
    assert create_authority([], NOW, DAY).key != made.key
    assert leaf(create_authority([], NOW + DAY, DAY)).subject != leaf(made).subject


def test_nothing_of_a_key_is_shown(files: Files) -> None:
    """Neither of the authority's nor of a server's, however it is printed."""
    made = create_authority([], NOW, DAY)
    held = files.read(made)
    for pair in (made, held.issue("registry.test", NOW, DAY)):
        lines = [line for line in pair.key.decode().splitlines() if line]
        assert len(lines) > 2
        for shown in (repr(pair), str(pair), f"{pair!r}", repr([pair]), repr(held)):
            assert not any(line in shown for line in lines)
            assert "PRIVATE" not in shown


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
        ed448.Ed448PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
    ],
    ids=["rsa", "ed25519", "ed448", "p384"],
)
@pytest.mark.parametrize("extensions", [(BASIC,), (BASIC, usage(signs=True))], ids=["bare", "with key usage"])
def test_authorities_of_operators_own(
    key: object, extensions: tuple[x509.ExtensionType, ...], files: Files, tmp_path: Path
) -> None:
    """Of whatever kind their keys are, also without a key identifier or a key usage."""
    made = own(key, *extensions)
    issued = files.read(made).issue("registry.test", NOW, DAY)
    met(made, issued, "registry.test", tmp_path)


def test_files_that_are_not_there(files: Files) -> None:
    """The one that is missing is named."""
    made = create_authority([], NOW, DAY)
    with pytest.raises(TLSError, match=r"ca\.crt: No such file or directory"):
        read_authority(files.certificate, files.key, NOW)
    files.certificate.write_bytes(made.certificate)
    with pytest.raises(TLSError, match=r"ca\.key: No such file or directory"):
        read_authority(files.certificate, files.key, NOW)
    files.key.mkdir()
    with pytest.raises(TLSError, match=r"ca\.key: Is a directory"):
        read_authority(files.certificate, files.key, NOW)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x00\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_files_that_hold_something_else(content: bytes, files: Files) -> None:
    """What is no PEM is told, and nothing of it is repeated."""
    made = create_authority([], NOW, DAY)
    assert files.refusal(content, made.key) == "ca.crt is no certificate (PEM)"
    assert files.refusal(made.certificate, content) == "ca.key is no private key (PEM)"
    assert files.refusal(made.key, made.key) == "ca.crt is no certificate (PEM)"
    assert files.refusal(made.certificate, made.certificate) == "ca.key is no private key (PEM)"


def test_pairs_that_are_none(files: Files) -> None:
    """A key of another authority, one with a password, and one that cannot sign."""
    made, key = create_authority([], NOW, DAY), ec.generate_private_key(ec.SECP256R1())
    mismatch = "ca.crt and ca.key do not belong together"
    assert files.refusal(made.certificate, create_authority([], NOW, DAY).key) == mismatch
    assert files.refusal(made.certificate, pem(rsa.generate_private_key(65537, 2048))) == mismatch
    locked = files.refusal(own(key, BASIC).certificate, pem(key, b"secret"))
    assert locked == "ca.key: the private key is encrypted; a key without a password is needed"
    exchange = x25519.X25519PrivateKey.generate()
    shown = own(key, BASIC, public=exchange.public_key())
    assert files.refusal(shown.certificate, pem(exchange)) == "ca.key is no key that signs"


@pytest.mark.parametrize(
    ("extensions", "why"),
    [
        ((), "it does not say that it may sign certificates"),
        ((x509.BasicConstraints(ca=False, path_length=None),), "it may not sign certificates"),
        ((BASIC, usage(signs=False)), "its key may not sign certificates"),
    ],
)
def test_certificates_that_sign_none(extensions: tuple[x509.ExtensionType, ...], why: str, files: Files) -> None:
    """Clients would refuse all that they had issued."""
    made = own(ec.generate_private_key(ec.SECP256R1()), *extensions)
    assert files.refusal(made.certificate, made.key) == f"ca.crt is no authority's: {why}"


def test_an_authority_that_ended(files: Files) -> None:
    """It is good to its last second."""
    made = create_authority([], NOW, 10 * DAY)
    files.read(made, NOW + 10 * DAY - datetime.timedelta(seconds=1))
    ended = files.refusal(made.certificate, made.key, NOW + 10 * DAY)
    assert ended == f"ca.crt ended on {NOW + 10 * DAY:%Y-%m-%d}"


def test_keys_on_curves_that_are_not_known(files: Files) -> None:
    """They are no good, which is told in one line."""
    key = (
        b"-----BEGIN EC PRIVATE KEY-----\nMD4CAQEEDmEhMvkrQdSxLsksRcjkoAcGBSuBBAAGoSADHgAE"
        b"xV1jUZS889Nmuspi9qM6rP6fzuK+du5BzifTaQ==\n-----END EC PRIVATE KEY-----\n"
    )
    assert files.refusal(create_authority([], NOW, DAY).certificate, key)
