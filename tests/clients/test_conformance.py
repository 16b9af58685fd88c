"""The OCI distribution specification's conformance suite: through the proxy as on the upstream itself."""

import re
import subprocess
import uuid
from collections import Counter
from pathlib import Path

import pytest

from tests.clients.conftest import Origin, StartProxy
from tests.clients.process import environment, program
from tests.clients.proxy_process import REGISTRY

_OUTCOME = re.compile(r"^ *(OCI Conformance Test/.+): (\w+)$", re.MULTILINE)

# Below this the suite did not run: it exits 0 when its configuration is wrong.
FEWEST = 20
FEWEST_OF_ALL = 800


def conformance(origin: Origin, port: int, prefix: str, results: Path) -> Counter[str]:
    """Run the suite on what the origin holds under team/index; gives how often each test passed."""
    image = origin.index
    env = {
        "OCI_REGISTRY": f"127.0.0.1:{port}",
        "OCI_TLS": "disabled",
        "OCI_VERSION": "1.1",
        "OCI_REPO1": f"{prefix}{image.repository}",
        "OCI_REPO2": f"{prefix}{image.repository}",
        "OCI_API_PUSH": "false",
        "OCI_API_BLOBS_DELETE": "false",
        "OCI_API_MANIFESTS_DELETE": "false",
        "OCI_API_TAGS_DELETE": "false",
        "OCI_RO_DATA_TAGS": image.tag,
        "OCI_RO_DATA_MANIFESTS": f"{image.digest} {image.platform_digest}",
        "OCI_RO_DATA_BLOBS": " ".join(image.blobs),
        "OCI_RO_DATA_REFERRERS": image.platform_digest,
        "OCI_RESULTS_DIR": str(results),
    }
    return passed(env, results, FEWEST)


def passed(env: dict[str, str], results: Path, fewest: int) -> Counter[str]:
    """Run the suite; gives how often each of its tests passed, of `fewest` at least that ran."""
    words = [program("conformance")]
    # Its exit code says little: 0 when the configuration is wrong, 2 since it panics in its YAML report when it may not
    # push. What it prints before that is complete: every test's full name and outcome.
    done = subprocess.run(
        words, env=environment(env), cwd=results, capture_output=True, text=True, timeout=240, check=False
    )
    outcomes = _OUTCOME.findall(done.stdout.partition("Configuration:")[0])
    assert len(outcomes) >= fewest, done.stderr
    return Counter(name for name, outcome in outcomes if outcome == "Pass")


def whole_conformance(port: int, repositories: tuple[str, str], results: Path) -> Counter[str]:
    """Run all of the suite, pull, push, discovery and management, in two repositories that are nobody else's."""
    results.mkdir()
    env = {
        "OCI_REGISTRY": f"127.0.0.1:{port}",
        "OCI_TLS": "disabled",
        "OCI_VERSION": "1.1",
        "OCI_REPO1": repositories[0],
        "OCI_REPO2": repositories[1],
        "OCI_RESULTS_DIR": str(results),
    }
    return passed(env, results, FEWEST_OF_ALL)


@pytest.mark.parametrize("prefix", ["", f"{REGISTRY}/"], ids=["default upstream", "path prefix"])
def test_whatever_passes_upstream_passes_through_the_proxy(
    origin: Origin, start_proxy: StartProxy, tmp_path: Path, prefix: str
) -> None:
    """Every test that passes on the registry itself passes through the proxy, cold and then out of the cache."""
    results = [tmp_path / name for name in ("upstream", "cold", "cached")]
    for folder in results:
        folder.mkdir()
    proxy = start_proxy()
    upstream = conformance(origin, origin.upstream.port, "", results[0])
    assert upstream["OCI Conformance Test/read-only/pull/blob-get"] == len(origin.index.blobs)

    cold = conformance(origin, proxy.port, prefix, results[1])
    cached = conformance(origin, proxy.port, prefix, results[2])

    assert upstream - cold == Counter()
    assert upstream - cached == Counter()


@pytest.mark.parametrize("mode", ["transparent", "metadata-only"])
@pytest.mark.parametrize("prefix", ["", f"{REGISTRY}/"], ids=["default upstream", "path prefix"])
def test_whatever_passes_upstream_passes_through_the_proxy_with_pushes(
    origin: Origin, start_proxy: StartProxy, tmp_path: Path, prefix: str, mode: str
) -> None:
    """With `push: forward` the whole suite has the same outcome for every test: what is pushed is seen at once."""
    proxy = start_proxy(clusters=[{"name": "default", "mode": mode, "push": "forward"}])
    unique = uuid.uuid4().hex[:8]
    upstream = whole_conformance(origin.upstream.port, (f"direct/{unique}a", f"direct/{unique}b"), tmp_path / "direct")

    through = whole_conformance(
        proxy.port, (f"{prefix}through/{unique}a", f"{prefix}through/{unique}b"), tmp_path / "through"
    )

    assert upstream["OCI Conformance Test/nested-index/push/blob-post-put"] > 0
    assert upstream - through == Counter()
