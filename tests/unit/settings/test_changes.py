"""What a changed configuration can change in a program that runs."""

from typing import Any

import pytest

from proxy.settings import Settings, applicable, needs_restart

UPSTREAMS = {"a.test": {"url": "https://a.test"}}


def described(**more: Any) -> Settings:
    return Settings(**({"upstreams": UPSTREAMS} | more))


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("listen", {"listen": [{"address": "127.0.0.1:1"}]}),
        ("admin.address", {"admin": {"address": "127.0.0.1:1"}}),
        ("cache.directory", {"cache": {"directory": "elsewhere"}}),
    ],
)
def test_what_needs_a_restart(path: str, more: dict[str, Any]) -> None:
    """One line with its path; it stays as it was, so the next change is held against what runs."""
    old, new = described(), described(**more)
    assert needs_restart(old, new) == [f"{path} was changed, which needs a restart"]
    assert applicable(old, new) == old


def test_workers_need_a_restart() -> None:
    """Processes are started once."""
    old = described()
    new = old.model_copy(update={"workers": 3})
    assert needs_restart(old, new) == ["workers was changed, which needs a restart"]
    assert applicable(old, new).workers == 1


def test_everything_else_counts_at_once() -> None:
    """Nothing of it is named, all of it is taken."""
    new = described(
        upstreams={"b.test": {"url": "http://b.test", "cache_share": "10%"}},
        clusters=[{"name": "edge", "mode": "metadata-only"}],
        trusted_proxies=["10.0.0.0/8"],
        cache={"max_size": "5GiB", "min_free": "1MiB", "keep": ["*"]},
        manifests={"tag_ttl": "1s"},
        log={"level": "debug"},
        shutdown_timeout="1s",
    )
    assert needs_restart(described(), new) == []
    assert applicable(described(), new) == new


def test_all_are_named() -> None:
    """Several changes are several lines, and what can count of the same file does."""
    new = described(listen=[{"address": "127.0.0.1:1"}], cache={"directory": "x", "max_size": "1GiB"})
    assert len(needs_restart(described(), new)) == 2
    taken = applicable(described(), new).cache
    assert (str(taken.directory), taken.max_size) == ("cache", 1 << 30)
