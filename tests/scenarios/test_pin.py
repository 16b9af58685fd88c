"""`pullthrough pin` at work: straight from registries and through a proxy, and what it costs them."""

import asyncio
import base64
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from proxy.cli import main
from tests.fakes.content import make_image, make_index
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.scenarios.conftest import MakeSettings

IMAGE, OTHER = make_image(10, seed=1), make_image(10, seed=2)
INDEX = make_index(IMAGE, OTHER)


async def pin(*arguments: object, stdin: bytes | None = None, home: Path = Path("/nonexistent")) -> Result:
    """The command of the user at `home`, in a thread as the servers run in this one."""
    words = ["pin", *map(str, arguments)]
    environment = {"DOCKER_CONFIG": None, "HOME": str(home)}
    return await asyncio.to_thread(CliRunner().invoke, main, words, stdin, environment)


def pods(*images: str) -> str:
    listed = "".join(f"    - image: {image}  # here\n" for image in images)
    return f"apiVersion: v1\nkind: Pod\nspec:\n  containers:\n{listed}"


@pytest.fixture
def name(registry: FakeRegistry) -> str:
    """The registry, as images name it."""
    return registry.url.removeprefix("http://")


def write(file: Path, *images: str) -> Path:
    file.write_text(pods(*images))
    return file


async def test_each_tag_is_asked_for_once_by_head(registry: FakeRegistry, name: str, tmp_path: Path) -> None:
    """However often it stands in however many files; digests of indexes are those of all platforms. Again: nothing."""
    registry.push("team/app", "v1", INDEX)
    registry.push("team/app", "latest", IMAGE)
    first = write(tmp_path / "a.yaml", f"{name}/team/app:v1", f"{name}/team/app", f"{name}/team/app:v1")
    second = write(tmp_path / "b.yml", f"'{name}/team/app:latest'", f"{name}/team/app:v1")
    result = await pin(tmp_path)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr == f"{first}: 3 images pinned\n{second}: 2 images pinned\n"
    v1, latest = f"{name}/team/app:v1@{INDEX.digest}", f"{name}/team/app:latest@{IMAGE.digest}"
    assert first.read_text() == pods(v1, latest, v1)
    assert second.read_text() == pods(f"'{latest}'", v1)
    paths = sorted((seen.method, seen.path) for seen in registry.seen)
    assert paths == [("HEAD", f"/v2/team/app/manifests/{tag}") for tag in ("latest", "v1")]
    assert "application/vnd.oci.image.index.v1+json" in registry.seen[0].headers["Accept"]
    again = await pin(tmp_path)
    assert (again.exit_code, again.output, len(registry.seen)) == (0, "", 2)
    assert (await pin("--check", tmp_path)).exit_code == 0


async def test_through_a_proxy(proxy: Proxy, registry: FakeRegistry, tmp_path: Path) -> None:
    """It is told the registry; the upstream is asked once for what the proxy did not know, and then not at all."""
    registry.push("team/app", "v1", INDEX)
    file = write(tmp_path / "a.yaml", "registry.test/team/app:v1", "registry.test/team/app:v1")
    shown = await pin("--proxy", proxy.url, "--diff", file)
    assert shown.exit_code == 0
    assert shown.stdout.count(f"+    - image: registry.test/team/app:v1@{INDEX.digest}  # here\n") == 2
    assert file.read_text() == pods("registry.test/team/app:v1", "registry.test/team/app:v1")
    assert (await pin("--proxy", f"{proxy.url}/", file)).exit_code == 0
    pinned = f"registry.test/team/app:v1@{INDEX.digest}"
    assert file.read_text() == pods(pinned, pinned)
    assert [seen.method for seen in registry.seen] == ["HEAD"]


async def test_a_registry_that_the_proxy_does_not_have(proxy: Proxy, registry: FakeRegistry, tmp_path: Path) -> None:
    """Said with the image's place; the default registry is docker.io to the proxy too, and nobody else is asked."""
    file = write(tmp_path / "a.yaml", "nginx:1.25")
    result = await pin("--proxy", proxy.url, file)
    assert result.exit_code == 1
    assert f"{file}:5: nginx:1.25 cannot be pinned: " in result.stderr
    assert "404 for manifest library/nginx" in result.stderr
    assert registry.seen == []


