"""A Docker engine of the tests' own, and a stand-in for base images where no registry can be reached.

The engine is `dockerd` started by hand: its own data, socket and mount namespace, no bridge, no iptables, so that it
meets neither an engine nor a containerd that runs here already. It starts in the machine's network, where builds fetch
packages, or in an empty one of its own (loopback only), where containers with `--network host` have every port to
themselves.
"""

import configparser
import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.clients.process import ROOT, Daemon, NotInstalled, program, run

_START_SECONDS = 60
_BUILD_SECONDS = 600
_PACKAGES = "python3,python3-venv,python-is-python3,ca-certificates"
_NOT_IN_THE_BASE = (
    "var/cache/apt/*",
    "var/lib/apt/lists/*",
    "usr/share/doc/*",
    "usr/share/locale/*",
    "usr/share/man/*",
)
_PIP_CONF, _CERTIFICATES = "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt"  # added afterwards
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "default-timeout", "timeout")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


class EngineUnavailable(Exception):
    """No engine can run here. The message says why, in one line."""


class Engine:
    """`dockerd` on data of its own; `start` it in one network, `stop` it, `start` it in the other, `remove` it."""

    def __init__(self) -> None:
        _check_programs()
        # Not below pytest's folder: a socket's path has 107 characters at most, and gigabytes are not to be kept.
        self._folder = Path(tempfile.mkdtemp(prefix="pt-engine-"))
        self._host = f"unix://{self._folder}/docker.sock"
        self._daemon: Daemon | None = None

    def start(self, network: str) -> None:
        """Start in `network`, "machine" or "own". Raises EngineUnavailable where that does not work."""
        config = {
            "bridge": "none", "iptables": False, "ip6tables": False, "ip-forward": False, "ip-masq": False,
            "storage-driver": "vfs", "data-root": f"{self._folder}/data", "exec-root": f"{self._folder}/exec",
            "pidfile": f"{self._folder}/pid", "hosts": [self._host],
        }  # fmt: skip
        (self._folder / "daemon.json").write_text(json.dumps(config))
        # A containerd that listens at the usual place would be taken for dockerd's own: hide the place.
        hide = "mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd"
        loopback = "ip link set lo up" if network == "own" else "true"
        serve = f"exec dockerd --config-file {self._folder}/daemon.json"
        spaces = ["--mount", "--net"] if network == "own" else ["--mount"]
        log = self._folder / "log"
        daemon = Daemon(["unshare", *spaces, "sh", "-c", f"{hide} && {loopback} && {serve}"], log)
        try:
            daemon.wait_until(self._answers, _START_SECONDS)
        except AssertionError as error:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise EngineUnavailable(f"dockerd does not start here: {last}") from error
        self._daemon = daemon

    def docker(self, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Run the client; gives its standard output."""
        settings = {"DOCKER_HOST": self._host, "DOCKER_CONFIG": f"{self._folder}/cli", **(env or {})}
        return run(_client(), *arguments, env=settings, timeout=_BUILD_SECONDS)

    def inspect(self, name: str) -> Any:
        """What the engine knows about an image or a container."""
        return json.loads(self.docker("inspect", name))[0]

    def inside(self, *command: str) -> list[str]:
        """`command` as it runs in the engine's network."""
        pid = (self._folder / "pid").read_text().strip()
        return ["nsenter", "--target", pid, "--net", program(command[0]), *command[1:]]

    def fetch(self, url: str) -> str:
        """The body of `url`, asked for in the engine's network. Raises AssertionError unless the status is 200."""
        get = "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1], timeout=5).read().decode())"
        return run(*self.inside(sys.executable, "-I", "-c", get, url))

    def stop(self) -> None:
        """End the containers and the engine; images and volumes stay."""
        daemon, self._daemon = self._daemon, None
        if daemon is None:
            return
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):  # it may have died of what failed
            if names := self.docker("ps", "--all", "--quiet").split():
                self.docker("rm", "--force", *names)
        daemon.stop()

    def remove(self) -> None:
        """Stop, and leave nothing behind. Its mounts ended with its mount namespace."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            self.docker("version")
        except AssertionError:
            return False
        return True


def import_base(engine: Engine, name: str) -> None:
    """Give `engine` an image `name`: Debian with Python, and this machine's way to a package index.

    The file system is made by debootstrap once and kept in .clients; what pip needs here (certificates, an index of
    one's own) is added each time, since it may change.
    """
    with tempfile.TemporaryDirectory(prefix="pullthrough-base-") as folder:
        base = Path(folder) / "base.tar"
        shutil.copyfile(_file_system(), base)
        pip, certificates = _pip_configuration()
        with tarfile.open(base, "a") as tar:
            _add(tar, _PIP_CONF, pip)
            if certificates.is_file():
                _add(tar, _CERTIFICATES, certificates.read_bytes())
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        engine.docker("import", "--change", f"ENV {path}", "--change", 'CMD ["python3"]', str(base), name)


def proxy_arguments() -> list[str]:
    """`docker build` arguments that hand on the environment's HTTP proxies."""
    return [part for name in _PROXIES if os.environ.get(name) for part in ("--build-arg", name)]


def _check_programs() -> None:
    if os.geteuid() != 0:
        raise EngineUnavailable("an engine needs root")
    try:
        for name in ("dockerd", "docker", "debootstrap", "unshare", "nsenter"):
            program(name)
    except NotInstalled as error:
        raise EngineUnavailable(str(error)) from error


def _client() -> str:
    # Debian's own goes with Debian's dockerd; another one in front of it may want a plugin to build.
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else program("docker")


def _file_system() -> Path:
    suite, mirror = _debian()
    kind = hashlib.sha256(f"{_PACKAGES} {_NOT_IN_THE_BASE}".encode()).hexdigest()[:8]
    file = ROOT / ".clients" / "base" / f"{suite}-{platform.machine()}-{kind}.tar"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=file.parent) as folder:
        root, tar = Path(folder) / "root", Path(folder) / "base.tar"
        # In a mount namespace of its own: what it mounts below `root` is gone before `root` is removed.
        make = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", suite, str(root)]
        run("unshare", "--mount", *make, *([mirror] if mirror else []), timeout=_BUILD_SECONDS)
        without = [f"--exclude=./{path}" for path in _NOT_IN_THE_BASE]
        without += [f"--exclude=.{path}" for path in (_PIP_CONF, _CERTIFICATES)]
        run("tar", "--create", "--numeric-owner", "--file", tar, *without, "--directory", root, ".")
        tar.rename(file)
    return file


def _debian() -> tuple[str, str | None]:
    """The release that runs here, and where apt gets it from."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    form = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    targets = run("apt-get", "indextargets", "--format", form, "Created-By: Packages")
    for target in targets.splitlines():
        release, component, place = target.split(maxsplit=2)
        if (release, component) == (suite, "main") and place.startswith(("http://", "https://")):
            return suite, place
    return suite, None


def _pip_configuration() -> tuple[bytes, Path]:
    """A pip.conf that says what pip's configuration says here, and the certificates it goes with."""
    settings: dict[str, str] = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        key, _, value = line.partition("=")
        # The environment (`:env:`) is listed after the files, and wins.
        settings[key.rpartition(".")[2]] = value.strip("'\"")
    certificates = settings.get("cert") or os.environ.get("SSL_CERT_FILE") or _CERTIFICATES
    written = configparser.RawConfigParser()
    written["global"] = {key: settings[key] for key in _PIP_SETTINGS if key in settings}
    if Path(certificates).is_file():
        written["global"]["cert"] = _CERTIFICATES
    text = io.StringIO()
    written.write(text)
    return text.getvalue().encode(), Path(certificates)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(f".{name}")
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
