"""Environment variables over the file."""

import pytest

from proxy.settings.environment import overlay

SETTINGS = {"admin", "cache", "log", "trusted_proxies", "upstreams"}


def laid(document: dict[str, object], **environment: str) -> dict[str, object]:
    """`document` with the variables (their prefix left out here) over it; none of them has a mistake."""
    assert (
        list(overlay(document, {f"PULLTHROUGH_{name}": value for name, value in environment.items()}, SETTINGS)) == []
    )
    return document


def test_one_key_each_and_its_siblings_stay() -> None:
    """What stands between is made where the file has nothing."""
    document = laid({"cache": {"directory": "a", "max_size": "1GiB"}}, CACHE__DIRECTORY="/b", LOG__LEVEL="debug")
    assert document == {"cache": {"directory": "/b", "max_size": "1GiB"}, "log": {"level": "debug"}}


def test_lists_and_switches() -> None:
    """Lists as JSON or YAML."""
    document = laid({}, TRUSTED_PROXIES='["10.0.0.0/8"]', LOG__ACCESS="false")
    assert document == {"trusted_proxies": ["10.0.0.0/8"], "log": {"access": False}}


def test_a_mapping_that_the_file_says_twice_changes_in_one_place() -> None:
    """YAML's anchors make one object of both."""
    shared: dict[str, object] = {"url": "https://a.test"}
    document: dict[str, object] = {"upstreams": {"a": shared, "b": shared}}
    laid(document, UPSTREAMS__A__URL="https://c.test")
    assert document == {"upstreams": {"a": {"url": "https://c.test"}, "b": {"url": "https://a.test"}}}


def test_other_variables_are_nobodys() -> None:
    """Another prefix, no setting, and what Kubernetes injects."""
    assert laid({}, PORT="tcp://x", ADMIN_PORT="tcp://x", SERVICE_HOST="10.0.0.1") == {}
    assert list(overlay({}, {"OTHER_CACHE": "x", "cache": "x"}, SETTINGS)) == []


@pytest.mark.parametrize("value", ["[::]:5001", "[::1]:5001", "@me", "%x", "a: b", "/data #1"])
def test_text_is_text(value: str) -> None:
    """An address, a folder or a user name needs no YAML quotes inside the shell's."""
    assert laid({}, ADMIN__ADDRESS=value) == {"admin": {"address": value}}
