"""The fixtures: each upstream once for all tests, its images pushed once."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tests.clients.images import Image, Images
from tests.clients.proxy_process import Proxy
from tests.clients.registries import REGISTRIES, Upstream

StartProxy = Callable[..., Proxy]


@dataclass
class Origin:
    """An upstream and what was pushed to it."""

    upstream: Upstream
    made: Images

    @cached_property
    def index(self) -> Image:
        return self.made.index(self.upstream)

    @cached_property
    def schema2(self) -> Image:
        return self.made.schema2(self.upstream)

    @cached_property
    def official(self) -> Image:
        """The same under library/, as Docker Hub's official images are."""
        return self.made.schema2(self.upstream, "library/schema2")

    @cached_property
    def large(self) -> Image:
        return self.made.large(self.upstream)

    @cached_property
    def blob(self) -> str:
        """A blob of a good 100 MB in team/blob."""
        return self.made.blob(self.upstream, 100_000_000)

    @cached_property
    def versions(self) -> tuple[str, str]:
        """Two manifests of team/moving."""
        return self.made.versions(self.upstream)

    @property
    def images(self) -> tuple[Image, Image, Image]:
        return self.index, self.schema2, self.large


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards: pytest would keep gigabytes of the last three runs."""
    with tempfile.TemporaryDirectory(prefix="pt-clients-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def made(scratch: Path) -> Images:
    """The images, made once for both upstreams."""
    return Images(scratch / "layouts")


@pytest.fixture(scope="session", params=list(REGISTRIES))
def origin(request: pytest.FixtureRequest, scratch: Path, made: Images) -> Iterator[Origin]:
    """Each of the two registries."""
    upstream = Upstream(request.param, scratch / request.param)
    yield Origin(upstream, made)
    upstream.stop()


@pytest.fixture
def start_proxy(origin: Origin, scratch: Path) -> Iterator[StartProxy]:
    """Starts proxies for the upstream, with keys of their configuration to choose; each has a cache of its own."""
    with ExitStack() as running:

        def start(**more: Any) -> Proxy:
            proxy = Proxy(Path(tempfile.mkdtemp(dir=scratch)) / "proxy", origin.upstream, **more)
            running.callback(proxy.stop)
            return proxy

        yield start
