"""Where registries are asked."""

import pytest

from proxy.cli.pin.digests import Ways, url_of


@pytest.mark.parametrize(
    ("registry", "url"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("ghcr.io", "https://ghcr.io"),
        ("reg.test:5000", "https://reg.test:5000"),
        ("plain.test:5000", "http://plain.test:5000"),
        ("plain.test", "https://plain.test"),
        ("localhost", "http://localhost"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.1.2.3:5000", "http://127.1.2.3:5000"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("localhost.test", "https://localhost.test"),
        ("127.0.0.1.test", "https://127.0.0.1.test"),
    ],
)
def test_by_https_but_for_loopback_and_what_is_named(registry: str, url: str) -> None:
    """A name that only looks like loopback, or has no port where one was named, is another registry."""
    assert url_of(registry, Ways(plain_http=frozenset({"plain.test:5000"}))) == url
