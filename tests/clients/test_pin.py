"""What `pullthrough pin` writes is what a real registry has, and what a client pulls by it."""

from pathlib import Path

import pytest

from tests.clients.conftest import Origin, StartProxy
from tests.clients.process import run
from tests.clients.proxy_process import PULLTHROUGH


@pytest.mark.parametrize("through_a_proxy", [False, True])
def test_pinned_to_a_real_registrys_index(
    origin: Origin, start_proxy: StartProxy, tmp_path: Path, through_a_proxy: bool
) -> None:
    """A compose file, straight and through a proxy: the index's digest, for one HEAD."""
    index = origin.index
    registry = "registry.test" if through_a_proxy else f"127.0.0.1:{origin.upstream.port}"
    options = ["--proxy", f"http://127.0.0.1:{start_proxy().port}"] if through_a_proxy else []
    text = f"services:\n  a: {{image: '{registry}/{index.repository}:{index.tag}'}} # a\n"
    file = tmp_path / "compose.yaml"
    file.write_text(text)
    mark = origin.upstream.mark()

    run(PULLTHROUGH, "pin", *options, file)

    assert file.read_text() == text.replace(f":{index.tag}'", f":{index.tag}@{index.digest}'")
    asked = [(request.method, request.path.partition("?")[0]) for request in origin.upstream.requests(mark)]
    assert asked == [("HEAD", f"/v2/{index.repository}/manifests/{index.tag}")]
