"""Programs that are asked for credentials: run with a time limit, a bound on what they say, and no more of this
process's environment than they are to see.

What a program says, on either output, may be a secret: no word of it gets into an error or a log.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

# Kubelet's plugins and docker's helpers say a few kilobytes.
_MOST_OUTPUT = 1024 * 1024
_PIECE = 64 * 1024


class ProgramFailed(Exception):
    """The program gave no answer. The message goes on after its name, is for operators and holds no secret."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`timeout` in seconds; `visible`: patterns of the variables that a program sees, None for all of them."""

    timeout: float
    visible: tuple[str, ...] | None = None
    more: Mapping[str, str] = field(default_factory=dict, repr=False)

    def environment(self, ours: Mapping[str, str]) -> dict[str, str]:
        """What a program sees of `ours`: PATH always, and `more` over all."""
        seen = {
            name: value
            for name, value in ours.items()
            if self.visible is None or name == "PATH" or any(fnmatchcase(name, pattern) for pattern in self.visible)
        }
        return seen | dict(self.more)


async def run_program(command: Sequence[str], request: str, limits: Limits) -> tuple[int, bytes]:
    """Run `command` with `request` on its standard input; gives its exit code and standard output.

    Raises ProgramFailed where it cannot be run, takes too long or says too much; it and what it started are ended then.
    """
    process = await _start(command, limits.environment(os.environ))
    try:
        async with asyncio.timeout(limits.timeout):
            output = await _talk(process, request)
            return await process.wait(), output
    except BaseException as error:
        await _end(process)
        if isinstance(error, TimeoutError):
            raise ProgramFailed("did not answer in time") from error
        raise


async def _start(command: Sequence[str], environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *command, env=environment, start_new_session=True,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )
    )  # fmt: skip
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # One that is cancelled while it starts is waited for without end by asyncio.
        await asyncio.wait([starting])
        if starting.exception() is None:
            await _end(starting.result())
        raise
    except (OSError, ValueError) as error:
        raise ProgramFailed("cannot be run") from error


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill it and what it started; one that ended well may leave an agent of its own behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # Something may hold the other ends of its pipes all the same. They are closed one by one: the transport as a whole
    # would take the status of one that has just ended from whoever waits for it.
    transport: asyncio.SubprocessTransport = process._transport  # type: ignore[attr-defined]
    for descriptor in (0, 1):
        if (pipe := transport.get_pipe_transport(descriptor)) is not None:
            pipe.close()
    await process.wait()


async def _talk(process: asyncio.subprocess.Process, request: str) -> bytes:
    assert process.stdin is not None and process.stdout is not None  # noqa: S101 - they were asked for
    # One that does not want to know may be gone already.
    with contextlib.suppress(ConnectionError):
        process.stdin.write(request.encode())
        await process.stdin.drain()
    process.stdin.close()
    output = bytearray()
    while piece := await process.stdout.read(_PIECE):
        output += piece
        if len(output) > _MOST_OUTPUT:
            raise ProgramFailed("says more than any credential needs")
    return bytes(output)
