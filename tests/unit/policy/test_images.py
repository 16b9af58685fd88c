"""Which images a credential is for."""

import pytest

from proxy.policy.images import by_precision, image_matches


@pytest.mark.parametrize(
    ("pattern", "image", "matches"),
    [
        # The examples of kubelet's documentation.
        ("123456789.dkr.ecr.us-east-1.amazonaws.com", "123456789.dkr.ecr.us-east-1.amazonaws.com/app", True),
        ("*.dkr.ecr.*.amazonaws.com", "123456789.dkr.ecr.us-east-1.amazonaws.com/app", True),
        ("*.azurecr.io", "mine.azurecr.io/app", True),
        ("*.k8s.io", "k8s.io/app", False),
        ("*.io", "registry.k8s.io/app", False),
        ("app*.k8s.io", "app5.k8s.io/x", True),
        ("k8s.*", "k8s.io/x", True),
        ("*.*.registry.io", "a.b.registry.io/x", True),
        ("*.*.registry.io", "b.registry.io/x", False),
        # Ports are the same or there is none; globs are nothing special there, nor in the path.
        ("registry.io:8080/path", "registry.io:8080/path/app", True),
        ("registry.io:8080", "registry.io/path", False),
        ("registry.io", "registry.io:8080/path", False),
        ("registry.io:*", "registry.io:8080/path", False),
        ("registry.io/*", "registry.io/path", False),
        ("registry.io/path", "registry.io/other", False),
        ("registry.io/path", "registry.io/pathology", True),
        # No host is another one's beginning, whatever stands in the path.
        ("registry.io", "registry.io.evil.test/app", False),
        ("registry.io", "evil.test/registry.io", False),
        ("*", "registry.io/app", False),
        ("*", "localhost/app", True),
        ("Registry.IO", "registry.io/app", True),
        ("", "registry.io/app", False),
    ],
)
def test_patterns(pattern: str, image: str, matches: bool) -> None:
    """As many labels, each of them fitting; the same port; a path that begins so."""
    assert image_matches(pattern, image) is matches


def test_the_most_precise_comes_first() -> None:
    """Longer before shorter, without an asterisk before with one."""
    patterns = ["*.registry.io", "a.registry.io", "a.registry.io/team", "a.registry.io/team/app"]
    assert by_precision(patterns) == [
        "a.registry.io/team/app", "a.registry.io/team", "a.registry.io", "*.registry.io",
    ]  # fmt: skip
