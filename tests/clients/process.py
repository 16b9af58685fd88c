"""Programs that the tests run: commands that end, and daemons that run until they are stopped."""

import contextlib
import itertools
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIENTS_BIN = Path(os.environ.get("CLIENTS_BIN", ROOT / ".clients" / "bin"))

# What these tests' programs must not inherit: their settings come from the tests alone.
_FOREIGN = ("PULLTHROUGH_", "OCI_", "REGISTRY_", "CONTAINERS_", "DOCKER_", "CONTAINERD_")
_ENDS_WITHIN = 20.0


class NotInstalled(Exception):
    """A program is not there; `make install-clients` brings it."""


def program(name: str) -> str:
    """The path of a program; the ones built by install.sh come first."""
    built = CLIENTS_BIN / name
    path = str(built) if built.is_file() else shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise NotInstalled(f"{name} is not installed: run `make install-clients`")
    return path


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program: ours without other people's settings, with `extra`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    return kept | dict(extra or {})


def run(*arguments: str | Path, env: Mapping[str, str] | None = None, timeout: float = 180) -> str:
    """Run a command to its end; gives what it printed. Fails with its errors when it fails."""
    words = [program(str(arguments[0])), *map(str, arguments[1:])]
    done = subprocess.run(words, env=environment(env), capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# Below the ports that the system gives to connections, which could take one before its listener is there; none twice.
_PORTS = itertools.cycle(random.sample(range(12_000, 32_000), 4_000))


def free_port() -> int:
    """A TCP port that nobody listens on, and that was not given before."""
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a cycle has no end")


def wait_for(what: str, ready: Callable[[], bool], within: float = 30.0) -> None:
    """Poll until `ready`; fails when that takes longer than `within` seconds."""
    end = time.monotonic() + within
    while not ready():
        assert time.monotonic() < end, f"{what}: not within {within} s"
        time.sleep(0.02)


class Daemon:
    """A program that runs until it is stopped; what it prints goes to `log`."""

    def __init__(
        self, arguments: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        words = [program(str(arguments[0])), *map(str, arguments[1:])]
        self.log = log
        self._name = Path(words[0]).name
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                words, env=environment(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], within: float = 30.0) -> None:
        """Poll until `ready`; fails at once, and cleans up, when the program ends before."""
        try:
            wait_for(self._name, lambda: self._alive() and ready(), within)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> int:
        """SIGTERM, and SIGKILL when that is not enough; gives the exit code."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def signal(self, number: int) -> None:
        """Send it to the program."""
        self._process.send_signal(number)

    def _alive(self) -> bool:
        code = self._process.poll()
        assert code is None, f"{self._name} ended with {code}:\n{self.log.read_text(errors='replace')[-4000:]}"
        return True
