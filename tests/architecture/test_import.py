"""Nothing happens at import."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

IMPORT_EVERYTHING = """
import sys
opened = []
def audit(event, arguments):
    if event in {"socket.__new__", "socket.connect", "socket.bind", "subprocess.Popen", "os.mkdir", "os.fork"}:
        opened.append((event, arguments))
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        opened.append((event, arguments))
    if event == "open" and str(arguments[0]).endswith((".yaml", ".json", ".env")):
        opened.append((event, arguments))
import asyncio, threading, os, signal, logging, socket
import aiohttp, aiofiles, diskcache, prometheus_client, yaml, click, aiohttp.web
environment, handlers = dict(os.environ), logging.getLogger().handlers[:]
signals = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
sys.addaudithook(audit)
sys.dont_write_bytecode = True
import pkgutil, importlib, proxy
names = [found.name for found in pkgutil.walk_packages(proxy.__path__, "proxy.") if found.name != "proxy.__main__"]
for name in names:
    importlib.import_module(name)
assert len(names) > 40, names
assert not opened, opened
assert threading.active_count() == 1, threading.enumerate()
assert asyncio._get_running_loop() is None
assert getattr(asyncio.get_event_loop_policy()._local, "_loop", None) is None
assert dict(os.environ) == environment
assert logging.getLogger().handlers == handlers
assert signals == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
"""


def test_importing_everything_does_nothing() -> None:
    """No socket, no process, no file written, no configuration read; no thread, loop, signal handler or log handler."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_EVERYTHING], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_the_main_module_only_starts_when_it_is_run() -> None:
    """`python -m proxy --version` works, importing it does nothing."""
    result = subprocess.run([sys.executable, "-m", "proxy", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.startswith("pullthrough, version ")
    imported = subprocess.run([sys.executable, "-c", "import proxy.__main__"], cwd=ROOT, capture_output=True, text=True)
    assert (imported.returncode, imported.stdout) == (0, "")
