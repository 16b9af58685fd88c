"""Who is compared: this proxy, in one way or more, and those others that are installed."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers import CACHES, nginx_files
from benchmarks.programs import LOAD, SERVER, Bench, NotInstalled, NotStarted, Origin, Server, get
from benchmarks.report import HERE
from benchmarks.watch import cpu_seconds

Sides = dict[str, Server]
# As in production: with a log of all requests.
LOGGED: dict[str, Any] = {"log": {"access": True}}
PARSED = f"{HERE}, parsed"
FILES = "nginx files"


def far_origin(bench: Bench, *blobs: tuple[int, int], **options: Any) -> Origin:
    """An origin that shares the load's processor."""
    with bench.on(LOAD):
        return bench.origin(*blobs, **options)


def proxy(bench: Bench, origin: Origin, **more: Any) -> Server:
    """This proxy on the server's processor."""
    with bench.on(SERVER):
        return bench.proxy(origin, **(LOGGED | more))


def others(bench: Bench, origin: Origin, names: Mapping[str, Callable[[Bench, Origin], Server]] = CACHES) -> Sides:
    """The other caches that are installed, on the server's processor; what is not there is said."""
    found: Sides = {}
    for name, start in names.items():
        try:
            with bench.on(SERVER):
                found[name] = start(bench, origin)
        except (NotInstalled, NotStarted) as error:
            print(f"  without {name}: {str(error).splitlines()[0]}")
    return found


def files(bench: Bench, contents: Mapping[str, bytes | Path]) -> Server:
    """nginx with these files, by the paths that they are asked for, on the server's processor."""
    root = bench.folder()
    for path, content in contents.items():
        file = root / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.symlink_to(content)
    with bench.on(SERVER):
        return nginx_files(bench, root)


def turns(bench: Bench, sides: Mapping[str, Server]) -> Iterator[tuple[str, Server]]:
    """Each side in turn, as often as is asked for: what slows the machine for a while slows them all."""
    for _ in range(bench.turns):
        yield from sides.items()


def fetched(server: Server, path: str) -> bytes:
    """What the server has there, which it keeps from then on."""
    return get(f"http://127.0.0.1:{server.port}{path}", timeout=120)


def cpu(server: Server) -> float:
    """Seconds of processor time that it has used."""
    return cpu_seconds(server.pids())
