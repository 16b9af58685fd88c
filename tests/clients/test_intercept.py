"""Real clients whose nodes are not configured: they ask for a registry in its name, and the proxy answers."""

import asyncio
import contextlib
import itertools
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.intercepted import LOGIN, NAME, PASSWORDS, Interceptor, Node, World, client, world

_REALMS = {"login-elsewhere": f"https://{LOGIN}/token", "login-in-its-name": f"https://{NAME}/token"}
_COUNT = itertools.count()


@pytest.fixture(scope="module", params=list(_REALMS))
def outside(request: pytest.FixtureRequest, scratch: Path) -> Iterator[World]:
    """Where its tokens are had."""
    with world(scratch / f"intercept-{request.param}", "distribution-3.1", _REALMS[request.param]) as made:
        yield made


@pytest.fixture
def proxy(outside: World) -> Iterator[Interceptor]:
    """With an empty cache."""
    proxy = Interceptor(outside, outside.directory / f"proxy{next(_COUNT)}")
    yield proxy
    proxy.stop()


@pytest.mark.parametrize("way", ["hosts", "https-proxy"])
@pytest.mark.parametrize("kind", ["skopeo", "containerd", "docker"])
def test_pulls_by_name(proxy: Interceptor, outside: World, kind: str, way: str) -> None:
    """With their own log-ins and without; the second pull, by a fresh node, asks the registry for no blob; and nobody
    who has not logged in gets what alice has brought."""
    for pulled in ("cold", "warm"):
        mark = outside.upstream.mark()
        directory = outside.directory / f"node{next(_COUNT)}"
        with client(kind, proxy, directory, way) as node:
            node.pull("open/app")
            with pytest.raises(AssertionError):
                node.pull("alice/app")
            with pytest.raises(AssertionError):
                node.login("alice", "not hers")
                node.pull("alice/app")
            node.login("alice", PASSWORDS["alice"])
            node.pull("alice/app")
        requests = outside.requests(mark)
        assert {request.agent.partition("/")[0] for request in requests} <= {"pullthrough"}
        blobs = [request for request in requests if request.on_blob and request.method == "GET"]
        assert bool(blobs) is (pulled == "cold"), blobs
    assert proxy.metric("pullthrough_requests_total", kind="blob", cache="hit", registry=NAME) >= 2
    assert PASSWORDS["alice"] not in proxy.log()


@pytest.mark.parametrize("way", ["hosts", "https-proxy"])
def test_several_workers(outside: World, way: str) -> None:
    """Each has certificates of its own, and all of them one cache."""
    proxy = Interceptor(outside, outside.directory / f"proxy{next(_COUNT)}", workers=2)
    mark = outside.upstream.mark()
    for _ in range(4):
        with client("skopeo", proxy, outside.directory / f"node{next(_COUNT)}", way) as node:
            node.login("alice", PASSWORDS["alice"])
            node.pull("alice/app")
    proxy.stop()
    blobs = [request.path for request in outside.requests(mark) if request.on_blob and request.method == "GET"]
    assert len(set(blobs)) == len(blobs) == len(outside.images["alice/app"].blobs)


def test_a_node_that_does_not_trust_it(proxy: Interceptor, outside: World) -> None:
    """It gets a TLS error, at once."""
    directory = outside.directory / f"node{next(_COUNT)}"
    node = Node(proxy, directory, "hosts")
    node.env["SSL_CERT_FILE"] = str(outside.outside)
    began = time.monotonic()
    with pytest.raises(AssertionError, match="x509: certificate signed by unknown authority"):
        node.run("skopeo", "inspect", "--raw", f"docker://{NAME}/open/app:v1")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:443", "169.254.169.254:80", "169.254.169.254:443", "[::1]:443", "localhost:443", "2130706433:443",
        "unlisted.test:443", f"{NAME}:8443", f"{LOGIN}:80", "10.0.0.1:443",
    ],
)  # fmt: skip
def test_what_nobody_is_led_to(proxy: Interceptor, target: str) -> None:
    """403, with the reason in the form of all errors."""
    with socket.create_connection((proxy.address, 3128), timeout=10) as connection:
        connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 403 "), answer
    assert b'"code": "DENIED"' in answer


def test_a_tunnel_is_not_looked_into(proxy: Interceptor, outside: World) -> None:
    """What the token server shows is its own certificate, by an authority that has nothing to do with the proxy."""
    directory = outside.directory / f"node{next(_COUNT)}"
    node = Node(proxy, directory, "https-proxy")
    answer = node.run(
        "curl", "-sS", "--cacert", outside.outside, f"https://{LOGIN}/token?scope=repository:open/app:pull"
    )
    assert '"token"' in answer
    assert proxy.metric("pullthrough_requests_total", method="CONNECT", status="200") == 1


def test_a_thousand_names(proxy: Interceptor) -> None:
    """Each is refused in the handshake; that costs neither memory nor much of a processor, and others are served."""
    pid = proxy.pid
    asyncio.run(_handshakes(proxy, 100))
    before, memory = _used(pid), _memory(pid)
    waited = asyncio.run(_handshakes(proxy, 1000))
    used, grown = _used(pid) - before, _memory(pid) - memory
    assert used < 5, used
    assert grown < 16 << 20, grown
    assert max(waited) < 2, waited


async def _handshakes(proxy: Interceptor, count: int) -> list[float]:
    """As many handshakes for names that nobody has, 50 at a time; gives how long pings took meanwhile, in seconds."""
    context = ssl.create_default_context(cafile=proxy.ca)
    turns = asyncio.Semaphore(50)

    async def handshake(number: int) -> None:
        async with turns:
            with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
                await asyncio.open_connection(proxy.address, 443, ssl=context, server_hostname=f"name{number}.test")

    asking = asyncio.gather(*(handshake(number) for number in range(count)))
    waited = []
    while not asking.done():
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(proxy.address, 443, ssl=context, server_hostname=NAME)
        writer.write(f"GET /v2/ HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        waited.append(time.monotonic() - began)
        await asyncio.sleep(0.05)
    await asking
    return waited


def _used(pid: int) -> float:
    """Its processor time, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _memory(pid: int) -> int:
    """What it has of the machine's, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
