"""Tokens of a registry that issues them under its own name: asked for through the proxy, which keeps none of it."""

import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from proxy.settings import Settings
from proxy.telemetry.events import RequestFinished
from tests.fakes.content import digest_of, make_image
from tests.fakes.nodes import NAME, Node, Signer, login, real_clock
from tests.fakes.proxy import Proxy, make_settings, running
from tests.fakes.registry import FakeRegistry

IMAGE = make_image(3000, seed=97)
SECRET = "/v2/team/secret/manifests/v1"
SCOPE = "repository:team/secret:pull"

MakeSettings = Callable[..., Settings]


@pytest.fixture
def trust(signer: Signer) -> ssl.SSLContext:
    """What nodes go by."""
    return signer.trust()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry's name leads to this machine, for the proxy."""
    real = socket.getaddrinfo

    def look_up(host: Any, *rest: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host == NAME else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.fixture
def itself(registry: FakeRegistry, names: None) -> FakeRegistry:
    """The registry gives tokens under its own name; alice may read `team/secret`."""
    registry.private = {"team/app": {"", "alice"}, "team/secret": {"alice"}}
    registry.passwords = {"alice": "wonder"}
    registry.realm = f"http://{named(registry)}/token"
    for repository in registry.private:
        registry.push(repository, "v1", IMAGE)
    return registry


@pytest.fixture
def realms(settings: MakeSettings, signer: Signer, itself: FakeRegistry) -> MakeSettings:
    """Settings with a listener in its name, by which its realm is trusted."""

    def make(**more: Any) -> Settings:
        return settings({"token_realms": [named(itself)]}, **({"listen": [signer.listener()]} | more))

    return make


@pytest.fixture
async def by_name(realms: MakeSettings) -> AsyncIterator[Proxy]:
    """A proxy with these."""
    async with running(realms(), real_clock()) as proxy:
        yield proxy


@pytest.fixture
async def node(by_name: Proxy, trust: ssl.SSLContext) -> AsyncIterator[Node]:
    """One that means the registry."""
    connected = await Node.by_name(by_name, trust)
    yield connected
    connected.leave()


def named(registry: FakeRegistry) -> str:
    """Its own name, with the port that it has here."""
    return f"{NAME}:{registry.url.rpartition(':')[2]}"


Form = list[tuple[dict[str, str], bytes]]


@pytest.fixture
def forms(itself: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Form]:
    """What is posted to its realm, which answers with a body of its own, and with headers that are to be kept out."""
    posted: Form = []
    answer = itself.answer

    async def answered(request: web.BaseRequest) -> web.StreamResponse:
        if request.method != "POST":
            return await answer(request)
        headers = {name.title(): value for name, value in request.headers.items()}
        posted.append((headers, await request.read()))
        body = {"access_token": "token-posted", "odd": [1]}
        return web.json_response(body, status=202, headers={"Set-Cookie": "a=b", "Cache-Control": "no-store"})

    monkeypatch.setattr(itself, "answer", answered)
    yield posted


async def test_the_whole_way(by_name: Proxy, itself: FakeRegistry, trust: ssl.SSLContext, node: Node) -> None:
    """As Docker does it: ping, token where it says, pull with that; who has none does not get what is here then."""
    assert await node.ask("/v2/") == 401
    assert f'realm="http://{named(itself)}/token"' in node.headers["www-authenticate"]
    assert await node.ask(f"/token?service=fake&scope={SCOPE}", Authorization=login()) == 200
    token = json.loads(node.body)["token"]
    paths = [SECRET, *(f"/v2/team/secret/blobs/{digest_of(blob)}" for blob in IMAGE.blobs)]
    for path in paths:
        assert await node.ask(path, Authorization=f"Bearer {token}") == 200
    other = await Node.by_name(by_name, trust)
    for path in paths:
        assert await other.ask(path) == 401
    other.leave()


async def test_it_is_passed_on_by_get(itself: FakeRegistry, node: Node) -> None:
    """Query and Authorization as they came, to the byte, and what is no token server's business is not; what comes
    back is the registry's own, be it a token or not."""
    query = f"service=fake&scope={quote(SCOPE, safe='')}&account=a%2Bb+c&client_id="
    headers = {"Authorization": login(), "Cookie": "c=d", "X_Forwarded_For": "10.0.0.1", "User_Agent": "docker/99"}
    assert await node.ask(f"/token?{query}", **headers) == 200
    asked = itself.seen[-1]
    assert (asked.method, asked.path, asked.query) == ("GET", "/token", query)
    assert asked.headers["Authorization"] == login()
    assert asked.headers["User-Agent"] == "docker/99"
    assert not {"Cookie", "X-Forwarded-For"} & set(asked.headers)
    assert json.loads(node.body) == {"token": "token-1-alice", "expires_in": 300}
    assert node.headers["content-type"].startswith("application/json")
    assert await node.ask(f"/token?scope={SCOPE}", Authorization=login(password="guess")) == 401
    assert b"the upstream's own words" in node.body
    assert itself.count("GET", "/token") == 2


async def test_it_does_not_say_what_the_proxy_is_made_of(itself: FakeRegistry, node: Node) -> None:
    """As no other answer does."""
    assert await node.ask(f"/token?scope={SCOPE}") == 200
    assert "aiohttp" not in node.headers["server"]


@pytest.mark.parametrize(("path", "own"), [("/v2/auth", ""), ("/token", "tenant=1")])
async def test_realms_may_look_otherwise(itself: FakeRegistry, node: Node, path: str, own: str) -> None:
    """Below /v2/ as quay.io's, or with a query of their own, before that of the client."""
    itself.realm = f"http://{named(itself)}{path}" + f"?{own}" * bool(own)
    itself.fault = lambda request: itself._token(request) if request.rel_url.path == path else None
    assert await node.ask(f"{path}?scope={SCOPE}", Authorization=login()) == 200
    assert json.loads(node.body)["token"] == "token-1-alice"
    assert itself.seen[-1].query == f"{own}&scope={SCOPE}".lstrip("&")


async def test_tokens_are_not_kept(itself: FakeRegistry, node: Node) -> None:
    """Each request is asked anew; the registry's ping is not."""
    for number in range(1, 4):
        assert await node.ask(f"/token?scope={SCOPE}") == 200
        assert json.loads(node.body)["token"] == f"token-{number}-anonymous"
    assert itself.count("GET", "/token") == 3
    assert itself.count("GET", "/v2/") == 1


async def test_it_is_passed_on_by_post(itself: FakeRegistry, node: Node, forms: Form) -> None:
    """The form as it came, and the answer's status and body; of the answer's headers those that say what it is."""
    form = b"grant_type=refresh_token&refresh_token=a%2Bb&service=fake&scope=repository%3Ateam%2Fsecret%3Apull"
    kind = "application/x-www-form-urlencoded"
    assert await node.ask("/token?a=b", "POST", form, Content_Type=kind, Authorization="Bearer x") == 202
    ((headers, body),) = forms
    assert body == form
    assert (headers["Content-Type"], headers["Authorization"]) == (kind, "Bearer x")
    assert (itself.seen[-1].path, itself.seen[-1].query) == ("/token", "a=b")
    assert json.loads(node.body) == {"access_token": "token-posted", "odd": [1]}
    assert node.headers["cache-control"] == "no-store"
    assert "set-cookie" not in node.headers


async def test_forms_that_are_too_long(by_name: Proxy, trust: ssl.SSLContext, forms: Form) -> None:
    """Or do not say how long they are: 413, and nothing of them reaches the registry. 64 KiB are not too long."""
    for body, length, status in (
        (b"a" * 65536, "Content-Length: 65536", 202), (b"a" * 65537, "Content-Length: 65537", 413),
        (b"1\r\na\r\n0\r\n\r\n", "Transfer-Encoding: chunked", 413),
    ):  # fmt: skip
        node = await Node.by_name(by_name, trust)
        await node.send(f"POST /token HTTP/1.1\r\nHost: {NAME}\r\n{length}\r\n\r\n".encode() + body)
        assert await node.answer() == status
        assert status == 202 or node.code == "SIZE_INVALID"
        node.leave()
    assert [len(body) for _, body in forms] == [65536]
    assert await by_name.metric('pullthrough_client_refusals_total{reason="body-size"}') == 2


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD"])
async def test_other_methods(itself: FakeRegistry, node: Node, method: str) -> None:
    """405 with what is allowed."""
    assert await node.ask("/token", method) == 405
    assert node.headers["allow"] == "GET, POST"
    assert itself.count(method, "/token") == 0


@pytest.mark.parametrize("path", ["/", "/token/", "/tokens", "/TOKEN", "/token%2F", "//token", "/x/token"])
async def test_what_is_not_the_realm(itself: FakeRegistry, node: Node, path: str) -> None:
    """404 as anywhere, and the registry is not asked for it."""
    assert await node.ask(path, Authorization=login()) == 404
    assert {(seen.path, "Authorization" in seen.headers) for seen in itself.seen} <= {("/v2/", False)}


async def test_a_realm_elsewhere(
    settings: MakeSettings, signer: Signer, itself: FakeRegistry, other: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """Is nothing that is asked for here, whether it is trusted or not, though its path is the same."""
    itself.realm = f"{other.url}/token"
    for named_ones in ([], [other.url.removeprefix("http://")]):
        configured = settings({"token_realms": named_ones}, listen=[signer.listener()])
        async with running(configured, real_clock()) as proxy:
            node = await Node.by_name(proxy, trust)
            assert await node.ask("/token", Authorization=login()) == 404
            node.leave()
    assert not other.seen
    assert itself.count("GET", "/token") == 0


@pytest.mark.parametrize("port", [22, 6379])
async def test_a_realm_where_nothing_may_be_asked(
    settings: MakeSettings, signer: Signer, itself: FakeRegistry, trust: ssl.SSLContext, port: int
) -> None:
    """A port that is not the web's is not dialled, whoever names it: 502."""
    itself.realm = f"http://{NAME}:{port}/token"
    configured = settings({"token_realms": [f"{NAME}:{port}"]}, listen=[signer.listener()])
    async with running(configured, real_clock()) as proxy:
        node = await Node.by_name(proxy, trust)
        assert await node.ask("/token", Authorization=login()) == 502
        node.leave()
        name = "pullthrough_upstream_requests_total{kind="
        assert (await proxy.metric(f'{name}"ping"'), await proxy.metric(f'{name}"other"')) == (1, 0)


async def test_its_own_name_without_a_word_of_the_operators(
    settings: MakeSettings, signer: Signer, itself: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """Where the upstream has another address, `token_realms` has to name it: 404 otherwise."""
    async with running(settings(listen=[signer.listener()]), real_clock()) as proxy:
        node = await Node.by_name(proxy, trust)
        assert await node.ask("/token", Authorization=login()) == 404
        node.leave()
    assert itself.count("GET", "/token") == 0


async def test_a_registry_that_is_away(by_name: Proxy, itself: FakeRegistry, node: Node) -> None:
    """502 in words of our own; where it was never there nobody knows its realm, and that is 404."""
    assert await node.ask("/v2/") == 401
    await itself.stop()
    assert await node.ask(f"/token?scope={SCOPE}", Authorization=login()) == 502
    assert node.code == "UNAVAILABLE"


async def test_what_its_cluster_may_not_have(
    tmp_path: Path, signer: Signer, itself: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """It cannot be used to log in there either."""
    upstreams: dict[str, dict[str, Any]] = {
        NAME: {"url": itself.url, "token_realms": [named(itself)]},
        "other.test": {"url": "http://127.0.0.1:1"},
    }
    clusters = [{"name": "few", "upstreams": ["other.test"]}]
    configured = make_settings(tmp_path / "cache", upstreams, listen=[signer.listener()], clusters=clusters)
    async with running(configured, real_clock()) as proxy:
        node = await Node.by_name(proxy, trust)
        assert await node.ask("/token", Authorization=login()) == 404
        assert await node.ask("/v2/", Authorization=login()) == 200
        node.leave()
    assert not itself.seen


async def test_nothing_of_it_is_logged(
    by_name: Proxy, itself: FakeRegistry, node: Node, forms: Form, caplog: pytest.LogCaptureFixture,
    finished: list[RequestFinished], tmp_path: Path,
) -> None:  # fmt: skip
    """Neither passwords nor tokens, be they sent or given, at level debug, whether the registry answers or not; and
    nothing of it lies on the disk."""
    caplog.set_level("DEBUG")
    basic = login(password="hidden-1")
    secrets = ["hidden", basic.removeprefix("Basic "), "wonder", login().removeprefix("Basic "), "token-1", "token-p"]
    for _ in range(2):
        await node.ask("/v2/", Authorization=basic)
        await node.ask("/v2/", Authorization="Bearer hidden-2")
        await node.ask(f"/token?scope={SCOPE}&password=hidden-3", Authorization=login())
        await node.ask("/token", "POST", b"refresh_token=hidden-4", Authorization=basic)
        await node.ask("/v2/hidden-5/odd", Authorization=basic)
        await itself.stop()
    written = caplog.text + repr(finished)
    files = [file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert len(finished) == 10
    for secret in secrets:
        assert secret not in written
        assert not any(secret.encode() in content for content in files)
