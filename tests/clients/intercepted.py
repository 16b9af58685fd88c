"""Nodes that know of no proxy, in a network of their own, and what they reach: a registry with TLS, and its log-in.

Outside stand the registry and its token server, behind nginx with an authority that nodes trust anyhow; inside the
proxy and the nodes, each with a hosts file of its own. Addresses are public ones: nothing is tunnelled to others.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.clients.images import Image, pushed
from tests.clients.layout import Layer, Layout
from tests.clients.netns import Namespace
from tests.clients.process import Daemon, program, run
from tests.clients.proxy_process import PULLTHROUGH
from tests.clients.registries import Request, Upstream
from tests.clients.token_server import TokenServer
from tests.fakes.authority import Authority

PASSWORDS = {"alice": "wonder-51a7", "bob": "builder-90c2", "pusher": "heaven-7be0"}
RIGHTS = {"alice/app": {"alice"}, "open/app": {"", "alice", "bob"}}
NAME, LOGIN = "registry.test", "auth.test"
# Begins with a hosts file, and becomes the program behind it.
_WITH_HOSTS = 'mount --bind "$0" /etc/hosts && exec "$@"'


@dataclass
class World:
    """Everything there is, and how programs are run in it."""

    directory: Path
    space: Namespace
    upstream: Upstream
    tokens: TokenServer
    images: Mapping[str, Image]
    # Those of the registry's and the token server's certificate.
    outside: Path

    def inside(self, hosts: str, name: str) -> Sequence[str]:
        """What runs a program in there, with these lines as its hosts file."""
        file = self.directory / f"hosts-{name}"
        file.write_text(f"127.0.0.1 localhost\n{hosts}")
        return (*self.space.within, "unshare", "--mount", "sh", "-c", _WITH_HOSTS, str(file))

    def requests(self, since: int) -> list[Request]:
        """What reached the registry."""
        return list(self.upstream.requests(since))


@contextlib.contextmanager
def world(directory: Path, registry: str, realm: str) -> Iterator[World]:
    """One whose tokens are had at `realm`: https://auth.test/token, or under the registry's own name."""
    directory.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        space = stack.enter_context(Namespace("20.30"))
        images = _pushed(directory, registry)
        tokens = TokenServer(directory / "tokens", PASSWORDS, RIGHTS)
        stack.callback(tokens.stop)
        auth: dict[str, Any] = tokens.auth()
        auth["token"] |= {"realm": realm}
        upstream = Upstream(registry, directory / "registry", auth=auth, storage=directory / "open" / "storage")
        stack.callback(upstream.stop)
        authority = Authority(directory, "outside")
        made = World(directory, space, upstream, tokens, images, authority.ca)
        stack.callback(_front(made, authority).stop)
        yield made


class Interceptor:
    """The proxy: `https` in the registry's name, and `connect` for HTTPS_PROXY, both by its own authority."""

    def __init__(self, world: World, directory: Path, **more: Any) -> None:
        self.world = world
        self.directory = directory
        directory.mkdir(parents=True)
        self.address, self._admin = world.space.address, 5001
        self.ca = directory / "ca.crt"
        made = {"--certificate": self.ca, "--key": directory / "ca.key", "--name": NAME}
        run(PULLTHROUGH, "ca", "create", *(str(word) for pair in made.items() for word in pair))
        intercept = {"ca_certificate": "ca.crt", "ca_key": "ca.key"}
        document = {
            "listen": [
                {"address": f"{self.address}:443", "intercept": intercept},
                {"address": f"{self.address}:3128", "intercept": intercept, "connect": True},
            ],
            "admin": {"address": f"{self.address}:{self._admin}"},
            "cache": {"directory": str(directory / "cache"), "max_size": "4GiB", "min_free": "1MiB"},
            "upstreams": {
                NAME: {"url": f"https://{NAME}", "ca": str(world.outside), "token_realms": [LOGIN], "default": True}
            },
            "shutdown_timeout": "10s",
        } | more
        (directory / "proxy.yaml").write_text(yaml.safe_dump(document))
        outside = f"{world.space.host} {NAME} {LOGIN}\n"
        command: list[str | Path] = [*world.inside(outside, "proxy"), PULLTHROUGH, "serve"]
        command += ["--config", directory / "proxy.yaml"]
        self._daemon = Daemon(command, directory / "log")
        self._daemon.wait_until(lambda: self._ready())

    def stop(self) -> None:
        code = self._daemon.stop()
        assert code == 0, f"the proxy ended with {code}:\n{self.log()[-4000:]}"

    @property
    def pid(self) -> int:
        """All that came before it has become it."""
        return self._daemon.pid

    def log(self) -> str:
        return self._daemon.log.read_text()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        lines = self._told("/metrics").splitlines()
        samples = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rpartition(" ")[2]) for line in samples if all(label in line for label in wanted))

    def _told(self, path: str) -> str:
        return run("curl", "-sSf", "--max-time", "10", f"http://{self.address}:{self._admin}{path}")

    def _ready(self) -> bool:
        with contextlib.suppress(AssertionError):
            self._told("/readyz")
            return True
        return False


