"""A listener that speaks TLS: bodies are what they are without, and nobody at the door harms the others."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.server.listener import ListenError
from proxy.settings import Settings
from tests.fakes.authority import Authority, Pair, tls_listener
from tests.fakes.content import digest_of, make_image, random_bytes
from tests.fakes.fleet import program, write_config
from tests.fakes.proxy import Proxy, make_settings, running
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import KIB, MIB, put, until

BLOB = random_bytes(8 * MIB, 700)
IMAGE = make_image(3000, seed=70)
TAG = "/v2/team/app/manifests/v1"


@pytest.fixture
def trust(authority: Authority) -> ssl.SSLContext:
    """What a client without a certificate goes by."""
    return authority.client()


@pytest.fixture
async def proxy(settings: Callable[..., Settings], server_pair: Pair, trust: ssl.SSLContext) -> AsyncIterator[Proxy]:
    """A proxy that speaks TLS."""
    async with running(settings(listen=tls_listener(server_pair)), tls=trust) as started:
        yield started


def address(proxy: Proxy) -> tuple[str, int]:
    listening = proxy.application.listeners[0].address
    return listening.host, listening.port


# Bodies.


async def test_cold_and_warm(proxy: Proxy, registry: FakeRegistry) -> None:
    """A manifest and a blob, both from here the second time, over kept connections."""
    registry.push("team/app", "v1", IMAGE)
    path = put(registry, BLOB)
    for state in ("fwd=miss; stored", "hit"):
        answer = await proxy.get(path)
        assert (answer.status, answer.body) == (200, BLOB)
        assert answer.state.startswith(f"pullthrough; {state}")
        assert (await proxy.get(TAG)).body == IMAGE.manifest
        await proxy.stored(1)
    assert registry.record.times_sent(digest_of(BLOB)) == [(0, len(BLOB), 1)]


async def test_many_readers_at_any_offset_of_a_cold_blob(
    proxy: Proxy, registry: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """Twelve, whole and in ranges, all at once: each has its bytes, the upstream sends each byte once."""
    path = put(registry, BLOB)
    spans = [(None, None), (1, None), (5 * MIB + 7, None), (MIB, 2 * MIB), (len(BLOB) - 1, None), (0, 1)] * 2
    readers = [await Reader.connect(proxy, trust) for _ in spans]
    for reader, (start, stop) in zip(readers, spans, strict=True):
        reader.ask(path, start, stop)
    for reader in readers:
        await reader.head()
    bodies = await asyncio.gather(*(reader.rest() for reader in readers))
    assert bodies == [BLOB[start or 0 : stop] for start, stop in spans]
    assert registry.record.sent_twice(digest_of(BLOB)) == []


async def test_ranges_of_a_warm_blob(proxy: Proxy, registry: FakeRegistry) -> None:
    """From the file, whatever the piece that it is read by."""
    path = put(registry, BLOB)
    await proxy.get(path)
    await proxy.stored(1)
    for start, stop in ((0, 1), (256 * KIB - 1, 256 * KIB + 1), (3 * MIB, len(BLOB)), (len(BLOB) - 1, len(BLOB))):
        answer = await proxy.get(path, Range=f"bytes={start}-{stop - 1}")
        assert (answer.status, answer.body) == (206, BLOB[start:stop])


async def test_a_body_that_is_cut(proxy: Proxy, registry: FakeRegistry, authority: Authority) -> None:
    """Wrong bytes from the upstream: TLS is ended in its own way (close_notify) after all that came before."""
    digest = digest_of(b"other bytes")
    path = put(registry, BLOB, digest=digest)
    received, clean = await asyncio.to_thread(_read_to_the_end, address(proxy), authority, path)
    assert clean
    assert 0 < len(received) < len(BLOB)
    assert BLOB.startswith(received)


def _read_to_the_end(where: tuple[str, int], authority: Authority, path: str) -> tuple[bytes, bool]:
    """The body of a GET until the connection ends, and whether TLS was ended before TCP was."""
    context = authority.client()
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    with socket.create_connection(where, timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname=where[0], suppress_ragged_eofs=False) as tls:
            tls.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            data = b""
            try:
                while piece := tls.recv(65536):
                    data += piece
            except ssl.SSLEOFError:
                return data.partition(b"\r\n\r\n")[2], False
    return data.partition(b"\r\n\r\n")[2], True


async def test_clients_that_stall(proxy: Proxy, registry: FakeRegistry, trust: ssl.SSLContext) -> None:
    """Little is kept for each of them, whatever the size of the blob, and others are served; all may go on."""
    path = put(registry, BLOB)
    await proxy.get(path)
    await proxy.stored(1)
    stalled = []
    for _ in range(4):
        reader = await Reader.connect(proxy, trust)
        reader.ask(path)
        await reader.head()
        stalled.append(reader)
    assert (await proxy.get(path)).body == BLOB
    server = proxy.application.listeners[0]._runner.server
    assert server is not None
    transports = [one.transport for one in server.connections if one.transport is not None]
    kept = [transport.get_write_buffer_size() for transport in transports]
    assert len([size for size in kept if size]) == len(stalled)
    assert max(kept) < 400 * KIB
    for reader in stalled:
        assert await reader.rest() == BLOB


async def test_a_client_that_leaves(proxy: Proxy, registry: FakeRegistry, trust: ssl.SSLContext) -> None:
    """In the middle of a body, without a goodbye: the fill goes on, and the connection is gone."""
    path = put(registry, BLOB)
    registry.pause = gate = Gate(MIB)
    reader = await Reader.connect(proxy, trust)
    reader.ask(path)
    await reader.head()
    await gate.reached.wait()
    reader.leave()
    gate.open()
    await proxy.stored(1)
    assert (await proxy.get(path)).body == BLOB


# Who may speak with it, and how.


async def test_what_it_speaks(proxy: Proxy, authority: Authority) -> None:
    """TLS 1.2 and 1.3, HTTP/1.1; a client that would rather have HTTP/2 alone is told of no protocol."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = authority.client()
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
        assert await _negotiated(proxy, context) == "http/1.1"
    context = authority.client()
    context.set_alpn_protocols(["h2"])
    assert await _negotiated(proxy, context) is None


