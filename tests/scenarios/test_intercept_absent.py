"""Where no listener intercepts, nothing of it is there."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

START = """
import asyncio, sys
from pathlib import Path
from proxy.app import Application
from proxy.sharing import StartError
from tests.fakes.proxy import make_settings

listen = {"address": "127.0.0.1:0"}
if sys.argv[2] == "intercept":
    listen["intercept"] = {"ca_certificate": "ca.crt", "ca_key": "ca.key"}
    sys.modules["cryptography"] = None
upstreams = {"registry.test": {"url": "http://127.0.0.1:1", "connect_timeout": "1s"}}
settings = make_settings(Path(sys.argv[1]), upstreams, listen=[listen])

async def run():
    application = Application(settings)
    try:
        await application.start()
    except StartError as error:
        print(error)
        return
    reader, writer = await asyncio.open_connection("127.0.0.1", application.listeners[0].address.port)
    writer.write(b"GET /v2/ HTTP/1.1\\r\\nHost: registry.test\\r\\nConnection: close\\r\\n\\r\\n")
    print((await reader.read()).split()[1].decode())
    writer.close()
    await application.close()

asyncio.run(run())
loaded = {name for name in sys.modules if name.startswith(("proxy.server.intercept", "proxy.policy.intercept"))}
loaded |= {name for name in sys.modules if name in {"proxy.upstream.login", "cryptography"}}
print(sorted(loaded))
"""


def started(directory: Path, how: str) -> list[str]:
    """The lines that it writes."""
    command = [sys.executable, "-W", "error", "-c", START, str(directory), how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_nothing_is_loaded(tmp_path: Path) -> None:
    """A proxy that is imported, started and asked needs none of its modules, nor cryptography."""
    assert started(tmp_path / "cache", "plain") == ["200", "[]"]


def test_the_extra_is_not_installed(tmp_path: Path) -> None:
    """Where a listener intercepts, the start says in one line what is missing."""
    said = started(tmp_path / "cache", "intercept")[0]
    assert said == "`intercept` needs the extra `intercept`: cryptography is not installed"