async def test_the_proxys_warnings_are_passed_on(proxy: Proxy, registry: FakeRegistry, tmp_path: Path) -> None:
    """A tag that is stale in an outage, or known to have moved, is pinned as the proxy has it, and that is said."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get("/v2/team/app/manifests/v1")
    registry.push("team/app", "v1", OTHER)
    proxy.clock.advance(301)
    await proxy.get("/v2/team/app/manifests/v1")
    file = write(tmp_path / "a.yaml", "registry.test/team/app:v1")
    moved = await pin("--proxy", proxy.url, "--diff", file)
    assert f"warning: registry.test/team/app:v1: v1 is {OTHER.digest} upstream by now" in moved.stderr
    assert moved.exit_code == 0
    await registry.stop()
    proxy.clock.advance(301)
    stale = await pin("--proxy", proxy.url, file)
    assert (stale.exit_code, file.read_text()) == (0, pods(f"registry.test/team/app:v1@{IMAGE.digest}"))
    assert "warning: registry.test/team/app:v1: v1 was last checked 602 s ago" in stale.stderr


@pytest.mark.parametrize("status", [200, 405])
async def test_get_where_a_head_does_not_say(registry: FakeRegistry, name: str, tmp_path: Path, status: int) -> None:
    """A HEAD without the digest, or none at all: one GET, whose bytes are hashed."""
    registry.push("team/app", "v1", IMAGE)

    def silent(request: web.BaseRequest) -> web.Response | None:
        if request.method == "HEAD":
            return web.Response(status=status, headers={"Content-Type": IMAGE.media_type})
        return web.Response(body=IMAGE.manifest, content_type=IMAGE.media_type)

    registry.fault = silent
    file = write(tmp_path / "a.yaml", f"{name}/team/app:v1")
    assert (await pin(file)).exit_code == 0
    assert file.read_text() == pods(f"{name}/team/app:v1@{IMAGE.digest}")
    assert [seen.method for seen in registry.seen] == ["HEAD", "GET"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda: web.Response(text="<html>", content_type="text/html"), "the manifest is not JSON"),
        (
            lambda: web.Response(body=IMAGE.manifest, headers={"Docker-Content-Digest": OTHER.digest}),
            f"the manifest's bytes are not those of {OTHER.digest}",
        ),
        (lambda: web.Response(status=429), "429"),
        (lambda: web.Response(status=503), "503"),
    ],
)
async def test_what_no_registry_may_answer(
    registry: FakeRegistry, name: str, tmp_path: Path, answer: Callable[[], web.Response], why: str
) -> None:
    """Is no digest: the file stays, and the line says why."""
    registry.fault = lambda request: web.Response(status=405) if request.method == "HEAD" else answer()
    file = write(tmp_path / "a.yaml", f"{name}/team/app:v1")
    result = await pin(file)
    assert result.exit_code == 1
    assert why in result.stderr
    assert file.read_text() == pods(f"{name}/team/app:v1")


async def test_files_are_written_whole_or_not_at_all(registry: FakeRegistry, name: str, tmp_path: Path) -> None:
    """A digest that cannot be had leaves its file as it is, and the others are written. Templates hold nothing up."""
    registry.push("team/app", "v1", IMAGE)
    good = write(tmp_path / "good.yaml", f"{name}/team/app:v1")
    half = write(tmp_path / "half.yaml", f"{name}/team/app:v1", f"{name}/team/app:v2")
    template = write(tmp_path / "template.yaml", '"{{ .Values.image }}"', f"{name}/team/app:v1")
    result = await pin(tmp_path)
    assert result.exit_code == 1
    assert good.read_text() == pods(f"{name}/team/app:v1@{IMAGE.digest}")
    assert half.read_text() == pods(f"{name}/team/app:v1", f"{name}/team/app:v2")
    assert template.read_text() == pods('"{{ .Values.image }}"', f"{name}/team/app:v1@{IMAGE.digest}")
    assert result.stderr.splitlines() == [
        f"{good}: 1 image pinned",
        f"{half}:6: {name}/team/app:v2 cannot be pinned: {name} answered 404 for manifest team/app",
        f"{half}: left as it is",
        f"{template}:5: {{{{ .Values.image }}}} cannot be pinned: a template, not a reference",
        f"{template}: 1 image pinned",
    ]


async def test_a_broken_file_ends_it_before_anything_is_asked(
    registry: FakeRegistry, name: str, tmp_path: Path
) -> None:
    """Exit 2 with every mistake, its file and its line; no file is written, no registry asked."""
    registry.push("team/app", "v1", IMAGE)
    good = write(tmp_path / "a.yaml", f"{name}/team/app:v1")
    chart = tmp_path / "chart.yaml"
    chart.write_text("kind: Pod\nimage: {{ .Values.a }}:{{ .Values.b }}\n")
    (tmp_path / "tab.yaml").write_text("kind:\n\ta: b\n")
    for options in ([], ["--check"], ["--diff"]):
        result = await pin(*options, tmp_path, tmp_path / "missing.yaml")
        assert (result.exit_code, result.stdout) == (2, "")
        lines = result.stderr.splitlines()
        assert lines[0].startswith(f"{chart}:2: not YAML: ")
        assert lines[0].endswith("; a template? Pin what it renders to")
        assert lines[1].startswith(f"{tmp_path / 'tab.yaml'}:2: not YAML: ")
        assert lines[2] == f"{tmp_path / 'missing.yaml'}: No such file or directory"
    assert good.read_text() == pods(f"{name}/team/app:v1")
    assert registry.seen == []


async def test_check_asks_nobody(registry: FakeRegistry, name: str, tmp_path: Path) -> None:
    """Its list is file, line, image; exit 1 for what is unpinned or cannot be pinned, and nothing is written."""
    file = write(tmp_path / "a.yaml", f"{name}/team/app:v1", f"nginx@{IMAGE.digest}", "app:$TAG")
    result = await pin("--check", file)
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.splitlines() == [
        f"{file}:5: {name}/team/app:v1 is not pinned",
        f"{file}:7: app:$TAG cannot be pinned: a template, not a reference",
    ]
    assert registry.seen == []
    assert (await pin("--check", "--diff", file)).exit_code == 2


async def test_standard_input_goes_to_standard_output(registry: FakeRegistry, name: str) -> None:
    """Byte for byte; where a digest is missing there is nothing, so that nothing half is applied behind a pipe."""
    registry.push("team/app", "v1", IMAGE)
    text = pods(f"{name}/team/app:v1").replace("\n", "\r\n")
    result = await pin("-", stdin=text.encode())
    assert result.exit_code == 0
    assert result.stdout_bytes == text.replace("app:v1", f"app:v1@{IMAGE.digest}").encode()
    again = await pin("-", stdin=result.stdout_bytes)
    assert (again.exit_code, again.stdout_bytes) == (0, result.stdout_bytes)
    missing = await pin("-", stdin=pods(f"{name}/team/app:v1", f"{name}/team/app:v2").encode())
    assert (missing.exit_code, missing.stdout_bytes) == (1, b"")
    nothing = await pin("-", stdin=b"a: b\n")
    assert (nothing.exit_code, nothing.stdout_bytes) == (0, b"a: b\n")
    assert "<stdin>: no images found" in nothing.stderr


def docker_config(folder: Path, registry: str, user: str, password: str) -> Path:
    packed = base64.b64encode(f"{user}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {registry: {"auth": packed}}}))
    return folder


async def test_the_users_docker_config_is_found(registry: FakeRegistry, name: str, tmp_path: Path) -> None:
    """Where Docker looks for it; the one that is named counts instead."""
    registry.push("team/app", "v1", IMAGE)
    registry.private, registry.passwords, registry.basic = {"team/app": {"me"}}, {"me": "s3cret"}, True
    (tmp_path / ".docker").mkdir()
    docker_config(tmp_path / ".docker", name, "me", "s3cret")
    empty = docker_config(tmp_path, "other.test", "me", "s3cret")
    file = write(tmp_path / "a.yaml", f"{name}/team/app:v1")
    assert (await pin("--diff", "--docker-config", empty, file, home=tmp_path)).exit_code == 1
    assert (await pin(file, home=tmp_path)).exit_code == 0


@pytest.mark.parametrize("basic", [False, True])
async def test_private_images_with_the_users_own_login(
    registry: FakeRegistry, name: str, tmp_path: Path, basic: bool
) -> None:
    """Out of a docker config.json, its folder will do; without, a line says that a login is needed."""
    registry.push("team/app", "v1", IMAGE)
    registry.private, registry.passwords, registry.basic = {"team/app": {"me"}}, {"me": "s3cret"}, basic
    file = write(tmp_path / "a.yaml", f"{name}/team/app:v1")
    refused = await pin(file)
    assert refused.exit_code == 1
    assert "(it is not there, or needs a login)" in refused.stderr
    other = docker_config(tmp_path, "other.test", "me", "s3cret")
    assert (await pin("--docker-config", other, file)).exit_code == 1
    assert not [seen for seen in registry.seen if seen.headers.get("Authorization", "").startswith("Basic")]
    mine = docker_config(tmp_path, name, "me", "s3cret")
    result = await pin("--docker-config", mine / "config.json", file)
    assert (result.exit_code, result.stderr) == (0, f"{file}: 1 image pinned\n")
    assert file.read_text() == pods(f"{name}/team/app:v1@{IMAGE.digest}")
    assert "s3cret" not in refused.output + result.output


async def test_a_login_at_the_proxy(settings: MakeSettings, registry: FakeRegistry, tmp_path: Path) -> None:
    """A proxy that asks for user and password gets those that stand there for it; the registry's are not sent to it."""
    registry.push("team/app", "v1", IMAGE)
    registry.private, registry.passwords = {"team/app": {"me"}}, {"me": "s3cret"}
    clusters = [{"name": "default", "login": True, "allow_plain_login": True}]
    file = write(tmp_path / "a.yaml", "registry.test/team/app:v1")
    async with running(settings(clusters=clusters)) as proxy:
        wrong = docker_config(tmp_path, "registry.test", "me", "s3cret")
        assert (await pin("--proxy", proxy.url, "--docker-config", wrong, file)).exit_code == 1
        right = docker_config(tmp_path, proxy.url.removeprefix("http://"), "me", "s3cret")
        assert (await pin("--proxy", proxy.url, "--docker-config", right, file)).exit_code == 0
    assert file.read_text() == pods(f"registry.test/team/app:v1@{IMAGE.digest}")


