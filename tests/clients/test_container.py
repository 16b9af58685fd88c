"""The container image, built and run by a real Docker engine, and what docker-compose.yml mounts into it."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.settings import load_settings
from tests.clients.engine import Engine, EngineUnavailable, import_base, proxy_arguments
from tests.clients.layout import Layer, Layout
from tests.clients.process import ROOT, Daemon, run, wait_for

IMAGE = "pullthrough-under-test"
UPSTREAM = "127.0.0.1:5002"

# What a cautious operator takes away; the image runs without all of it.
LOCKED = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "host"]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine that has built the image, in an empty network."""
    try:
        engine = Engine()
    except EngineUnavailable as error:
        pytest.skip(str(error))
    try:
        engine.start("machine")
        import_base(engine, "python:3.12-slim")
        engine.docker(
            "build", "--network", "host", *proxy_arguments(), "--tag", IMAGE, str(ROOT), env={"DOCKER_BUILDKIT": "1"}
        )
        engine.stop()
        engine.start("own")
        yield engine
    except EngineUnavailable as error:
        pytest.skip(str(error))
    finally:
        engine.remove()


@contextmanager
def running(engine: Engine, *options: str) -> Iterator[str]:
    """A container of the image with `options`, ready; gives its name."""
    name = engine.docker("run", "--detach", *LOCKED, "--health-interval", "1s", *options, IMAGE).strip()
    try:
        wait_for(f"{IMAGE} is healthy", lambda: healthy(engine, name), within=60)
        yield name
    finally:
        engine.docker("rm", "--force", name)


def healthy(engine: Engine, name: str) -> bool:
    state = engine.inspect(name)["State"]
    assert state["Running"], f"{state}\n{engine.docker('logs', name)}"
    return bool(state["Health"]["Status"] == "healthy")


@contextmanager
def upstream(engine: Engine, folder: Path) -> Iterator[None]:
    """Debian's docker-registry at UPSTREAM in the engine's network, with its data in `folder`."""
    folder.mkdir(exist_ok=True)
    config = folder / "config.yml"
    config.write_text(
        json.dumps(
            {
                "version": "0.1",
                "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
                "http": {"addr": UPSTREAM},
            }
        )
    )
    registry = Daemon(engine.inside("docker-registry", "serve", str(config)), folder / "log")
    registry.wait_until(lambda: answers(engine, f"http://{UPSTREAM}/v2/"))
    try:
        yield
    finally:
        registry.stop()


def answers(engine: Engine, url: str) -> bool:
    try:
        engine.fetch(url)
    except AssertionError:
        return False
    return True


@pytest.fixture(scope="module")
def pushed(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Layout, str]:
    """A registry's folder with `hello:v1` in it, what that image is made of, and its manifest's digest."""
    layout = Layout(tmp_path_factory.mktemp("layout"))
    manifest = layout.image([Layer("small", 1, seed=1), Layer("large", 20 << 20, seed=2)])
    layout.tag("v1", manifest)
    folder = tmp_path_factory.mktemp("upstream")
    with upstream(engine, folder):
        copy = ("skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false")
        run(*engine.inside(*copy, f"oci:{layout.path}:v1", f"docker://{UPSTREAM}/hello:v1"))
    return folder, layout, str(manifest["digest"])


def configuration(folder: Path) -> str:
    """`docker run`'s option that mounts the shipped configuration with one more upstream."""
    document = yaml.safe_load((ROOT / "config" / "proxy.yaml").read_text())
    document["upstreams"]["registry.local"] = {"url": f"http://{UPSTREAM}"}
    file = folder / "proxy.yaml"
    file.write_text(yaml.safe_dump(document))
    file.chmod(0o644)
    return f"{file}:/etc/pullthrough/proxy.yaml:ro"


def blob_requests(engine: Engine) -> int:
    """How many blobs the running proxy has asked its upstreams for."""
    metrics = engine.fetch("http://127.0.0.1:5001/metrics")
    counts = re.findall(r'^pullthrough_upstream_requests_total\{kind="blob".* ([0-9.]+)$', metrics, re.MULTILINE)
    return round(sum(map(float, counts)))


