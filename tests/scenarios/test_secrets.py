"""What clients, operators and token servers entrust the proxy with is seen by the upstream and its realm alone."""

import base64
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.settings import Settings
from proxy.telemetry.logs import flush_logging, setup_logging
from tests.fakes.content import digest_of, make_image
from tests.fakes.plugin import FakePlugin
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry, FakeStorage

IMAGE = make_image(5000, seed=21)
PASSWORDS = {"alice": "wonder-7f3a91", "robot": "builder-c04d52"}
BLOBS = [f"blobs/{digest_of(blob)}" for blob in IMAGE.blobs]
PATHS = ["manifests/v1", f"manifests/{IMAGE.digest}", "tags/list", *BLOBS]


@pytest.fixture
def all_logs(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Everything that is logged at level debug, access lines included."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    setup_logging("debug", "json", True)

    def logged() -> str:
        flush_logging()
        return "".join(capsys.readouterr())

    yield logged
    root.handlers[:] = handlers
    root.setLevel(level)


def stored_in(directory: Path) -> Iterator[bytes]:
    """Every file as it is, and every value of every database, inflated where it was deflated."""
    for file in directory.rglob("*"):
        if not file.is_file():
            continue
        yield file.read_bytes()
        if file.suffix == ".db":
            with sqlite3.connect(file) as database:
                tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
                rows = [row for table in tables for row in database.execute(f'SELECT * FROM "{table}"')]
            database.close()
            for value in (value for row in rows for value in row if isinstance(value, bytes | str)):
                raw = value if isinstance(value, bytes) else value.encode()
                yield raw
                try:
                    yield zlib.decompress(raw)
                except zlib.error:
                    continue


def secrets(registry: FakeRegistry) -> list[str]:
    """All there are: passwords, as Basic too, every token that was given, and the signatures of addresses."""
    basics = [base64.b64encode(f"{user}:{password}".encode()).decode() for user, password in PASSWORDS.items()]
    return [*PASSWORDS.values(), *basics, *registry._tokens, "X-Signature"]


async def everything(proxy: Proxy, registry: FakeRegistry) -> None:
    """Pull and push in every way in which a credential can go, and in ways that fail."""
    alice = "Basic " + base64.b64encode(f"alice:{PASSWORDS['alice']}".encode()).decode()
    wrong = "Basic " + base64.b64encode(f"robot:{PASSWORDS['alice']}".encode()).decode()
    for header in (alice, wrong, f"Bearer {registry.token('alice', 'team/secret')}", ""):
        sent = {"Authorization": header} if header else {}
        for prefix in ("", "registry.test/"):
            repository = f"/v2/{prefix}team/secret"
            # Of the second tag only those who have no credential know, so it is the proxy's to fetch.
            for path in PATHS if header else ["manifests/second", *PATHS]:
                await proxy.get(f"{repository}/{path}", **sent)
            for method, path in (("POST", "blobs/uploads/"), ("PUT", "manifests/v2"), ("DELETE", "manifests/v2")):
                async with proxy.session.request(method, f"{proxy.url}{repository}/{path}", headers=sent) as answer:
                    assert answer.status in {401, 404, 502}


@pytest.mark.parametrize("mode", ["transparent", "metadata-only"])
@pytest.mark.parametrize("credentials", [True, "public"])
async def test_secrets_stay_where_they_belong(
    settings: Callable[..., Settings], registry: FakeRegistry, storage: FakeStorage, tmp_path: Path,
    all_logs: Callable[[], str], mode: str, credentials: bool | str,
) -> None:  # fmt: skip
    """Not at the host of a redirect, in logs, in metrics or in the cache directory, whatever fails meanwhile."""
    readers = {"alice", "robot"} | ({""} if credentials == "public" else set())
    registry.storage, registry.private, registry.passwords = storage, {"team/secret": readers}, PASSWORDS
    registry.push("team/secret", "v1", IMAGE)
    registry.push("team/secret", "second", make_image(9, seed=22))
    plugin = FakePlugin(tmp_path / "plugin")
    plugin.answers({"registry.test": {"username": "robot", "password": PASSWORDS["robot"]}}, duration="1m")
    (tmp_path / "password").write_text(PASSWORDS["robot"])
    upstream: dict[str, Any] = {"username": "robot", "password_file": str(tmp_path / "password")}
    if credentials == "public":
        upstream = {"plugin": {"command": str(plugin.command), "env": {"SECRET": PASSWORDS["robot"]}}}
    cluster = {
        "name": "default", "mode": mode, "push": "forward",
        "credentials": credentials, "login": True, "allow_plain_login": True,
    }  # fmt: skip
    async with running(settings({"credentials": upstream}, clusters=[cluster])) as proxy:
        await everything(proxy, registry)
        assert any("pull,push" in request.query for request in registry.seen)
        given = dict(registry._tokens)
        registry.revoke_tokens()
        plugin.says(PASSWORDS["robot"], exit_code=1)
        (tmp_path / "password").unlink()
        storage.expire()
        proxy.clock.advance(301)
        await everything(proxy, registry)
        async with proxy.session.get(proxy.admin_url + "/metrics") as page:
            metrics = await page.text()
        await registry.stop()
        proxy.clock.advance(301)
        await everything(proxy, registry)
        registry._tokens |= given
        seen = [metrics, all_logs(), *(str(dict(request.headers)) for request in storage.seen)]
    assert any(request.headers.get("Authorization", "").endswith("-robot") for request in registry.seen)
    assert bool(storage.seen) is (mode == "transparent")
    assert not any("Authorization" in request.headers for request in storage.seen)
    stored = b"\n".join(stored_in(tmp_path / "cache"))
    assert digest_of(IMAGE.blobs[0]).encode() in stored
    for secret in secrets(registry):
        assert not any(secret in text for text in seen), secret
        assert secret.encode() not in stored, secret


@pytest.mark.parametrize("kind", ["client", "own"])
async def test_a_foreign_realm_is_sent_nothing(
    settings: Callable[..., Settings], registry: FakeRegistry, storage: FakeStorage, tmp_path: Path, kind: str
) -> None:
    """A realm that the registry chose on another host is asked by nobody, and no client is sent there either."""
    registry.private, registry.passwords = {"team/secret": {"alice", "robot"}}, PASSWORDS
    registry.realm = f"{storage.url}/token"
    registry.push("team/secret", "v1", IMAGE)
    (tmp_path / "password").write_text(PASSWORDS["robot"])
    upstream = {"credentials": {"username": "robot", "password_file": str(tmp_path / "password")}}
    cluster = {"name": "default", "credentials": kind == "own", "login": True, "allow_plain_login": True}
    header = "Basic " + base64.b64encode(f"alice:{PASSWORDS['alice']}".encode()).decode()
    async with running(settings(upstream, clusters=[cluster])) as proxy:
        for path in PATHS:
            headers = {"Authorization": header} if kind == "client" else {}
            answer = await proxy.get(f"/v2/team/secret/{path}", **headers)
            assert answer.status == 502
            assert storage.url not in str(answer.headers)
    assert storage.seen == []