async def test_a_config_that_is_broken_costs_only_the_login(registry: FakeRegistry, name: str, tmp_path: Path) -> None:
    """It is said, and what is public is pinned without."""
    registry.push("team/app", "v1", IMAGE)
    (tmp_path / "config.json").write_text("noise")
    file = write(tmp_path / "a.yaml", f"{name}/team/app:v1")
    result = await pin("--docker-config", tmp_path, file)
    assert result.exit_code == 0
    assert f"warning: {name} is asked without a credential: {tmp_path / 'config.json'} is not JSON" in result.stderr


async def test_tokens_from_another_host(registry: FakeRegistry, name: str, tmp_path: Path) -> None:
    """Only where that is allowed by name; the line says how."""
    registry.push("team/app", "v1", IMAGE)
    registry.private = {}
    realm = FakeRegistry(private={})
    realm._tokens = registry._tokens
    await realm.start()
    registry.realm = f"{realm.url}/token"
    file = write(tmp_path / "a.yaml", f"{name}/team/app:v1")
    refused = await pin(file)
    assert refused.exit_code == 1
    assert "--token-realm" in refused.stderr
    assert realm.seen == []
    allowed = await pin("--token-realm", realm.url.removeprefix("http://"), file)
    await realm.stop()
    assert allowed.exit_code == 0
    assert len(realm.seen) == 1