def test_the_image_says_how_it_wants_to_be_run(engine: Engine) -> None:
    """A user by number, the cache in a volume, both ports, SIGTERM, and `pullthrough` as the command."""
    config: dict[str, Any] = engine.inspect(IMAGE)["Config"]
    assert config["User"] == "65532:65532"
    assert list(config["Volumes"]) == ["/var/cache/pullthrough"]
    assert sorted(config["ExposedPorts"]) == ["5000/tcp", "5001/tcp"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"] == ["pullthrough"]
    assert config["Cmd"] == ["serve", "--config", "/etc/pullthrough/proxy.yaml"]


def test_the_image_holds_what_runs_and_no_more(engine: Engine) -> None:
    """The installed program answers; what installed it, the sources and the tests stayed in the first stage."""
    look = "pullthrough --version; ls -d /opt/pullthrough/bin/pip /src /proxy /tests /Dockerfile 2>/dev/null; :"
    said = engine.docker("run", "--rm", *LOCKED, "--entrypoint", "sh", IMAGE, "-c", look).splitlines()
    assert len(said) == 1
    assert said[0].startswith("pullthrough")


def test_it_becomes_healthy_as_shipped_and_stops_on_sigterm(engine: Engine) -> None:
    """Without any option but a volume: ready, not root, and `docker stop` ends it with status 0."""
    with running(engine, "--volume", "as-shipped:/var/cache/pullthrough") as name:
        assert engine.docker("exec", name, "id", "-u").strip() == "65532"
        assert engine.fetch("http://127.0.0.1:5000/v2/") == "{}"
        engine.docker("stop", "--time", "30", name)
        state = engine.inspect(name)["State"]
        assert (state["ExitCode"], state["OOMKilled"]) == (0, False), engine.docker("logs", name)


def test_docker_pulls_through_it_and_the_volume_outlives_it(
    engine: Engine, pushed: tuple[Path, Layout, str], tmp_path: Path
) -> None:
    """The first pull fills the volume; the second, and one after a restart without the upstream, come from there."""
    folder, layout, digest = pushed
    reference = "127.0.0.1:5000/registry.local/hello:v1"
    options = ["--volume", configuration(tmp_path), "--volume", "pulled:/var/cache/pullthrough"]
    blobs = {blob for blob in layout.blobs if blob != digest}

    with upstream(engine, folder), running(engine, *options) as name:
        fetched = 0
        for _ in range(2):
            engine.docker("pull", reference)
            assert engine.inspect(reference)["RepoDigests"][0].endswith(f"@{digest}")
            engine.docker("rmi", reference)
            # A large blob comes by several ranges.
            fetched = fetched or blob_requests(engine)
            assert len(blobs) <= blob_requests(engine) == fetched
        engine.docker("stop", "--time", "30", name)
        assert engine.inspect(name)["State"]["ExitCode"] == 0, engine.docker("logs", name)

    volume = Path(json.loads(engine.docker("volume", "inspect", "pulled"))[0]["Mountpoint"])
    files = [file for file in (volume / "blobs").rglob("*") if file.is_file()]
    assert {f"sha256:{file.name}" for file in files} == blobs
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.name for file in files)
    assert {file.stat().st_uid for file in files} == {65532}

    with running(engine, *options):
        engine.docker("pull", reference)
        assert engine.inspect(reference)["RepoDigests"][0].endswith(f"@{digest}")
        assert blob_requests(engine) == 0


def test_the_try_out_knows_the_shipped_registries_and_one_more() -> None:
    """config/compose.yaml is proxy.yaml with the local registry and an admin listener that Prometheus reaches."""
    shipped, tried = (load_settings(ROOT / "config" / name) for name in ("proxy.yaml", "compose.yaml"))
    assert {name: tried.upstreams[name] for name in shipped.upstreams} == shipped.upstreams
    assert set(tried.upstreams) - set(shipped.upstreams) == {"registry.local"}
    assert tried.upstreams["registry.local"].url == "http://registry:5000"
    assert str(tried.admin.address) == "0.0.0.0:5001"
    assert tried.admin.token_file == ROOT / "config" / "compose.token"


def test_docker_compose_1_29_reads_the_compose_file() -> None:
    """Debian's docker-compose takes the file as it is, and all that it mounts from here exists."""
    services = yaml.safe_load(run("docker-compose", "--file", ROOT / "docker-compose.yml", "config"))["services"]
    assert set(services) == {"proxy", "registry", "prometheus"}
    sources = [mount.partition(":")[0] for service in services.values() for mount in service["volumes"]]
    assert all(Path(source).is_file() for source in sources if source.startswith("/"))
