"""Sticky tags as nodes and operators meet them: times of clusters, purge, hold, and an upstream that is gone."""

import itertools
import json
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.conftest import Origin, StartProxy
from tests.clients.layout import Layer, Layout
from tests.clients.nodes import KINDS
from tests.clients.process import free_port, wait_for
from tests.clients.proxy_process import REGISTRY, Proxy
from tests.clients.registries import Upstream

REPOSITORY = "team/sticky"
WORKERS = 2

Push = Callable[[Upstream, str], str]


@pytest.fixture
def push(scratch: Path) -> Push:
    """Pushes another image under a tag of team/sticky, by skopeo, each time; gives its digest."""
    seeds = itertools.count(1)

    def push(upstream: Upstream, tag: str) -> str:
        layout = Layout(Path(tempfile.mkdtemp(dir=scratch)))
        descriptor = layout.image([Layer("sticky", 4000, 700 + next(seeds))])
        layout.tag(tag, descriptor)
        upstream.push(layout.path, tag, REPOSITORY)
        return str(descriptor["digest"])

    return push


def reference(tag: str) -> str:
    return f"{REGISTRY}/{REPOSITORY}:{tag}"


def wait_until(moment: float) -> None:
    wait_for("a moment", lambda: time.monotonic() >= moment)


# Times.

QUICK, SLOW = 4.0, 12.0


@pytest.mark.parametrize("origin", ["distribution-3.1"], indirect=True)
def test_two_clusters_with_times_of_their_own(origin: Origin, start_proxy: StartProxy, push: Push) -> None:
    """A tag that moves: each cluster's nodes have the old image as long as their time says, whatever the other's is.

    They share one entry: what one cluster's time has brought the other has too.
    """
    door = free_port()
    proxy = start_proxy(
        doors=[door],
        manifests={"tag_ttl": f"{SLOW:.0f}s"},
        clusters=[
            {
                "name": "quick",
                "match": {"listeners": [f"127.0.0.1:{door}"]},
                "manifests": {"tag_ttl": f"{QUICK:.0f}s"},
            },
            {"name": "slow"},
        ],
    )
    old = {tag: push(origin.upstream, tag) for tag in ("shared", "slowly")}
    with ExitStack() as stack:
        slow = [stack.enter_context(KINDS[kind].node(proxy)) for kind in ("containerd-2", "crane")]
        quick = [stack.enter_context(KINDS[kind].node(proxy.at(door))) for kind in ("containerd-2", "crane")]
        began = time.monotonic()
        assert {tag: slow[0].pull(REPOSITORY, tag) for tag in old} == old
        cached = time.monotonic()
        new = {tag: push(origin.upstream, tag) for tag in old}
        mark = origin.upstream.mark()

        assert {node.pull(REPOSITORY, "shared") for node in (*quick, *slow)} == {old["shared"]}
        assert time.monotonic() - began < QUICK, "this machine is too slow for the test's times"
        wait_until(cached + QUICK)
        assert {node.pull(REPOSITORY, "shared") for node in slow} == {old["shared"]}
        assert {node.pull(REPOSITORY, "shared") for node in quick} == {new["shared"]}
        assert {node.pull(REPOSITORY, "shared") for node in slow} == {new["shared"]}
        assert proxy.tag_digest(REPOSITORY, "slowly") == old["slowly"]
        assert time.monotonic() - began < SLOW, "this machine is too slow for the test's times"
        wait_until(cached + SLOW)
        assert {node.pull(REPOSITORY, "slowly") for node in slow} == {new["slowly"]}

    asked = [request for request in origin.upstream.requests(mark) if request.on_manifest]
    assert sorted((request.method, request.path.rpartition("/")[2]) for request in asked) == sorted(
        (method, rest) for tag in old for method, rest in (("HEAD", tag), ("GET", new[tag]))
    )
    (entry,) = json.loads(proxy.operate("tags", reference("shared"), "--json"))["tags"]
    assert entry["digest"] == new["shared"]
    assert set(entry["clusters"]) == {"quick", "slow"}


# Under control.


def seen_by_many(proxy: Proxy, tag: str, nodes: int = 60) -> set[str]:
    """The digests that so many nodes get at once, each on a connection of its own: some at every worker."""
    with ThreadPoolExecutor(nodes) as pool:
        answers = [pool.submit(proxy.get, f"/v2/{REGISTRY}/{REPOSITORY}/manifests/{tag}") for _ in range(nodes)]
    return {answer.result().digest for answer in answers}


def test_purge_with_two_workers(origin: Origin, start_proxy: StartProxy, push: Push) -> None:
    """Once `pullthrough purge` has returned everybody gets the new image, at whatever worker, for one pull upstream."""
    proxy, tag = start_proxy(workers=WORKERS, manifests={"tag_ttl": "1h"}), "purged"
    old = push(origin.upstream, tag)
    assert seen_by_many(proxy, tag) == {old}
    for _ in range(3):
        new = push(origin.upstream, tag)
        assert seen_by_many(proxy, tag) == {old}
        mark = origin.upstream.mark()

        assert proxy.operate("purge", reference(tag)) == f"{reference(tag)} is forgotten\n"

        assert seen_by_many(proxy, tag) == {new}
        assert [request.method for request in origin.upstream.requests(mark)] == ["GET"]
        old = new
    for kind in ("containerd-2", "skopeo-path", "crane"):
        with KINDS[kind].node(proxy) as node:
            assert node.pull(REPOSITORY, tag) == old


@pytest.mark.parametrize("origin", ["docker-registry-2.8"], indirect=True)
def test_hold_while_the_upstream_moves(origin: Origin, start_proxy: StartProxy, push: Push) -> None:
    """Nodes keep getting what is held; operators see who got which digest, and let the tag go when they want to."""
    tag, other_node = "held", "127.0.0.2"
    proxy = start_proxy(workers=WORKERS, manifests={"tag_ttl": "1s", "drift_interval": "1s"})
    old = push(origin.upstream, tag)
    with KINDS["containerd-2"].node(proxy) as containerd, KINDS["skopeo-path"].node(proxy) as skopeo:
        assert {node.pull(REPOSITORY, tag) for node in (containerd, skopeo)} == {old}
        assert proxy.get(f"/v2/{REGISTRY}/{REPOSITORY}/manifests/{tag}", source=other_node).digest == old

        assert proxy.operate("hold", f"{reference(tag)}@{old}") == f"{reference(tag)} is held at {old}\n"
        new = push(origin.upstream, tag)

        wait_for("the new one to be seen", lambda: new in proxy.operate("tags", "--drifted"), within=60)
        assert {node.pull(REPOSITORY, tag) for node in (containerd, skopeo)} == {old}
        assert seen_by_many(proxy, tag) == {old}
        for said in (proxy.operate("tags", "--drifted"), proxy.operate("tags", reference(tag))):
            assert said.startswith(f"{reference(tag)}  DRIFTED\n  serves    {old}")
            assert f"  upstream  {new}\n" in said
            assert {"127.0.0.1", other_node} == set(re.findall(r"^    (\S+) \(default\) \d+ pulls", said, re.MULTILINE))
            assert f"pullthrough release {reference(tag)}\n" in said

        assert proxy.operate("release", reference(tag)).startswith(f"{reference(tag)} is not held any more")
        assert proxy.operate("refresh", reference(tag)).startswith(f"{reference(tag)} is {new}")
        assert seen_by_many(proxy, tag) == {new}
        assert {node.pull(REPOSITORY, tag) for node in (containerd, skopeo)} == {new}
        assert proxy.operate("tags", "--drifted") == ""
