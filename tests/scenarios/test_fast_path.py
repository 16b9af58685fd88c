"""What came before is answered by its bytes; what is not one whole request goes the usual way, and all in order."""

import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from proxy.cache.manifests import Manifests
from proxy.server.fast import FastConnection
from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image, random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import KIB, MIB, put, until
from tests.scenarios.repeats import TAG, Client, Counts, asked, repeat, request

IMAGE, OTHER = make_image(10, seed=1), make_image(10, seed=2)
GET, HEAD = request(), request(method="HEAD")
DIGEST = f"/v2/team/app/manifests/{OTHER.digest}"


@pytest.fixture
async def fast(settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts) -> AsyncIterator[Proxy]:
    """A proxy that knows `GET` by its bytes, and has what `DIGEST` names; nothing more reaches the upstream."""
    registry.push("team/app", "v1", IMAGE)
    registry.push("team/app", "v2", OTHER)
    async with running(settings()) as proxy:
        # What is fetched renews a proof, which ends what is known by it.
        await asked(proxy, request(DIGEST))
        await repeat(proxy, GET)
        registry.seen.clear()
        yield proxy
        assert registry.seen == []


async def pieces(client: Client, *sent: bytes) -> None:
    """Send them so that each comes in by itself."""
    came: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        receive = FastConnection.data_received

        def received(connection: FastConnection, data: bytes) -> None:
            came.append(data)
            receive(connection, data)

        patch.setattr(FastConnection, "data_received", received)
        for number, piece in enumerate(sent, 1):
            await client.send(piece)
            await until(lambda number=number: len(came) == number)  # type: ignore[misc]
    assert came == list(sent)


async def test_a_repeated_request_comes_to_no_handler(
    settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts
) -> None:
    """From the third time on, by whomever; the first one fetched it, and the second one found it here."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings()) as proxy:
        for number in (1, 2, 2, 2):
            client = await asked(proxy, GET)
            assert client.body == IMAGE.manifest
            assert len(counts.handled) == number
        assert client.headers["cache-status"] == "pullthrough; hit; ttl=600"
        assert client.headers["docker-content-digest"] == IMAGE.digest
        assert client.headers["content-length"] == str(len(IMAGE.manifest))
        assert [seen.method for seen in registry.seen] == ["GET"]


async def test_a_head_has_no_body(fast: Proxy, counts: Counts) -> None:
    """Its length is that of the body, and what comes next is the next answer."""
    await repeat(fast, HEAD)
    client = await Client.to(fast)
    with counts.none():
        await client.ask(HEAD)
        assert client.headers["content-length"] == str(len(IMAGE.manifest))
        assert await client.ask(GET) == IMAGE.manifest
    client.leave()


async def test_switched_off(settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts) -> None:
    """Every request is parsed; it is answered from memory all the same."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(fast_path=False)) as proxy:
        client = await Client.to(proxy)
        for _ in range(5):
            assert await client.ask(GET) == IMAGE.manifest
        client.leave()
        assert (len(counts.handled), len(counts.walked), len(registry.seen)) == (5, 2, 1)


async def test_other_bytes_that_mean_the_same(fast: Proxy, counts: Counts) -> None:
    """Are parsed once, and known from then on; what they ask is not looked up."""
    other = request(TAG, "User-Agent: another/1.0", "Accept: */*")
    handled, walked = len(counts.handled), len(counts.walked)
    for _ in range(3):
        assert (await asked(fast, other)).body == IMAGE.manifest
    assert (len(counts.handled) - handled, len(counts.walked) - walked) == (1, 0)


@pytest.mark.parametrize("at", [1, 10, 40, len(GET) - 4, len(GET) - 3, len(GET) - 2, len(GET) - 1])
async def test_bytes_split_over_two_packets(fast: Proxy, counts: Counts, at: int) -> None:
    """It is parsed, wherever it is split; those that come whole from then on are not, but for the first of them."""
    client = await Client.to(fast)
    assert await client.ask(GET) == IMAGE.manifest
    handled = len(counts.handled)
    await client.rests()
    await pieces(client, GET[:at], GET[at:])
    await client.answer()
    assert (client.status, client.body, len(counts.handled)) == (200, IMAGE.manifest, handled + 1)
    assert await client.ask(GET) == IMAGE.manifest
    with counts.none():
        assert await client.ask(GET) == IMAGE.manifest
    client.leave()


