"""Answers from memory are those that there would be without it: the same heads, bodies, metrics, lines and history.

Random days of clients, operators and time are lived three times, each with a registry of its own: by a proxy as it is
shipped, by one that parses every request, and by one without any memory. Whatever can be seen of them must be equal.

PULLTHROUGH_MEMORY_EXAMPLES=1000 looks at that many random days instead of the few, always the same, of every run.
"""

import asyncio
import io
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proxy.settings import Settings
from proxy.telemetry.batches import BatchHandler
from proxy.telemetry.lines import ACCESS, text_access
from proxy.telemetry.logs import flush_logging
from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import Proxy, make_settings, running
from tests.fakes.raw import Raw
from tests.fakes.registry import FakeRegistry
from tests.scenarios.operators import call

# The first one has a layer that is too large to be answered from memory.
IMAGES = [make_image(10, 70_000, seed=1), make_image(10, seed=2), make_image(10, seed=3)]
BLOBS = [f"/v2/team/app/blobs/{digest_of(blob)}" for blob in IMAGES[0].blobs]
CLIENTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
CLUSTERS: list[dict[str, Any]] = [
    {"name": "two", "match": {"networks": ["127.0.0.2/32"]}, "manifests": {"tag_ttl": "1m"}},
    {"name": "limited", "match": {"hosts": ["limited.test"]}, "limits": {"requests_per_second": 1000}},
    {"name": "named", "match": {"hosts": ["named.test"]}, "upstreams": ["registry.test"]},
    {"name": "rest"},
]
# What a reload may change. The first is what a day begins with.
CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"manifests": {"tag_ttl": "1m", "proof_ttl": "30s", "drift_interval": 0}},
    {"clusters": [{"name": "all", "repositories": ["registry.test/team/app"]}]},
    {"trusted_proxies": []},
    {"limits": {"max_header_size": "4KiB", "max_url_length": "1KiB"}},
]
PATHS = [
    "/v2/team/app/manifests/v1",
    "/v2/team/other/manifests/v1",
    "/v2/registry.test/team/app/manifests/v1",
    "/v2/team/app/manifests/v1?ns=registry.test",
    "/v2/team/app/manifests/missing",
    *(f"/v2/team/app/manifests/{image.digest}" for image in IMAGES[:2]),
    *BLOBS,
    BLOBS[1].replace("app", "other"),
    "/v2/",
]
EXTRAS = [
    "",
    "Host: named.test\r\n",
    "Host: limited.test\r\n",
    "X-Forwarded-For: 127.0.0.1\r\n",
    "Authorization: Bearer mine\r\n",
    "Authorization: Basic Og==\r\n",
    "X-Forwarded-For: 127.0.0.2\r\n",
    "Range: bytes=0-3\r\n",
    "Accept: application/vnd.oci.image.index.v1+json\r\n",
    f"X-Long: {'x' * 4090}\r\n",
    "Content-Length: 0\r\n",
]


def head(method: str, path: str, extra: str, version: str = "1.1") -> bytes:
    host = "" if extra.startswith("Host:") else "Host: proxy.test\r\n"
    return f"{method} {path} HTTP/{version}\r\n{host}{extra}\r\n".encode()


