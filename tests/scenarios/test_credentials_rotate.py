"""The proxy's own credentials change while it runs: in files, from helpers and plugins, in time and too late."""

import asyncio
import base64
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image
from tests.fakes.plugin import FakePlugin
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry

IMAGES = {f"v{number}": make_image(50, seed=40 + number) for number in range(8)}
OLD, NEW = "geheim-1a2b", "geheim-3c4d"


@pytest.fixture
def shut(registry: FakeRegistry) -> FakeRegistry:
    """A private repository with many tags, so that each pull has something new to ask for."""
    registry.private, registry.passwords = {"team/app": {"robot"}}, {"robot": OLD}
    for tag, image in IMAGES.items():
        registry.push("team/app", tag, image)
    return registry


def sent(registry: FakeRegistry, part: str) -> list[str]:
    """The passwords that came with requests for `part`."""
    headers = [seen.headers.get("Authorization", "") for seen in registry.seen if part in seen.path]
    basics = [header.removeprefix("Basic ") for header in headers if header.startswith("Basic ")]
    return [base64.b64decode(basic).decode().partition(":")[2] for basic in basics]


def answered_by(code: int) -> Callable[[FakeRegistry], None]:
    """Lets a registry refuse what is over with `code`: ECR answers 403, without a challenge."""

    def prepare(registry: FakeRegistry) -> None:
        registry.basic = True

        def fault(request: web.BaseRequest) -> web.Response | None:
            header = request.headers.get("Authorization", "")
            if code == 401 or not header or registry._refusal(request, "team/app") is None:
                return None
            return web.Response(status=code)

        registry.fault = fault

    return prepare


class Pulls:
    """Pulls one tag after the other: each is a request to the upstream."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._tags = iter(IMAGES)

    async def next(self) -> int:
        """The next tag's status."""
        tag = next(self._tags)
        answer = await self._proxy.get(f"/v2/team/app/manifests/{tag}")
        assert answer.status != 200 or answer.body == IMAGES[tag].manifest
        return answer.status


def own(settings: Callable[..., Settings], **credentials: Any) -> Settings:
    return settings({"credentials": credentials}, clusters=[{"name": "default", "credentials": True}])


def mount(folder: Path, version: int, password: str) -> Path:
    """As kubelet mounts a secret, and swaps it for the next version."""
    (folder / f"..{version}").mkdir(parents=True)
    (folder / f"..{version}" / "password").write_text(password)
    (folder / "..next").symlink_to(f"..{version}")
    os.replace(folder / "..next", folder / "..data")
    if not (folder / "password").is_symlink():
        (folder / "password").symlink_to("..data/password")
    return folder / "password"


async def test_a_mounted_secret_that_is_swapped(
    settings: Callable[..., Settings], shut: FakeRegistry, tmp_path: Path
) -> None:
    """The next request goes by the new one: a token that the old one bought is not used any more, good or not."""
    file = mount(tmp_path / "secret", 1, OLD)
    async with running(own(settings, username="robot", password_file=str(file))) as proxy:
        pulls = Pulls(proxy)
        assert [await pulls.next(), await pulls.next()] == [200, 200]
        assert sent(shut, "/token") == [OLD]
        before = shut.seen[-1].headers["Authorization"]
        mount(tmp_path / "secret", 2, NEW)
        shut.passwords = {"robot": NEW}
        assert [await pulls.next(), await pulls.next()] == [200, 200]
    assert sent(shut, "/token") == [OLD, NEW]
    assert shut.seen[-1].headers["Authorization"] != before


async def test_many_requests_find_a_new_credential_at_once(
    settings: Callable[..., Settings], shut: FakeRegistry, tmp_path: Path
) -> None:
    """One token is bought with it."""
    file = mount(tmp_path / "secret", 1, OLD)
    async with running(own(settings, username="robot", password_file=str(file))) as proxy:
        pulls = Pulls(proxy)
        assert await pulls.next() == 200
        mount(tmp_path / "secret", 2, NEW)
        shut.passwords = {"robot": NEW}
        assert await asyncio.gather(*(pulls.next() for _ in range(5))) == [200] * 5
    assert sent(shut, "/token") == [OLD, NEW]


