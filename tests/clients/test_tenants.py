"""Two tenants and nobody, with private repositories that share a layer, on registries with a token server."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.containerd import containerd2
from tests.clients.images import Image, pushed
from tests.clients.layout import Layer, Layout
from tests.clients.process import run
from tests.clients.proxy_process import Proxy, cluster
from tests.clients.registries import REGISTRIES, Upstream
from tests.clients.token_server import TokenServer
from tests.clients.tools import Skopeo
from tests.clients.wire import Answer, ask

PASSWORDS = {"alice": "wonder-51a7", "bob": "builder-90c2", "pusher": "heaven-7be0"}
RIGHTS = {"alice/app": {"alice"}, "bob/app": {"bob"}, "open/app": {"", "alice", "bob"}}
MODES = {"transparent": "127.0.0.1", "metadata-only": "127.0.0.2"}


@dataclass
class Tenants:
    """What there is: a registry, its token server, what was pushed, and a proxy with a cluster for each mode."""

    upstream: Upstream
    tokens: TokenServer
    images: dict[str, Image]
    proxy: Proxy

    def header(self, user: str, repository: str) -> dict[str, str]:
        """What a client sends that has asked the token server; nothing for nobody."""
        return {"Authorization": f"Bearer {self.tokens.token(user, f'repository:{repository}:pull')}"} if user else {}

    def everything(self) -> Iterator[tuple[str, str, str]]:
        """Everybody, in every repository, with everything that is anywhere."""
        manifests = ["v1", *(image.digest for image in self.images.values())]
        blobs = sorted({blob for image in self.images.values() for blob in image.blobs})
        for user in ("alice", "bob", ""):
            for repository in RIGHTS:
                yield from ((user, repository, f"manifests/{reference}") for reference in manifests)
                yield from ((user, repository, f"blobs/{digest}") for digest in blobs)

    def hold(self, source: str) -> int:
        """Ask the proxy and the registry for everything, with the same tokens; gives how much was given."""
        given = 0
        for user, repository, rest in self.everything():
            path = f"/v2/{repository}/{rest}"
            headers = self.header(user, repository)
            # The proxy fetches nobody's token itself.
            theirs = headers or {"Authorization": f"Bearer {self.tokens.token('', f'repository:{repository}:pull')}"}
            for method in ("HEAD", "GET"):
                wanted = ask(self.upstream.port, path, method, headers=theirs)
                got = ask(self.proxy.port, path, method, headers=headers, source=source)
                assert _seen(got) == _seen(wanted), (user, repository, rest, method)
                given += wanted.status == 200
        return given


def _seen(answer: Answer) -> tuple[int, str | None]:
    """What of an answer is to be the registry's own: its status, and the bytes where they were given."""
    return answer.status, answer.digest if answer.status == 200 else None


@pytest.fixture(scope="module", params=list(REGISTRIES))
def tenants(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Tenants]:
    """Each of the two registries."""
    directory = scratch / f"tenants-{request.param}"
    with contextlib.ExitStack() as stack:
        tokens = TokenServer(directory / "tokens", PASSWORDS, RIGHTS)
        stack.callback(tokens.stop)
        upstream = Upstream(request.param, directory / "registry", auth=tokens.auth())
        stack.callback(upstream.stop)
        credentials = f"--dest-creds=pusher:{PASSWORDS['pusher']}"
        for number, repository in enumerate(RIGHTS, start=1):
            layout = Layout(directory / f"layout-{number}")
            layout.tag("v1", layout.image([Layer("shared", 200_000, 70), Layer("own", 50_000, 70 + number)]))
            upstream.push(layout.path, "v1", repository, credentials)
        headers = {
            repository: {"Authorization": f"Bearer {tokens.token('pusher', f'repository:{repository}:pull')}"}
            for repository in RIGHTS
        }
        images = {repository: pushed(upstream, repository, headers=headers[repository]) for repository in RIGHTS}
        clusters = [cluster(mode, mode, f"{source}/32") for mode, source in MODES.items()]
        login = {"name": "login", "match": {"hosts": ["localhost"]}, "login": True, "allow_plain_login": True}
        described = {"url": f"http://127.0.0.1:{upstream.port}", "default": True, "token_realms": [tokens.place]}
        proxy = Proxy(
            directory / "proxy", upstream, clusters=[login, *clusters], upstreams={"registry.test": described}
        )
        stack.callback(proxy.stop)
        yield Tenants(upstream, tokens, images, proxy)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Ends what a test has begun."""
    with contextlib.ExitStack() as begun:
        yield begun


def test_nobody_is_given_what_the_registry_refuses(tenants: Tenants) -> None:
    """Everybody gets from the proxy what the registry answers itself: cold, warm, in both modes, after rights moved."""
    for source in (*MODES.values(), *MODES.values()):
        assert tenants.hold(source) > 0
    tenants.tokens.rights["alice/app"] = {"bob"}
    try:
        for source in MODES.values():
            assert tenants.hold(source) > 0
    finally:
        tenants.tokens.rights["alice/app"] = set(RIGHTS["alice/app"])


def test_containerd_with_logins(tenants: Tenants, stack: contextlib.ExitStack) -> None:
    """Each pulls what is its own by the registry's own challenge, and is refused what is the other's, cached or not."""
    for user, mine, other in (("alice", "alice/app", "bob/app"), ("bob", "bob/app", "alice/app")):
        # Short, for the sake of its socket's path.
        node = stack.enter_context(tempfile.TemporaryDirectory(prefix="pt-", ignore_cleanup_errors=True))
        with containerd2(tenants.proxy, Path(node)) as client:
            client.user = f"{user}:{PASSWORDS[user]}"
            for repository in (mine, "open/app"):
                assert client.pull(repository, "v1") == tenants.images[repository].digest
            with pytest.raises(AssertionError, match=r"(?i)denied|unauthorized|authorization|401|403|scope"):
                client.pull(other, "v1")
            with pytest.raises(AssertionError):
                client.pull(other, tenants.images[other].digest)
            client.user = None
            with pytest.raises(AssertionError):
                client.pull(mine, tenants.images[mine].platform_digest)


def test_skopeo_with_logins(tenants: Tenants, tmp_path: Path) -> None:
    """By path, in a cluster that logs in: the proxy asks for user and password, and exchanges them for a token."""
    for user, mine, other in (("alice", "alice/app", "bob/app"), ("bob", "bob/app", "alice/app")):
        place = f"localhost:{tenants.proxy.port}"
        auths = tmp_path / f"{user}.json"
        run("skopeo", "login", "--tls-verify=false", "--authfile", auths, f"--username={user}",
            f"--password={PASSWORDS[user]}", place)  # fmt: skip
        assert place in json.loads(auths.read_text())["auths"]
        client = Skopeo(f"{place}/{tenants.proxy.registry}", tmp_path / user)
        client.authfile = auths
        (tmp_path / user).mkdir()
        for repository in (mine, "open/app"):
            assert client.pull(repository, "v1") == tenants.images[repository].digest
        with pytest.raises(AssertionError, match=r"(?i)unauthorized|denied|authentication"):
            client.pull(other, "v1")


def test_no_secret_is_left_behind(tenants: Tenants) -> None:
    """Neither in the log nor in the cache directory."""
    files = [file.read_bytes() for file in tenants.proxy.cache.rglob("*") if file.is_file()]
    for password in PASSWORDS.values():
        assert password not in tenants.proxy.log()
        assert not any(password.encode() in content for content in files)