@dataclass
class Crowded(FakeRegistry):
    """Answers the first eight when all of them are there, and no other one came although it had the time to."""

    here: int = 0
    most: int = 0
    eight: asyncio.Event = field(default_factory=asyncio.Event)
    nine: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.here += 1
        self.most = max(self.most, self.here)
        if self.here == 9:
            self.nine.set()
        if self.here == 8:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3 if not self.eight.is_set() else 0):
                    await self.nine.wait()
            self.eight.set()
        await self.eight.wait()
        self.here -= 1
        return await super().answer(request)


async def test_eight_are_asked_for_at_a_time(tmp_path: Path) -> None:
    """Not fewer and not more, of thirty."""
    registry = Crowded()
    await registry.start()
    name = registry.url.removeprefix("http://")
    for number in range(30):
        registry.push("team/app", f"v{number}", IMAGE)
    file = write(tmp_path / "a.yaml", *(f"{name}/team/app:v{number}" for number in range(30)))
    result = await pin(file)
    await registry.stop()
    assert result.exit_code == 0
    assert (registry.most, len(registry.seen)) == (8, 30)


async def test_a_registry_that_cannot_be_reached(registry: FakeRegistry, name: str, tmp_path: Path) -> None:
    """Fails alone: what others have is pinned."""
    registry.push("team/app", "v1", IMAGE)
    dead = FakeRegistry()
    await dead.start()
    await dead.stop()
    gone = write(tmp_path / "a.yaml", f"{dead.url.removeprefix('http://')}/team/app:v1")
    odd = write(tmp_path / "b.yaml", "registry.test:99999/team/app:v1")
    good = write(tmp_path / "c.yaml", f"{name}/team/app:v1")
    result = await pin(tmp_path)
    assert result.exit_code == 1
    assert f"{gone}:5: " in result.stderr
    assert "could not be connected to" in result.stderr
    assert f"{odd}:5: " in result.stderr
    assert "is no address that could be asked" in result.stderr
    assert good.read_text() == pods(f"{name}/team/app:v1@{IMAGE.digest}")


@pytest.mark.parametrize("url", ["proxy:5000", "ftp://proxy", "http://me:pw@proxy"])
async def test_usage(tmp_path: Path, url: str) -> None:
    """Exit 2 for a proxy that is none, and without files."""
    file = write(tmp_path / "a.yaml", "nginx")
    assert (await pin("--proxy", url, file)).exit_code == 2
    assert (await pin()).exit_code == 2


def test_serve_goes_without_the_parser() -> None:
    """Only those who pin load it."""
    code = "import proxy.cli, sys; print([name for name in sys.modules if name.startswith('ruamel')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