class Node:
    """A machine that reaches the proxy by a `hosts` entry, or by HTTPS_PROXY (`way`), and trusts its authority."""

    def __init__(self, proxy: Interceptor, directory: Path, way: str) -> None:
        world = proxy.world
        self.directory = directory
        directory.mkdir(parents=True)
        # What it trusts besides: the token server's, which nobody intercepts.
        trusted = directory / "trusted.crt"
        trusted.write_text(proxy.ca.read_text() + world.outside.read_text())
        self.env = {"SSL_CERT_FILE": str(trusted), "HOME": str(directory)}
        hosts = f"{proxy.address} {NAME}\n{world.space.host} {LOGIN}\n"
        if way == "https-proxy":
            self.env |= {"HTTPS_PROXY": f"http://{proxy.address}:3128"}
            hosts = ""
        self._within = world.inside(hosts, directory.name)

    def run(self, *words: str | Path) -> str:
        return run(*self._within, *self._found(words), env=self.env)

    def start(self, words: Sequence[str | Path]) -> Daemon:
        return Daemon([*self._within, *self._found(words)], self.directory / "log", self.env)

    @staticmethod
    def _found(words: Sequence[str | Path]) -> list[str]:
        return [program(str(words[0])), *map(str, words[1:])]


class Skopeo:
    """skopeo, logged in by its own command."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._auth = node.directory / "auth.json"
        self._count = 0

    def login(self, user: str, password: str) -> None:
        self._node.run("skopeo", "login", "--authfile", self._auth, "-u", user, "-p", password, NAME)

    def pull(self, repository: str) -> None:
        self._count += 1
        login = ["--authfile", self._auth] if self._auth.exists() else []
        target = self._node.directory / f"image{self._count}"
        self._node.run(
            *("skopeo", "--insecure-policy", "--override-os", "linux", "--override-arch", "amd64", "copy", "--quiet"),
            *map(str, login), f"docker://{NAME}/{repository}:v1", f"dir:{target}",
        )  # fmt: skip


class Containerd:
    """containerd 2.x, which pulls with what `ctr` is given."""

    def __init__(self, node: Node, socket: Path) -> None:
        self._node = node
        self._socket = socket
        self._user: list[str] = []

    def login(self, user: str, password: str) -> None:
        self._user = ["--user", f"{user}:{password}"]

    def pull(self, repository: str) -> None:
        self._node.run("ctr2", "-a", self._socket, "images", "pull", *self._user, f"{NAME}/{repository}:v1")


class Docker:
    """Docker's engine, logged in by its own command."""

    def __init__(self, node: Node, host: str) -> None:
        self._node = node
        self._command = ("docker", "--config", str(node.directory / "cli"), "--host", host)

    def login(self, user: str, password: str) -> None:
        self._node.run(*self._command, "login", "-u", user, "-p", password, NAME)

    def pull(self, repository: str) -> None:
        self._node.run(*self._command, "pull", "--quiet", f"{NAME}/{repository}:v1")