RANGES = [
    "",
    "Range: bytes=0-3\r\n",
    "Range: bytes=5-\r\n",
    "Range: bytes=-5\r\n",
    "Range: bytes=20-70000\r\n",
    "Range: bytes=70000-\r\n",
    f'Range: bytes=1-2\r\nIf-Range: "{digest_of(IMAGES[0].blobs[2])}"\r\n',
    "Range: bytes=0-0\r\nAuthorization: Bearer mine\r\n",
    "Range: bytes=0-0\r\nHost: limited.test\r\n",
]
METHODS = st.sampled_from(["GET", "GET", "HEAD"])
HEADS = st.one_of(
    st.builds(head, METHODS, st.sampled_from(PATHS), st.sampled_from(EXTRAS)),
    st.builds(head, METHODS, st.sampled_from(BLOBS), st.sampled_from(RANGES)),
)
USUAL = st.sampled_from([head("GET", PATHS[0], ""), head("HEAD", PATHS[0], ""), head("GET", PATHS[5], "")])
CLIENT = st.integers(0, len(CLIENTS) - 1)
# What is asked again after whatever happens.
QUESTION = st.one_of(
    st.tuples(st.just("ask"), CLIENT, st.one_of(USUAL, HEADS)), st.tuples(st.just("if"), CLIENT, st.sampled_from(BLOBS))
)
QUESTIONS = st.lists(QUESTION, min_size=1, max_size=5)
EVENT = st.one_of(
    st.tuples(st.just("split"), CLIENT, st.one_of(USUAL, HEADS), st.integers(1, 40)),
    st.tuples(st.just("pipeline"), CLIENT, st.one_of(USUAL, HEADS), USUAL),
    st.tuples(st.just("body"), CLIENT),
    st.tuples(st.just("last"), CLIENT, st.sampled_from(["Connection: close\r\n", "1.0"])),
    st.tuples(st.just("advance"), st.sampled_from([0.4, 1.0, 31.0, 299.0, 301.0, 601.0, -5.0, -100.0])),
    st.tuples(st.just("move"), st.integers(0, 2)),
    st.tuples(st.just("operate"), st.sampled_from(["purge", "refresh", "hold", "release"])),
    st.tuples(st.just("remove"), st.integers(0, len(BLOBS) - 1)),
    st.tuples(st.just("reload"), st.integers(0, len(CONFIGURATIONS) - 1)),
)