@pytest.mark.parametrize("first", ["GET", "HEAD", "other"])
async def test_two_requests_in_one_packet(fast: Proxy, counts: Counts, first: str) -> None:
    """Both are answered, in their order; so is one whose beginning came along with the end of another."""
    sent = {"GET": GET, "HEAD": HEAD, "other": request(DIGEST)}[first]
    client = await Client.to(fast)
    for packet, rest in ((sent + GET, b""), (sent + GET[:30], GET[30:])):
        await client.rests()
        await pieces(client, packet, *([rest] if rest else []))
        await client.answer(body=first != "HEAD")
        assert client.body == {"GET": IMAGE.manifest, "HEAD": b"", "other": OTHER.manifest}[first]
        await client.answer()
        assert client.body == IMAGE.manifest
    with counts.none():
        assert await client.ask(GET) == IMAGE.manifest
    client.leave()


async def test_two_requests_at_once_are_not_kept_as_one(fast: Proxy, counts: Counts) -> None:
    """However often both come in one packet, both are answered."""
    client = await Client.to(fast)
    for _ in range(4):
        await client.send(GET + request(DIGEST))
        await client.answer()
        assert client.body == IMAGE.manifest
        await client.answer()
        assert client.body == OTHER.manifest
    client.leave()


@pytest.mark.parametrize("split", [False, True], ids=["together", "apart"])
async def test_a_request_with_a_body(fast: Proxy, counts: Counts, split: bool) -> None:
    """The body is no request, whatever it looks like; the one behind it is answered by itself."""
    sent = request(TAG, f"Content-Length: {len(GET)}")
    client = await Client.to(fast)
    for _ in range(3):
        await client.rests()
        with counts.all():
            await (pieces(client, sent, GET) if split else client.send(sent + GET))
            await client.answer()
        assert client.body == IMAGE.manifest
        assert await client.ask(request(DIGEST)) == OTHER.manifest
    client.leave()


async def test_http_1_0(fast: Proxy, counts: Counts) -> None:
    """Is looked up each time, and ends its connection, as it did the first time."""
    for _ in range(3):
        client = await Client.to(fast)
        with counts.all():
            assert await client.ask(request(version="1.0")) == IMAGE.manifest
        assert await client.end() == b""


async def test_http_1_0_that_stays(fast: Proxy, counts: Counts) -> None:
    """The same for one that asks for the connection to go on, which is told that it does."""
    client = await Client.to(fast)
    for _ in range(3):
        with counts.all():
            assert await client.ask(request(TAG, "Connection: keep-alive", version="1.0")) == IMAGE.manifest
        assert client.headers["connection"] == "keep-alive"
        assert await client.ask(GET) == IMAGE.manifest
        assert "connection" not in client.headers
    client.leave()


async def test_connection_close(fast: Proxy, counts: Counts) -> None:
    """The same; on a connection that was used by bytes before, too."""
    for _ in range(3):
        client = await Client.to(fast)
        await client.ask(GET)
        with counts.all():
            assert await client.ask(request(TAG, "Connection: close")) == IMAGE.manifest
        assert await client.end() == b""


async def test_another_protocol(fast: Proxy, counts: Counts) -> None:
    """Whoever asks for one is told about the image, and what comes next is a request again."""
    sent = request(TAG, "Connection: Upgrade", "Upgrade: websocket")
    client = await Client.to(fast)
    for _ in range(3):
        handled = len(counts.handled)
        assert await client.ask(sent) == IMAGE.manifest
        assert len(counts.handled) == handled + 1
        assert await client.ask(GET) == IMAGE.manifest
    client.leave()


async def test_behind_an_unfinished_one(fast: Proxy, counts: Counts, registry: FakeRegistry) -> None:
    """A request that is known waits for the answer to the one before it, which takes long."""
    blob = random_bytes(MIB, 3)
    # To have it proves nothing of the other repository, and so ends nothing that is known.
    path = put(registry, blob, "slow/app")
    registry.pause = gate = Gate(0)
    client = await Client.to(fast)
    await client.send(request(path))
    await gate.reached.wait()
    handled = len(counts.handled)
    await pieces(client, GET)
    await asked(fast, GET)
    assert len(counts.handled) == handled
    gate.open()
    await client.answer()
    assert client.body == blob
    await client.answer()
    assert client.body == IMAGE.manifest
    client.leave()
    registry.seen.clear()