Client = Skopeo | Containerd | Docker


@contextlib.contextmanager
def client(kind: str, proxy: Interceptor, directory: Path, way: str) -> Iterator[Client]:
    """A fresh node with one of skopeo, containerd and Docker."""
    node = Node(proxy, directory, way)
    if kind == "skopeo":
        yield Skopeo(node)
        return
    socket, config = directory / "c.sock", directory / "config"
    if kind == "containerd":
        config.write_text(
            f'version = 3\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
            'disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]\n'
            f'[grpc]\n  address = "{socket}"\n'
        )
        daemon = node.start(["containerd2", "--config", config])
        made: Client = Containerd(node, socket)
    else:
        config.write_text(
            json.dumps(
                {
                    "data-root": f"{directory}/data", "exec-root": f"{directory}/exec", "pidfile": f"{directory}/pid",
                    "hosts": [f"unix://{socket}"], "bridge": "none", "iptables": False, "ip6tables": False,
                    "storage-driver": "vfs",
                }
            )
        )  # fmt: skip
        daemon = node.start(["dockerd", "--config-file", config])
        made = Docker(node, f"unix://{socket}")
    try:
        daemon.wait_until(lambda: _answers(kind, socket))
        yield made
    finally:
        daemon.stop()


def _answers(kind: str, socket: Path) -> bool:
    if not socket.exists():
        return False
    command = ("ctr2", "-a", str(socket)) if kind == "containerd" else ("docker", "-H", f"unix://{socket}")
    with contextlib.suppress(AssertionError):
        run(*command, "version", timeout=30)
        return True
    return False


def _pushed(directory: Path, registry: str) -> dict[str, Image]:
    """Images for everybody of `RIGHTS`, in a registry's storage; put there while nobody was asked for a token."""
    upstream = Upstream(registry, directory / "open")
    try:
        images = {}
        for number, repository in enumerate(RIGHTS, start=1):
            layout = Layout(directory / f"layout{number}")
            layout.tag("v1", layout.image([Layer("own", 3_000_000, 60 + number), Layer("small", 4000, 70 + number)]))
            upstream.push(layout.path, "v1", repository)
            images[repository] = pushed(upstream, repository)
        return images
    finally:
        upstream.stop()


def _front(made: World, authority: Authority) -> Daemon:
    """TLS for the registry and for the token server, each in its own name, and for the latter in the former's too."""
    directory, certificates = made.directory / "front", {}
    directory.mkdir()
    for name in (NAME, LOGIN):
        certificates[name] = authority.issue(f"/CN={name}", f"DNS:{name}")
    token = f"location /token {{ proxy_pass http://{made.tokens.place}; }}"
    registry = (
        f"location /v2/ {{ proxy_pass http://127.0.0.1:{made.upstream.port}; proxy_set_header Host $http_host; "
        "proxy_set_header X-Forwarded-Proto https; proxy_buffering off; proxy_max_temp_file_size 0; }"
    )
    servers = "".join(
        f"server {{ listen {made.space.host}:443 ssl; server_name {name}; client_max_body_size 0; "
        f"ssl_certificate {pair.certificate}; ssl_certificate_key {pair.key}; {token} "
        f"{registry if name == NAME else ''} }}\n"
        for name, pair in certificates.items()
    )
    config = directory / "nginx.conf"
    config.write_text(
        f"daemon off; pid {directory}/pid; error_log {directory}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n"
        f"client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/f;\n"
        f"uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n{servers}}}\n"
    )
    daemon = Daemon(["nginx", "-c", config, "-p", directory, "-e", directory / "error.log"], directory / "log")
    daemon.wait_until(lambda: _is_up(made))
    return daemon


def _is_up(made: World) -> bool:
    with contextlib.suppress(AssertionError):
        run("curl", "-sS", "--max-time", "5", "-o", "/dev/null", "-k", f"https://{made.space.host}/v2/")
        return True
    return False