@dataclass
class World:
    """One of the three; `seen` is all that clients saw."""

    proxy: Proxy
    registry: FakeRegistry
    configure: Any
    connections: dict[int, Raw] = field(default_factory=dict)
    seen: list[Any] = field(default_factory=list)

    async def client(self, number: int) -> Raw:
        if number not in self.connections:
            self.connections[number] = await Raw.connect(self.proxy, source=CLIENTS[number])
        return self.connections[number]

    async def answered(self, number: int, sent: bytes, *, last: bool = False) -> None:
        client = self.connections[number]
        try:
            await client.answer(body=not sent.startswith(b"HEAD"))
        except asyncio.IncompleteReadError:
            self.seen.append("closed")
            self.connections.pop(number).leave()
            return
        headers = {name: value for name, value in client.headers.items() if name != "date"}
        self.seen.append((client.status, headers, client.body))
        await self.settled()
        if last or headers.get("connection") == "close":
            assert await self.connections.pop(number).end() == b""

    async def live(self, step: tuple[Any, ...]) -> None:
        match step:
            case "ask", number, sent:
                await (await self.client(number)).send(sent)
                await self.answered(number, sent)
            case "if", number, path:
                # The same range without a condition, and with one that is not met.
                for condition in ("", 'If-Range: "other"\r\n'):
                    await self.live(("ask", number, head("GET", path, f"Range: bytes=1-2\r\n{condition}")))
            case "split", number, sent, at:
                client = await self.client(number)
                await client.send(sent[:at])
                await asyncio.sleep(0.001)
                await client.send(sent[at:])
                await self.answered(number, sent)
            case "pipeline", number, first, second:
                await (await self.client(number)).send(first + second)
                for sent in (first, second):
                    if number in self.connections:
                        await self.answered(number, sent)
            case "body", number:
                sent = head("GET", PATHS[0], "Content-Length: 3\r\n")
                client = await self.client(number)
                await client.send(sent)
                await client.send(b"GET")
                await self.answered(number, sent)
            case "last", number, how:
                sent = head("GET", PATHS[0], "", "1.0") if how == "1.0" else head("GET", PATHS[0], how)
                await (await self.client(number)).send(sent)
                await self.answered(number, sent, last=True)
            case "advance", seconds:
                self.proxy.clock.advance(seconds)
            case "move", number:
                self.registry.push("team/app", "v1", IMAGES[number])
            case "operate", what:
                await self.operate(what)
            case "remove", number:
                digest = digest_of(IMAGES[0].blobs[number])
                self.seen.append(("remove", (await call(self.proxy, "DELETE", f"blobs/{digest}"))[0]))
            case "reload", number:
                await self.proxy.application.reload(self.configure(CONFIGURATIONS[number]))

    async def settled(self) -> None:
        """Wait until no fill is under way, which would be at another time than in the other worlds, nor any request."""
        handlers = self.proxy.application._handlers
        assert handlers is not None
        async with asyncio.timeout(10):
            await handlers.idle()
            while handlers.house.blobs.fills:
                await asyncio.sleep(0)

    async def operate(self, what: str) -> None:
        reference = "registry.test/team/app:v1"
        if what == "purge":
            answer = await call(self.proxy, "DELETE", "tags", reference=reference)
        else:
            named = f"{reference}@{IMAGES[0].digest}" if what == "hold" else reference
            answer = await call(self.proxy, "POST", f"tags/{what}", {"reference": named})
        self.seen.append((what, answer[0]))

    async def told(self) -> dict[str, Any]:
        """What the proxy says of it all when it is over."""
        _, found = await call(self.proxy, "GET", "tags", reference="registry.test/team/app:v1")
        async with self.proxy.session.get(self.proxy.admin_url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        counted = [line for line in lines if not re.search(r"_lag_seconds|_seconds_(bucket|sum)", line)]
        return {"tags": found, "metrics": counted, "upstream": [(one.method, one.path) for one in self.registry.seen]}


@contextmanager
def access_lines() -> Iterator[io.StringIO]:
    """All access lines of this time."""
    root, logger, text = logging.getLogger(), logging.getLogger(ACCESS), io.StringIO()
    before, level, handler = root.handlers[:], logger.level, BatchHandler(text, text_access)
    root.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    try:
        yield text
    finally:
        flush_logging()
        root.handlers[:] = before
        logger.setLevel(level)


async def lived(steps: list[tuple[Any, ...]], fast_path: bool = True, memory: str | int = "64MiB") -> dict[str, Any]:
    """All that can be seen of a day."""
    registry = FakeRegistry()
    await registry.start()
    registry.push("team/app", "v1", IMAGES[0])
    registry.push("team/other", "v1", IMAGES[2])
    with tempfile.TemporaryDirectory() as folder, access_lines() as text:
        shipped = {
            "clusters": CLUSTERS, "trusted_proxies": ["127.0.0.3/32"], "manifests": {"drift_interval": 0},
            "fast_path": fast_path,
            "cache": {"directory": f"{folder}/cache", "max_size": "1GiB", "min_free": 0, "memory": memory},
        }  # fmt: skip

        def configure(changed: dict[str, Any]) -> Settings:
            return make_settings(Path(folder), {"registry.test": {"url": registry.url}}, **(shipped | changed))

        async with running(configure({})) as proxy:
            world = World(proxy, registry, configure)
            for path in BLOBS:
                await proxy.get(path)
                await world.settled()
            for step in steps:
                await world.live(step)
            for client in world.connections.values():
                client.leave()
            told = await world.told()
    await registry.stop()
    lines = [re.sub(r"^\S+ | seconds=\S+$", "", line) for line in text.getvalue().splitlines()]
    return {"seen": world.seen, "lines": lines, **told}


EXAMPLES = int(os.environ.get("PULLTHROUGH_MEMORY_EXAMPLES", "0"))


@settings(
    max_examples=EXAMPLES or 40, deadline=None, derandomize=not EXAMPLES, database=None,
    suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate, Phase.shrink],
)  # fmt: skip
@given(QUESTIONS, st.lists(EVENT, min_size=2, max_size=12))
def test_a_day_with_memory_and_without(questions: list[tuple[Any, ...]], events: list[tuple[Any, ...]]) -> None:
    """Nobody can tell them apart."""
    steps = questions * 2
    for event in events:
        steps += [event, *questions, *questions]
    without = asyncio.run(lived(steps, fast_path=False, memory=0))
    parsed = asyncio.run(lived(steps, fast_path=False))
    shipped = asyncio.run(lived(steps))
    for name, found in without.items():
        assert parsed[name] == found, f"parsed: {name}"
        assert shipped[name] == found, f"by bytes: {name}"
