"""`pullthrough warm` as its users meet it: what it prints, and how it ends."""

import asyncio
import json
import os
import pty
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli import main
from proxy.settings import Settings
from tests.fakes.acts import Act
from tests.fakes.content import make_image
from tests.fakes.fleet import ROOT
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import MIB
from tests.scenarios.warming import NAME, api, asked, begin, ended, job

MakeSettings = Callable[..., Settings]
POD = f"""
apiVersion: v1
kind: Pod
spec:
  initContainers: [{{name: first, image: "{NAME}:v1"}}]
  containers:
    - {{name: app, image: {NAME}:v2}}  # the second
    - {{name: again, image: {NAME}:v2}}
"""


async def warm(proxy: Proxy, *arguments: object, text: str | None = None) -> Result:
    """The command, in a thread, with a loop of its own."""
    words = ["warm", *(str(argument) for argument in arguments), "--admin", proxy.admin_url]
    return await asyncio.to_thread(CliRunner().invoke, main, words, input=text)


async def only_job(proxy: Proxy) -> str:
    """The job that there is."""
    _, listed = await api(proxy, "GET", "warm")
    (found,) = listed["jobs"]
    return str(found["id"])


@pytest.fixture(autouse=True)
def images(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images, and looks at a job that follow each other quickly."""
    registry.push("team/app", "v1", make_image(MIB, seed=1))
    registry.push("team/app", "v2", make_image(2000, seed=2))
    monkeypatch.setattr("proxy.cli.warm_progress._LOOK", 0.02)


async def test_all_of_it_came(proxy: Proxy, registry: FakeRegistry) -> None:
    """A line for each image and one for all of them; exit 0. Again: the same, and nothing is asked of the registry."""
    found = await warm(proxy, f"{NAME}:v1", f"{NAME}:v2")
    assert (found.exit_code, found.stderr) == (0, "")
    lines = found.stdout.splitlines()
    assert f"{NAME}:v1: 1.0 MiB in 2 blobs" in lines
    assert lines[-1] == "2 of 2 images warm, 1.0 MiB"
    registry.seen.clear()
    again = await warm(proxy, f"{NAME}:v1")
    assert "1.0 MiB of it was there" in again.stdout
    assert asked(registry) == []


async def test_something_failed(proxy: Proxy) -> None:
    """Which and why, on standard error; exit 1, though the others came."""
    found = await warm(proxy, f"{NAME}:v2", f"{NAME}:gone")
    assert found.exit_code == 1
    assert f"{NAME}:gone: failed: registry.test answered 404 for manifest team/app" in found.stderr
    assert found.stdout.splitlines()[-1].startswith("1 of 2 images warm")


@pytest.mark.parametrize("text", [POD, f"# images\n{NAME}:v1\n\n{NAME}:v2  # the second\n"])
async def test_images_of_a_file(proxy: Proxy, tmp_path: Path, text: str) -> None:
    """Kubernetes YAML or a list, from a file or standard input; what stands there twice is warmed once."""
    file = tmp_path / "images"
    file.write_text(text)
    for found in (await warm(proxy, "--from", file, "--json"), await warm(proxy, "--from", "-", "--json", text=text)):
        assert found.exit_code == 0
        assert json.loads(found.stdout)["references"] == [f"{NAME}:v1", f"{NAME}:v2"]


async def test_files_that_cannot_be_read(proxy: Proxy, tmp_path: Path) -> None:
    """Exit 2 with the file, the line and why; nothing is begun."""
    (tmp_path / "bad").write_text(f"{NAME}:v1\nnot an image\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, said in (("bad", ":2: "), ("binary", ": "), ("missing", ": No such file")):
        found = await warm(proxy, "--from", tmp_path / name)
        assert (found.exit_code, found.stderr.startswith(f"{tmp_path / name}{said}")) == (2, True), found.stderr
    (tmp_path / "empty").write_text("# nothing\n")
    assert (await warm(proxy, "--from", tmp_path / "empty")).exit_code == 2


async def test_what_goes_with_it(proxy: Proxy) -> None:
    """Platforms, cluster, bandwidth and concurrency are those of the job; the job is shown as JSON."""
    words = ("--platform", "linux/arm64", "--cluster", "default", "--bandwidth", "50MiB", "--concurrency", 2, "--json")
    found = json.loads((await warm(proxy, f"{NAME}:v2", *words)).stdout)
    assert (found["platforms"], found["cluster"], found["bandwidth"], found["concurrency"]) == (
        ["linux/arm64"], "default", 50 * MIB, 2,
    )  # fmt: skip
    assert found["items"][0]["state"] == "done"


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("x", "--job", "y"),
        ("x", "--stop"),
        ("x", "--bandwidth", "fast"),
        ("x", "--concurrency", "0"),
    ],
)
async def test_what_makes_no_sense(proxy: Proxy, words: tuple[str, ...]) -> None:
    """Is a mistake of usage: exit 2."""
    assert (await warm(proxy, *words)).exit_code == 2


async def test_what_the_server_refuses(proxy: Proxy) -> None:
    """One line of why, exit 1."""
    found = await warm(proxy, f"{NAME}:v1", "--bandwidth", "0")
    assert (found.exit_code, "bandwidth" in found.stderr) == (1, True)
    found = await warm(proxy, f"{NAME}:v1", "--platform", "linux")
    assert found.exit_code == 1
    assert found.stderr.startswith("error: platforms: not a platform: write linux/amd64")
    assert (await warm(proxy, "--job", "nobody")).stderr.startswith("error: there is no warm job nobody")


async def test_no_server(proxy: Proxy) -> None:
    """One line, exit 1."""
    words = ["warm", f"{NAME}:v1", "--admin", "http://127.0.0.1:1"]
    found = await asyncio.to_thread(CliRunner().invoke, main, words)
    assert (found.exit_code, len(found.stderr.splitlines())) == (1, 1)
    assert "does not answer" in found.stderr


async def test_begun_watched_and_stopped(proxy: Proxy, registry: FakeRegistry) -> None:
    """`--detach` begins and ends, with the job's name; `--job` watches it, `--stop` stops it, which is no success."""
    gate = Gate(0)
    registry.script = lambda _: Act(gate=gate)
    found = await warm(proxy, f"{NAME}:v1", "--detach")
    assert found.exit_code == 0
    named = found.stdout.split()[1].rstrip(":")
    assert f"pullthrough warm --job {named}" in found.stderr
    watching = asyncio.create_task(warm(proxy, "--job", named))
    await gate.reached.wait()
    stopped = await warm(proxy, "--job", named, "--stop")
    assert (stopped.exit_code, stopped.stdout) == (1, "0 of 1 image warm, 0 B, stopped\n")
    assert (await watching).exit_code == 1
    gate.open()


async def test_ctrl_c(proxy: Proxy, registry: FakeRegistry) -> None:
    """Leaves the job to the server, and says how to watch it."""
    gate = Gate(0)
    registry.script = lambda _: Act(gate=gate)
    command = (sys.executable, "-m", "proxy", "warm", f"{NAME}:v1", "--admin", proxy.admin_url)
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
        # Who runs the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    await gate.reached.wait()
    process.send_signal(signal.SIGINT)
    _, said = await process.communicate()
    named = await only_job(proxy)
    assert (process.returncode, (await job(proxy, named))["state"]) == (130, "running")
    assert said.decode().strip() == f"the server goes on with it: pullthrough warm --job {named}"
    gate.open()
    assert (await ended(proxy, named))["state"] == "done"


async def test_bars_in_a_terminal(proxy: Proxy, registry: FakeRegistry) -> None:
    """A terminal has a bar for each image on its way and one for all; the last line stands below them."""
    gate = Gate(MIB // 2)
    registry.script = lambda request: Act(gate=gate) if request.size == MIB else None
    ours, theirs = pty.openpty()
    command = (sys.executable, "-m", "proxy", "warm", f"{NAME}:v1", f"{NAME}:v2", "--admin", proxy.admin_url)
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    reading = asyncio.create_task(asyncio.to_thread(_read_all, ours))
    await gate.reached.wait()
    named = await only_job(proxy)
    while (await job(proxy, named))["done"] < 1:
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.0)
    gate.open()
    assert await process.wait() == 0
    shown = await reading
    for text in (f"{NAME}:v1", "1 of 2 images", "1.0 MiB", f"{NAME}:v2: ", "2 of 2 images warm"):
        assert text in shown
    assert "━" in shown


def _read_all(descriptor: int) -> str:
    found = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:
            # The other end of a terminal that nobody has open any more.
            break
        if not piece:
            break
        found += piece
    os.close(descriptor)
    return found.decode()


async def test_a_server_that_restarts(settings: MakeSettings, registry: FakeRegistry) -> None:
    """Watching goes on while it is away, and so does the job when it is back."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        admin = {"address": f"127.0.0.1:{free.getsockname()[1]}"}
    gate = Gate(0)
    registry.script = lambda _: Act(gate=gate)
    async with running(settings(admin=admin)) as proxy:
        named = await begin(proxy, f"{NAME}:v1")
        watching = asyncio.create_task(warm(proxy, "--job", named))
        await gate.reached.wait()
        await asyncio.sleep(0.2)
    await asyncio.sleep(0.2)
    assert not watching.done()
    registry.script = None
    gate.open()
    async with running(settings(admin=admin)):
        assert (await watching).exit_code == 0
