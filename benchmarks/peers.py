"""What others offer for the same work. All raise NotStarted, or NotInstalled.

The caches are configured as well as they can be; nginx as a file server, which is a measure and no peer, has its
defaults.
"""

import json
import os
import re
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.programs import Bench, NotInstalled, Origin, Server, free_port, program


def distribution(bench: Bench, origin: Origin, folder: Path | None = None) -> Server:
    """distribution's own pull-through cache."""
    folder, port = folder or bench.folder(), free_port()
    document = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / "storage")},
            "cache": {"blobdescriptor": "inmemory"},
        },
        "http": {"addr": f"127.0.0.1:{port}", "secret": "only-for-benchmarks"},
        "proxy": {"remoteurl": f"http://127.0.0.1:{origin.port}"},
    }
    (folder / "config.yml").write_text(json.dumps(document))
    command = [program("distribution", "registry", "docker-registry"), "serve", str(folder / "config.yml")]
    process = bench.start(command, folder / "log")
    bench.wait_until(process, f"http://127.0.0.1:{port}/v2/", folder / "log")
    return Server(process, port)


def zot(bench: Bench, origin: Origin) -> Server:
    """zot, which syncs an image when it is asked for."""
    folder, port = bench.folder(), free_port()
    registry = {
        "urls": [f"http://127.0.0.1:{origin.port}"],
        "onDemand": True,
        "tlsVerify": False,
        "content": [{"prefix": "**"}],
    }
    document = {
        "storage": {"rootDirectory": str(folder / "storage"), "gc": False},
        "http": {"address": "127.0.0.1", "port": str(port)},
        "log": {"level": "error", "output": "/dev/null"},
        "extensions": {"sync": {"enable": True, "registries": [registry]}},
    }
    (folder / "config.json").write_text(json.dumps(document))
    process = bench.start([program("zot"), "serve", str(folder / "config.json")], folder / "log")
    bench.wait_until(process, f"http://127.0.0.1:{port}/v2/", folder / "log")
    return Server(process, port)


def nginx_files(bench: Bench, root: Path) -> Server:
    """nginx with one worker that serves the files below `root`, by sendfile; it opens them for each request."""
    return _nginx(bench, "", f"root {root};")


def nginx_cache(bench: Bench, origin: Origin, valid: str = "10m") -> Server:
    """nginx with one worker as a caching proxy: one request upstream at a time for each thing, stale in trouble."""
    keep = "proxy_cache_path {folder}/cache keys_zone=all:16m max_size=100g inactive=1d use_temp_path=off;"
    rules = (
        f"proxy_pass http://127.0.0.1:{origin.port}; proxy_http_version 1.1; proxy_set_header Connection '';"
        f"proxy_cache all; proxy_cache_key $uri; proxy_cache_valid 200 {valid}; proxy_cache_lock on;"
        "proxy_cache_lock_timeout 100s; proxy_cache_lock_age 100s; proxy_cache_background_update on;"
        "proxy_cache_use_stale error timeout updating http_500 http_502 http_503 http_504 http_429;"
    )
    return _nginx(bench, keep, f"location / {{ {rules} }}")


# By name, as tables have them.
CACHES: dict[str, Callable[[Bench, Origin], Server]] = {
    "distribution": distribution,
    "zot": zot,
    "nginx cache": nginx_cache,
}


def versions() -> list[str]:
    """What those that are installed say they are."""
    said = []
    for names, option in (
        (("distribution", "registry", "docker-registry"), "--version"),
        (("zot",), "--version"),
        (("nginx",), "-v"),
    ):
        try:
            done = subprocess.run([program(*names), option], capture_output=True, text=True, check=False)
        except NotInstalled:
            continue
        words = (done.stdout + done.stderr).replace("/", " ").split()
        number = next((word for word in words if re.match(r"v?\d+\.\d+", word)), "of an unknown version")
        said.append(f"{names[0]} {number}")
    return said


def _nginx(bench: Bench, shared: str, rules: str) -> Server:
    folder, port = bench.folder(), free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"worker_rlimit_nofile {files}; events {{ worker_connections {min(16384, files // 2)}; }}\n"
        "http { access_log off; sendfile on; default_type application/octet-stream; keepalive_requests 1000000000;\n"
        f"{shared.format(folder=folder)}\n"
        f"server {{ listen 127.0.0.1:{port} backlog=1024; {rules} }} }}\n"
    )
    command = [program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    process = bench.start(command, folder / "log")
    bench.wait_until(process, f"http://127.0.0.1:{port}/", folder / "log")
    return Server(process, port)