async def test_a_secret_that_vanishes(
    settings: Callable[..., Settings], shut: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pulls go on with what it was, tokens are bought with it too; one line says so, and not what it was."""
    file = mount(tmp_path / "secret", 1, OLD)
    caplog.set_level(logging.DEBUG)
    async with running(own(settings, username="robot", password_file=str(file))) as proxy:
        pulls = Pulls(proxy)
        assert await pulls.next() == 200
        (tmp_path / "secret" / "..data").unlink()
        for _ in range(3):
            assert await pulls.next() == 200
            proxy.clock.advance(301)
    assert sent(shut, "/token") == [OLD] * 3
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line == f"registry.test: {file} cannot be read; going on with the credential from before"
    assert OLD not in caplog.text


async def test_a_secret_that_was_never_there(
    settings: Callable[..., Settings], shut: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """502 and one line, until it is there; what is public about the registry is none of its business."""
    async with running(own(settings, username="robot", password_file=str(tmp_path / "password"))) as proxy:
        pulls = Pulls(proxy)
        assert [await pulls.next(), await pulls.next()] == [502, 502]
        assert [line for line in caplog.messages if "cannot be read" in line] == [
            f"{tmp_path / 'password'} cannot be read (5xx, failure 1 of principal/registry.test/{key(caplog)})"
        ]
        (tmp_path / "password").write_text(OLD)
        assert await pulls.next() == 200


def key(caplog: pytest.LogCaptureFixture) -> str:
    """The principal's key in the first line that names one."""
    return caplog.messages[0].rpartition("/")[2].rstrip(")")


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("way", ["password", "helper", "plugin"])
async def test_basic_that_is_over(
    settings: Callable[..., Settings], shut: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    way: str, code: int,
) -> None:  # fmt: skip
    """As ECR's tokens end: the first refusal has the credential looked for again, and no client notices."""
    answered_by(code)(shut)
    write = writer(tmp_path, monkeypatch)
    write(OLD)
    ways: dict[str, dict[str, Any]] = {
        "password": {"username": "robot", "password_file": str(tmp_path / "password")},
        "helper": {"helper": "fake"},
        "plugin": {"plugin": {"command": str(tmp_path / "plugin" / "plugin")}},
    }
    async with running(own(settings, **ways[way])) as proxy:
        pulls = Pulls(proxy)
        assert [await pulls.next(), await pulls.next()] == [200, 200]
        proxy.clock.advance(11)
        shut.seen.clear()
        write(NEW)
        shut.passwords = {"robot": NEW}
        assert [await pulls.next(), await pulls.next()] == [200, 200]
    # A file is seen to have changed; whoever has to be asked is asked when the upstream refuses.
    assert sent(shut, "/v2/") == ([NEW, NEW] if way == "password" else [OLD, NEW, NEW])


def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes a password to where a file, a helper and a plugin have it from."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    helper, plugin = tmp_path / "docker-credential-fake", FakePlugin(tmp_path / "plugin")

    def write(password: str) -> None:
        (tmp_path / "password").write_text(password)
        answer = json.dumps({"Username": "robot", "Secret": password})
        helper.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\necho '{answer}'\n")
        helper.chmod(0o755)
        plugin.answers({"registry.test": {"username": "robot", "password": password}}, duration="12h")

    return write


async def test_a_denial_of_rights_is_no_end_of_a_password(
    settings: Callable[..., Settings], shut: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """What the account may not read is 403, time and again: the helper is not run for each, and nothing is logged."""
    answered_by(403)(shut)
    writer(tmp_path, monkeypatch)(OLD)
    async with running(own(settings, helper="fake")) as proxy:
        assert await Pulls(proxy).next() == 200
        assert shut.private is not None
        shut.private["team/app"] = set()
        caplog.clear()
        for number in range(20):
            assert (await proxy.get(f"/v2/team/app/manifests/other{number}")).status == 403
    assert (tmp_path / "runs").read_text() == "run\n"
    assert caplog.messages == []


async def test_a_token_server_that_refuses(
    settings: Callable[..., Settings], shut: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The credential is looked for again once; where it is the same the client is refused, and one line says why."""
    write = writer(tmp_path, monkeypatch)
    write(OLD)
    async with running(own(settings, helper="fake")) as proxy:
        pulls = Pulls(proxy)
        assert await pulls.next() == 200
        shut.passwords = {"robot": NEW}
        shut.revoke_tokens()
        proxy.clock.advance(11)
        assert [await pulls.next(), await pulls.next()] == [401, 401]
        assert (tmp_path / "runs").read_text() == "run\n" * 2
        lines = [line for line in caplog.messages if "own credential" in line]
        assert lines == ["registry.test does not take the proxy's own credential for team/app"]
        write(NEW)
        proxy.clock.advance(11)
        assert [await pulls.next(), await pulls.next()] == [200, 200]
    assert sent(shut, "/token") == [OLD] * 3 + [NEW]
    assert OLD not in caplog.text


async def test_a_plugin_for_single_images(
    settings: Callable[..., Settings], shut: FakeRegistry, tmp_path: Path
) -> None:
    """Each repository is asked for with what the plugin has for it, what it has nothing for as nobody."""
    shut.private = {"team/app": {"robot"}, "other/app": {"other"}, "open/app": {""}}
    shut.passwords |= {"other": NEW}
    for repository in ("other/app", "open/app"):
        shut.push(repository, "v0", IMAGES["v0"])
    plugin = FakePlugin(tmp_path / "plugin")
    plugin.answers(
        {
            "registry.test/team": {"username": "robot", "password": OLD},
            "registry.test/other": {"username": "other", "password": NEW},
        },
        "Image",
    )
    settings_of = own(settings, plugin={"command": str(plugin.command), "match_images": ["registry.test"]})
    async with running(settings_of) as proxy:
        for _ in range(2):
            for repository in ("team/app", "other/app", "open/app"):
                answer = await proxy.get(f"/v2/{repository}/manifests/v0")
                assert (answer.status, answer.body) == (200, IMAGES["v0"].manifest)
                blob = IMAGES["v0"].blobs[0]
                assert (await proxy.get(f"/v2/{repository}/blobs/{digest_of(blob)}")).body == blob
    assert plugin.images == [f"registry.test/{repository}" for repository in ("team/app", "other/app", "open/app")]
    assert sent(shut, "/token") == [OLD, NEW]
    assert shut.count("GET", "/token") == 3


async def test_a_plugin_that_is_not_meant_for_an_image(
    settings: Callable[..., Settings], shut: FakeRegistry, tmp_path: Path
) -> None:
    """What it said of the whole registry is not for that image: one token is bought, as nobody, and counts on."""
    shut.private = {"team/app": {"robot"}, "open/app": {""}}
    for tag, image in IMAGES.items():
        shut.push("open/app", tag, image)
    plugin = FakePlugin(tmp_path / "plugin")
    plugin.answers({"registry.test": {"username": "robot", "password": OLD}}, "Registry")
    settings_of = own(settings, plugin={"command": str(plugin.command), "match_images": ["registry.test/team"]})
    async with running(settings_of) as proxy:
        assert await Pulls(proxy).next() == 200
        for tag in IMAGES:
            assert (await proxy.get(f"/v2/open/app/manifests/{tag}")).status == 200
    assert plugin.images == ["registry.test/team/app"]
    assert sent(shut, "/token") == [OLD]
    assert shut.count("GET", "/token") == 2


async def test_a_slow_plugin_stops_nobody_else(
    settings: Callable[..., Settings], shut: FakeRegistry, tmp_path: Path
) -> None:
    """Who needs it waits, all for one run; others are served meanwhile."""
    gate, plugin = tmp_path / "gate", FakePlugin(tmp_path / "plugin")
    plugin.answers({"registry.test": {"username": "robot", "password": OLD}})
    script = plugin.command.read_text()
    os.mkfifo(gate)
    plugin.command.write_text(script.replace("\ncat answer", f"\ncat {gate}\ncat answer"))
    shut.private = {"team/app": {"robot"}, "open/app": {""}}
    shut.push("open/app", "v0", IMAGES["v0"])
    clusters = [{"name": "open", "match": {"hosts": ["open.test"]}}, {"name": "default", "credentials": True}]
    upstream = {"credentials": {"plugin": {"command": str(plugin.command)}}}
    async with running(settings(upstream, clusters=clusters)) as proxy:
        pulls = Pulls(proxy)
        waiting = [asyncio.create_task(pulls.next()) for _ in range(5)]
        async with asyncio.timeout(10):
            while not plugin.asked:
                await asyncio.sleep(0)
        assert (await proxy.get("/v2/open/app/manifests/v0", Host="open.test")).status == 200
        assert not any(task.done() for task in waiting)
        await asyncio.to_thread(gate.write_text, "")
        assert await asyncio.gather(*waiting) == [200] * 5
    assert len(plugin.asked) == 1