async def test_what_came_meanwhile(fast: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is kept under the bytes that asked for it, not under those that came before it was given."""
    other, gate = request(TAG, "X: y"), Gate(0)
    get = Manifests.get

    async def waits(self: Manifests, *arguments: Any) -> Any:
        await gate(0)
        return await get(self, *arguments)

    client = await Client.to(fast)
    monkeypatch.setattr(Manifests, "get", waits)
    await client.send(request(DIGEST))
    await gate.reached.wait()
    await pieces(client, other)
    gate.open()
    await client.answer()
    assert client.body == OTHER.manifest
    for _ in range(3):
        await client.answer()
        assert client.body == IMAGE.manifest
        await client.rests()
        await client.send(other)
    await client.answer()
    client.leave()


async def test_the_second_half_of_a_request(fast: Proxy) -> None:
    """Is none, however often it was the end of one."""
    for _ in range(3):
        client = await Client.to(fast)
        await client.rests()
        await pieces(client, GET[:2], GET[2:])
        await client.answer()
        assert client.body == IMAGE.manifest
        client.leave()
    await asked(fast, GET[2:], 400)


async def test_behind_the_beginning_of_a_request(fast: Proxy, counts: Counts) -> None:
    """Of which so little came that it is easily missed: what is known whole is not a request of its own there."""
    for begun in (b"G", b"GE", b"GET", b"GET "):
        client = await Client.to(fast)
        await client.rests()
        await pieces(client, GET[:-1], GET[-1:] + begun)
        await client.answer()
        assert client.body == IMAGE.manifest
        await client.send(GET)
        assert await client.answer() == 400
        assert await client.end() == b""


async def test_behind_half_a_request(fast: Proxy) -> None:
    """What is known as a whole is the rest of a head here, which so has two Hosts, and is refused for it."""
    client = await Client.to(fast)
    await client.ask(GET)
    await client.rests()
    await pieces(client, f"GET {DIGEST} HTTP/1.1\r\nHost: a.test\r\nX-Rest: ".encode(), GET)
    assert await client.answer() == 400
    assert await client.end() == b""


async def test_empty_lines_before_a_request(fast: Proxy, counts: Counts) -> None:
    """Are no part of it (RFC 9112, section 2.2), with it or before it."""
    client = await Client.to(fast)
    await client.ask(GET)
    await client.rests()
    await pieces(client, b"\r\n", GET)
    await client.answer()
    assert client.body == IMAGE.manifest
    for _ in range(3):
        assert await client.ask(b"\r\n" + GET) == IMAGE.manifest
    client.leave()


async def test_a_client_that_does_not_read(
    settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts
) -> None:
    """Once it takes nothing more, no further answer is made for it; when it reads, all of them come, in order."""
    large = b'{"schemaVersion": 2, "x": "' + b"x" * (500 * KIB) + b'"}'
    digest = registry.put("team/app", "application/vnd.oci.image.manifest.v1+json", large)
    registry.push("team/app", "v1", IMAGE)
    path = request(f"/v2/team/app/manifests/{digest}")
    async with running(settings()) as proxy:
        await repeat(proxy, GET)
        await repeat(proxy, path)
        listening = proxy.application.listeners[0]._servers[0].sockets[0]
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * KIB)
        client = await Client.to(proxy)
        await client.ask(GET)
        connection = client.connection
        # Until its buffers here, and those of the system, are full.
        sent = 0
        while not connection._paused:
            await pieces(client, path)
            sent += 1
        transport = connection.transport
        assert transport is not None
        waiting = transport.get_write_buffer_size()
        for _ in range(5):
            await pieces(client, path)
        # One more at most is made before somebody waits for it.
        await until(lambda: len(connection._messages) == 4)
        assert transport.get_write_buffer_size() <= waiting + len(large) + KIB
        await client.send(GET)
        for _ in range(sent + 5):
            await client.answer()
            assert digest_of(client.body) == digest
        await client.answer()
        assert client.body == IMAGE.manifest
        with counts.none():
            assert await client.ask(GET) == IMAGE.manifest
        client.leave()


async def test_headers_that_are_too_large_together(
    settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts
) -> None:
    """Are refused each time, although what they ask is known."""
    registry.push("team/app", "v1", IMAGE)
    several = request(TAG, *(f"X-{number}: {'x' * 1000}" for number in range(5)))
    async with running(settings(limits={"max_header_size": "4KiB"})) as proxy:
        await repeat(proxy, GET)
        for _ in range(3):
            client = await asked(proxy, several, 431)
            assert client.code == "UNSUPPORTED"
        with counts.none():
            await asked(proxy, GET)
