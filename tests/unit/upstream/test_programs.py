"""Programs that are asked for credentials: what they see, how long they may take, how much they may say."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from proxy.upstream.programs import Limits, ProgramFailed, run_program

LONG, QUICK = Limits(10.0), Limits(1.0)


async def said(script: str, limits: Limits = LONG, request: str = "") -> str:
    """What a shell script says."""
    code, output = await run_program(["sh", "-c", script], request, limits)
    assert code == 0
    return output.decode()


def test_what_a_program_sees_of_our_environment() -> None:
    """All of it, as Docker and kubelet have it; or only what is named, and PATH; `more` over both."""
    ours = {"PATH": "/bin", "AWS_REGION": "x", "AWS_ROLE_ARN": "y", "DATABASE_PASSWORD": "geheim"}
    assert Limits(1.0).environment(ours) == ours
    assert Limits(1.0, ()).environment(ours) == {"PATH": "/bin"}
    named = Limits(1.0, ("AWS_*",), {"AWS_REGION": "z", "HOME": "/nowhere"})
    assert named.environment(ours) == {"PATH": "/bin", "AWS_REGION": "z", "AWS_ROLE_ARN": "y", "HOME": "/nowhere"}
    assert "nowhere" not in repr(named)


async def test_request_arguments_and_environment_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else does."""
    monkeypatch.setenv("DATABASE_PASSWORD", "geheim")
    limits = Limits(10.0, (), {"REGION": "here"})
    assert await said("cat; echo $REGION $DATABASE_PASSWORD", limits, "asked\n") == "asked\nhere\n"


async def test_one_that_does_not_want_to_know() -> None:
    """It may answer without having read what it was asked, a long request too."""
    assert await said("exec <&-; echo yes", request="x" * 500_000) == "yes\n"


async def test_its_exit_code_is_its_own() -> None:
    """Its output comes with it."""
    assert await run_program(["sh", "-c", "echo no; exit 3"], "", LONG) == (3, b"no\n")


@pytest.mark.parametrize("script", ["sleep 60", "sleep 60 & exit 0", "exec >&-; sleep 60", "echo much; sleep 60"])
async def test_one_that_takes_too_long(script: str, tmp_path: Path) -> None:
    """It is ended, and with it what it has started."""
    file = tmp_path / "pid"
    with pytest.raises(ProgramFailed, match="did not answer in time"):
        await run_program(["sh", "-c", f"(sleep 60 & echo $! > {file}; wait) & {script}"], "", QUICK)
    await ended(int(file.read_text()))


async def ended(pid: int) -> None:
    """Wait until there is no such process, or only its remains."""
    async with asyncio.timeout(5):
        while Path(f"/proc/{pid}/stat").exists():
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
            await asyncio.sleep(0.01)


async def test_one_that_says_too_much() -> None:
    """Its output does not fill the memory."""
    with pytest.raises(ProgramFailed, match="more than any credential"):
        await run_program(["yes"], "", LONG)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "no such program", "a\0b", "/etc/passwd"])
async def test_one_that_cannot_be_run(name: str) -> None:
    """Missing, no name, no program."""
    with pytest.raises(ProgramFailed, match="cannot be run"):
        await run_program([name], "", LONG)


async def test_who_waits_may_leave(tmp_path: Path) -> None:
    """The program does not outlive the one who wanted to know."""
    file = tmp_path / "pid"
    task = asyncio.create_task(run_program(["sh", "-c", f"echo $$ > {file}; sleep 60"], "", Limits(20.0)))
    async with asyncio.timeout(5):
        while not file.exists() or not file.read_text():
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


async def test_who_waits_may_leave_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has begun by then is ended; asyncio itself would wait for what holds its output, without end."""
    start, begun, gate, started = asyncio.create_subprocess_exec, asyncio.Event(), asyncio.Event(), []

    async def slowly(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        started.append(await start(*command, **options))
        begun.set()
        await gate.wait()
        return started[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
    task = asyncio.create_task(run_program(["sh", "-c", "sleep 60 & wait"], "", LONG))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert started[0].returncode == -9