async def _negotiated(proxy: Proxy, context: ssl.SSLContext) -> str | None:
    host, port = address(proxy)
    _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    protocol: str | None = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    writer.close()
    await writer.wait_closed()
    return protocol


async def test_a_client_that_is_slow_with_its_handshake(
    settings: Callable[..., Settings], server_pair: Pair, trust: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is let go after a while; the others never notice."""
    monkeypatch.setattr("proxy.server.listener.HANDSHAKE_TIMEOUT", 0.1)
    async with running(settings(listen=tls_listener(server_pair)), tls=trust) as proxy:
        reader, writer = await asyncio.open_connection(*address(proxy))
        writer.write(b"\x16\x03\x01")
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        assert (await proxy.get("/v2/")).status == 200
        writer.close()


async def test_the_server_name_names_a_registry(
    registry: FakeRegistry, tmp_path: Path, server_pair: Pair, authority: Authority
) -> None:
    """Where neither `ns` nor the Host does (section 3): the Host goes before it, the path behind it."""
    registry.push("team/app", "v1", IMAGE)
    other: dict[str, Any] = {"url": "http://127.0.0.1:1", "connect_timeout": "1s"}
    upstreams = {"default.test": other, "registry.test": {"url": registry.url, "aliases": ["localhost"]}}
    listen = tls_listener(server_pair)
    async with running(make_settings(tmp_path, upstreams, listen=listen), tls=authority.client()) as proxy:
        url = f"https://localhost:{address(proxy)[1]}{TAG}"
        for host, status in (("proxy.internal", 200), ("default.test", 502)):
            async with proxy.session.get(url, headers={"Host": host}) as answer:
                assert answer.status == status
        assert (await proxy.get(TAG)).status == 502


async def test_a_login_over_tls(settings: Callable[..., Settings], server_pair: Pair, trust: ssl.SSLContext) -> None:
    """Where clients are to log in, TLS is what the proxy asks for passwords over."""
    clusters = [{"name": "default", "login": True}]
    async with running(settings(listen=tls_listener(server_pair), clusters=clusters), tls=trust) as proxy:
        answer = await proxy.get("/v2/")
        assert (answer.status, answer.headers["WWW-Authenticate"].split()[0]) == (401, "Basic")


# What comes to an open port.


async def test_scanners_leave_no_traceback(tmp_path: Path, server_pair: Pair, trust: ssl.SSLContext) -> None:
    """Plain HTTP, noise, old TLS, resets and impossible names: one line each at level debug, and it serves on."""
    config = write_config(
        tmp_path, {"registry.test": {"url": "http://127.0.0.1:1"}},
        listen=tls_listener(server_pair), workers=1, log={"level": "debug", "access": False},
    )  # fmt: skip
    async with program(config) as running_program:
        line = await running_program.says("serving on")
        port = int(line.partition("127.0.0.1:")[2].partition(",")[0])
        for sent in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)), _hello(b"\xff\xfe"), _hello(b"x" * 300)):
            await _knock(port, sent)
        for sent in (b"", b"\x16\x03\x01\x02"):
            await _knock(port, sent, answered=False)
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(_distrust, port)
        await running_program.says("a TLS handshake failed: http request")
        await running_program.says("a TLS handshake failed: tlsv1 alert unknown ca")
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
        writer.close()
        await writer.wait_closed()
        running_program.signal(15)
        assert await running_program.exit() == 0
        text = "\n".join(running_program.lines)
        for bad in ("Traceback", "Exception ignored", "UnicodeDecodeError", "never retrieved", " error ", " warning "):
            assert bad not in text


def _distrust(port: int) -> None:
    """Connect as a client that does not know the authority."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")


