"""Certificates that change under a running proxy: no restart, no signal, no connection lost."""

import asyncio
import logging
import shutil
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.settings import Settings
from tests.fakes.authority import Authority, Pair, tls_listener
from tests.fakes.content import random_bytes
from tests.fakes.fleet import fleet, program, write_config
from tests.fakes.proxy import Proxy, running
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import MIB, put, until

BLOB = random_bytes(4 * MIB, 710)


@pytest.fixture
def pair(tmp_path: Path, server_pair: Pair) -> Pair:
    """Files of this test's own, which it may change."""
    return written(Pair(tmp_path / "tls.crt", tmp_path / "tls.key"), server_pair)


def written(pair: Pair, source: Pair) -> Pair:
    """Overwrite the files of `pair` in place."""
    shutil.copyfile(source.certificate, pair.certificate)
    shutil.copyfile(source.key, pair.key)
    return pair


async def shown(proxy: Proxy, context: ssl.SSLContext) -> bytes:
    """The certificate that the proxy shows to a new connection."""
    listening = proxy.application.listeners[0].address
    return await shown_at(listening.port, context)


async def shown_at(port: int, context: ssl.SSLContext) -> bytes:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.close()
    await writer.wait_closed()
    return found


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


async def look(proxy: Proxy, times: int = 1) -> None:
    """What the proxy does by itself every few seconds."""
    tls = proxy.application.listeners[0]._tls
    assert tls is not None
    for _ in range(times):
        await tls.look()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_by_itself(
    settings: Callable[..., Settings], pair: Pair, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a few seconds, here less, new connections see what the files hold."""
    monkeypatch.setattr("proxy.server.tls._LOOK_EVERY", 0.001)
    other = authority.server()
    async with running(settings(listen=tls_listener(pair)), tls=authority.client()) as proxy:
        assert await shown(proxy, authority.client()) == der(pair)
        written(pair, other)
        async with asyncio.timeout(10):
            while await shown(proxy, authority.client()) != der(other):
                await asyncio.sleep(0)


async def test_what_runs_goes_on(
    settings: Callable[..., Settings], pair: Pair, authority: Authority, registry: FakeRegistry
) -> None:
    """A body that began before has its bytes after, and its connection serves the next request."""
    path = put(registry, BLOB)
    registry.pause = gate = Gate(MIB)
    async with running(settings(listen=tls_listener(pair)), tls=authority.client()) as proxy:
        reader = await Reader.connect(proxy, authority.client())
        reader.ask(path)
        await reader.head()
        await gate.reached.wait()
        written(pair, authority.server())
        await look(proxy)
        assert await shown(proxy, authority.client()) == der(pair)
        gate.open()
        assert await reader.rest() == BLOB


async def test_kubernetes_swaps_a_link(
    settings: Callable[..., Settings], tmp_path: Path, server_pair: Pair, authority: Authority
) -> None:
    """A mounted secret: files are links through `..data`, which is renamed over; a new authority comes with them."""
    secret, other = tmp_path / "secret", Authority(tmp_path, "other")
    for name, source, ca in (("..one", server_pair, authority.ca), ("..two", other.server(), other.ca)):
        (secret / name).mkdir(parents=True)
        shutil.copyfile(ca, secret / name / "ca.crt")
        written(Pair(secret / name / "tls.crt", secret / name / "tls.key"), source)
    (secret / "..data").symlink_to("..one")
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (secret / name).symlink_to(Path("..data", name))
    listen = tls_listener(Pair(secret / "tls.crt", secret / "tls.key"), client_ca=str(secret / "ca.crt"))
    first, second = authority.issue("/CN=a"), other.issue("/CN=b")
    async with running(settings(listen=listen), tls=authority.client(first)) as proxy:
        assert (await proxy.get("/v2/")).status == 200
        (secret / "new").symlink_to("..two")
        (secret / "new").rename(secret / "..data")
        await look(proxy)
        assert await shown(proxy, other.client(second)) == der(Pair(secret / "tls.crt", secret / "tls.key"))
        # The connection that was kept is served; a new one of the former authority's is not.
        assert (await proxy.get("/v2/")).status == 200


async def test_a_pair_that_is_half_written(
    settings: Callable[..., Settings], pair: Pair, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """The certificate comes first and the key a moment later: nothing is said, and the former pair serves meanwhile."""
    before, other = der(pair), authority.server()
    async with running(settings(listen=tls_listener(pair)), tls=authority.client()) as proxy:
        shutil.copyfile(other.certificate, pair.certificate)
        await look(proxy)
        assert await shown(proxy, authority.client()) == before
        pair.key.write_bytes(other.key.read_bytes()[:40])
        await look(proxy)
        assert await shown(proxy, authority.client()) == before
        shutil.copyfile(other.key, pair.key)
        await look(proxy)
        assert await shown(proxy, authority.client()) == der(other)
    assert errors(caplog) == []


async def test_a_pair_that_stays_broken(
    settings: Callable[..., Settings], pair: Pair, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for each change, however often it is looked at; the working pair serves on. SIGHUP says it again."""
    before, good = der(pair), pair.certificate.read_bytes()
    make = settings(listen=tls_listener(pair))
    async with running(make, tls=authority.client()) as proxy:
        pair.key.write_bytes(authority.server().key.read_bytes())
        await look(proxy, 5)
        assert await shown(proxy, authority.client()) == before
        assert len(errors(caplog)) == 1
        assert "goes on with the certificate it has" in errors(caplog)[0]
        assert "do not belong together" in errors(caplog)[0]
        pair.certificate.unlink()
        await look(proxy, 5)
        assert len(errors(caplog)) == 2
        assert "No such file" in errors(caplog)[1]
        assert await proxy.application.reload(make) == []
        assert len(errors(caplog)) == 3
        pair.certificate.write_bytes(good)
        await look(proxy, 5)
        assert len(errors(caplog)) == 4
        assert await shown(proxy, authority.client()) == before


async def test_what_was_told_and_mended_is_told_again(
    settings: Callable[..., Settings], pair: Pair, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """The former files come back, and then the same mistake: that is another change."""
    good = pair.key.read_bytes()
    async with running(settings(listen=tls_listener(pair)), tls=authority.client()) as proxy:
        for count in (1, 2):
            pair.key.write_text("noise")
            await look(proxy, 3)
            assert len(errors(caplog)) == count
            pair.key.write_bytes(good)
            await look(proxy, 3)
            assert len(errors(caplog)) == count


async def test_an_authority_that_is_taken_away(
    settings: Callable[..., Settings], pair: Pair, authority: Authority, tmp_path: Path
) -> None:
    """From the next connection on its clients are refused, those too who were here before and would resume."""
    other = Authority(tmp_path, "other")
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.ca.read_bytes() + other.ca.read_bytes())
    client = authority.client(other.issue("/CN=gone"))
    async with running(settings(listen=tls_listener(pair, client_ca=str(ca))), tls=client) as proxy:
        port = proxy.application.listeners[0].address.port
        session = await asyncio.to_thread(_talk, port, client, None)
        shutil.copyfile(authority.ca, ca)
        await look(proxy)
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            await asyncio.to_thread(_talk, port, client, session)
        await asyncio.to_thread(_talk, port, authority.client(authority.issue("/CN=stays")), None)


def _talk(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSession | None:
    """A ping over a connection that resumes `session`; gives a session to resume."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as tls:
            tls.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            assert tls.recv(12) == b"HTTP/1.1 200"
            return tls.session


async def test_all_workers(tmp_path: Path, pair: Pair, authority: Authority, registry: FakeRegistry) -> None:
    """Each of several processes reads the files again at SIGHUP, and says so."""
    config = write_config(tmp_path, {"registry.test": {"url": registry.url}}, listen=tls_listener(pair))
    other = authority.server()
    async with fleet(config) as proxy:
        port = int(proxy.url.rpartition(":")[2])
        assert await shown_at(port, authority.client()) == der(pair)
        written(pair, other)
        proxy.program.signal(signal.SIGHUP)
        await proxy.program.says("reloaded")
        for _ in range(20):
            assert await shown_at(port, authority.client()) == der(other)
        await until(lambda: len([line for line in proxy.program.lines if "has read its certificate" in line]) == 2)


async def test_a_start_of_workers_with_a_broken_pair(tmp_path: Path, pair: Pair) -> None:
    """The whole start ends with status 1, and one line says why."""
    pair.key.write_text("noise")
    config = write_config(tmp_path, {"registry.test": {"url": "http://127.0.0.1:1"}}, listen=tls_listener(pair))
    async with program(config) as started:
        await started.says("is no private key")
        assert await started.exit() == 1
        assert not [line for line in started.lines if "Traceback" in line]