async def _knock(port: int, sent: bytes, answered: bool = True) -> None:
    """Send these bytes, and read an answer if there is one; the connection ends with RST."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    if answered:
        async with asyncio.timeout(20):
            await reader.read(1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


def _hello(name: bytes) -> bytes:
    """A ClientHello for TLS 1.2 that asks for `name` (RFC 6066, section 3)."""
    entry = b"\x00" + len(name).to_bytes(2) + name
    listed = len(entry).to_bytes(2) + entry
    extensions = b"\x00\x00" + len(listed).to_bytes(2) + listed
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\xc0\x2b" + b"\x01\x00"
    body += len(extensions).to_bytes(2) + extensions
    handshake = b"\x01" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + len(handshake).to_bytes(2) + handshake


# The start.


@pytest.mark.parametrize(
    ("certificate", "key", "client_ca", "said"),
    [
        ("none.crt", "good.key", None, "none.crt: No such file or directory"),
        ("good.crt", "none.key", None, "none.key: No such file or directory"),
        ("good.crt", "other.key", None, "do not belong together"),
        ("noise", "good.key", None, "noise is no certificate"),
        ("good.crt", "noise", None, "noise is no private key"),
        ("good.crt", "locked.key", None, "the private key is encrypted"),
        ("good.crt", "good.key", "none.crt", "none.crt: No such file or directory"),
        ("good.crt", "good.key", "noise", "noise has no certificates"),
    ],
)
async def test_files_that_are_no_good(
    settings: Callable[..., Settings], server_pair: Pair, authority: Authority, tmp_path: Path,
    certificate: str, key: str, client_ca: str | None, said: str,
) -> None:  # fmt: skip
    """The start says which one and why, in one line, and asks nothing at the terminal."""
    (tmp_path / "good.crt").write_bytes(server_pair.certificate.read_bytes())
    (tmp_path / "good.key").write_bytes(server_pair.key.read_bytes())
    (tmp_path / "other.key").write_bytes(authority.server().key.read_bytes())
    (tmp_path / "noise").write_text("noise")
    (tmp_path / "locked.key").write_bytes(authority.locked(server_pair).read_bytes())
    tls = {"client_ca": str(tmp_path / client_ca)} if client_ca is not None else {}
    pair = Pair(tmp_path / certificate, tmp_path / key)
    with pytest.raises(ListenError) as caught:
        async with running(settings(listen=tls_listener(pair, **tls))):
            pass
    assert said in str(caught.value)
    assert str(caught.value).startswith("127.0.0.1:0 cannot be listened on: ")
    assert "\n" not in str(caught.value)


async def test_running_connections_end_with_it(
    settings: Callable[..., Settings], server_pair: Pair, trust: ssl.SSLContext
) -> None:
    """An idle client, and one in its handshake, hold nothing up."""
    before = asyncio.all_tasks()
    async with running(settings(listen=tls_listener(server_pair)), tls=trust) as proxy:
        reader, writer = await asyncio.open_connection(*address(proxy))
        # Connections are accepted in their order, so that one has been when this one is answered.
        assert (await proxy.get("/v2/")).status == 200
        ending = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - ending < 5
    writer.close()
    await writer.wait_closed()
    assert await reader.read() == b""
    await until(lambda: asyncio.all_tasks() <= before)
