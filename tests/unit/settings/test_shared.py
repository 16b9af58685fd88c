"""What several replicas share: its mistakes, its passwords, and what a reload makes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.settings import ConfigurationError, Settings, applicable, load_settings, needs_restart

Load = Callable[..., Settings]

UPSTREAM = "upstreams: {a.test: {url: 'https://a.test'}}\n"
PASSWORD = "hunter2-hunter2"
VALKEY = f"redis://proxy:{PASSWORD}@valkey.test:6379/0?prefix=one"
BUCKET = f"s3://key:{PASSWORD}@bucket/prefix"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a document out of a file, with this environment."""
    file = tmp_path / "proxy.yaml"

    def read(document: str, **environment: str) -> Settings:
        file.write_text(UPSTREAM + document)
        return load_settings(file, environment)

    return read


def mistakes(load: Load, document: str, **environment: str) -> dict[str, str]:
    """The mistakes in `document` by their path."""
    with pytest.raises(ConfigurationError) as caught:
        load(document, **environment)
    assert PASSWORD not in str(caught.value) + repr(caught.value)
    return dict(mistake.split(": ", 1) for mistake in caught.value.mistakes)


def test_alone_by_default(load: Load) -> None:
    """Nothing is shared, and nothing else has to be given."""
    shared = load("").shared
    assert (shared.metadata, shared.blobs, shared.secret_file, shared.advertise) == (None, None, None, None)
    assert str(shared.listen) == "0.0.0.0:5002"
    assert not shared.blob_redirect


@pytest.mark.parametrize(
    "url",
    [
        "redis://valkey.test",
        "rediss://valkey.test:6380/1",
        "valkey://valkey.test",
        "valkeys://valkey.test",
        VALKEY,
        "redis+sentinel://one.test:26379,two.test:26379/main",
        f"valkey+sentinel://:{PASSWORD}@one.test/main",
        f"redis+cluster://:{PASSWORD}@one.test:6379,two.test:6379",
    ],
)
def test_where_metadata_may_be(load: Load, url: str) -> None:
    """Valkey or Redis, with TLS or without, at an address, in a Cluster, or where Sentinels say."""
    assert load(f"shared: {{metadata: '{url}', secret_file: /secret}}").shared.metadata == url


@pytest.mark.parametrize(
    ("written", "path"),
    [
        (f"metadata: 'http://x:{PASSWORD}@valkey.test', secret_file: s", "shared.metadata"),
        (f"metadata: 'redis://:{PASSWORD}@', secret_file: s", "shared.metadata"),
        (f"metadata: '{PASSWORD}', secret_file: s", "shared.metadata"),
        (f"metadata: 'redis://:{PASSWORD}@[x', secret_file: s", "shared.metadata"),
        (f"metadata: ['{VALKEY}'], secret_file: s", "shared.metadata"),
        (f"metadata: 'redis+sentinel://:{PASSWORD}@one.test', secret_file: s", "shared.metadata"),
        (f"metadata: 'redis+cluster+sentinel://:{PASSWORD}@one.test/main', secret_file: s", "shared.metadata"),
        (f"metadata: 'redis+other://:{PASSWORD}@one.test/main', secret_file: s", "shared.metadata"),
        (f"metadata: 'redis+sentinel://:{PASSWORD}@one.test/', secret_file: s", "shared.metadata"),
        (f"blobs: 'https://key:{PASSWORD}@bucket'", "shared.blobs"),
        (f"blobs: 's3:///{PASSWORD}'", "shared.blobs"),
        (f"blobs: 's3://key:{PASSWORD}@[bucket'", "shared.blobs"),
        (f"blobs: {{url: '{BUCKET}'}}", "shared.blobs"),
        ("listen: 5002", "shared.listen"),
        ("advertise: 'ftp://here.test'", "shared.advertise"),
        (f"advertise: 'http://me:{PASSWORD}@here.test'", "shared.advertise"),
        ("blob_redirect: perhaps", "shared.blob_redirect"),
        (f"password: {PASSWORD}", "shared.password"),
        (f"metadata: '{VALKEY}'", "shared"),
        ("blob_redirect: true", "shared"),
    ],
)
def test_a_mistake_is_reported_with_its_path(load: Load, written: str, path: str) -> None:
    """In words of ours, never with the value: it may hold a password."""
    assert list(mistakes(load, f"shared: {{{written}}}")) == [path]


def test_all_of_them_at_once(load: Load) -> None:
    """Each with its own path, also those between keys."""
    document = f"""
shared: {{metadata: '{PASSWORD}', blobs: '{PASSWORD}', listen: '0.0.0.0:5000', advertise: here}}
clusters: [{{name: a, blob_redirect: maybe}}]
"""
    assert set(mistakes(load, document)) == {
        "shared.metadata", "shared.blobs", "shared.listen", "shared.advertise", "clusters[0].blob_redirect",
    }  # fmt: skip


@pytest.mark.parametrize("document", ["shared: 5", "shared: [a]", "shared: ''"])
def test_what_is_no_mapping(load: Load, document: str) -> None:
    """Is one mistake."""
    assert list(mistakes(load, document)) == ["shared"]


@pytest.mark.parametrize(
    ("written", "more", "clashes"),
    [
        ("listen: '0.0.0.0:5000'", "", True),
        ("listen: '127.0.0.1:5001'", "", True),
        ("listen: '0.0.0.0:5002'", "", False),
        ("", "listen: [{address: '0.0.0.0:5002'}]", True),
        ("", "admin: {address: '0.0.0.0:5002'}", True),
        ("listen: '[::]:7000'", "listen: [{address: '[::0]:7000'}]", True),
    ],
)
def test_replicas_need_a_listener_of_their_own(load: Load, written: str, more: str, clashes: bool) -> None:
    """Where they are let in nobody else is; without shared metadata nothing listens there."""
    listen = f", {written}" if written else ""
    document = f"shared: {{metadata: '{VALKEY}', secret_file: s{listen}}}\n{more}"
    if clashes:
        assert list(mistakes(load, document)) == ["shared.listen"]
    else:
        load(document)
    load(f"shared: {{{written}}}\n{more}")


@pytest.mark.parametrize("blobs", ["", f"shared: {{blobs: '{BUCKET}'}}"])
def test_redirects_need_something_to_redirect_to(load: Load, blobs: str) -> None:
    """For all clusters or for one."""
    document = f"{blobs}\nclusters: [{{name: a, match: {{networks: [10.0.0.0/8]}}}}, {{name: b, blob_redirect: true}}]"
    if not blobs:
        assert list(mistakes(load, document)) == ["clusters[1].blob_redirect"]
        return
    settings = load(document)
    assert [cluster.blob_redirect for cluster in settings.clusters] == [None, True]
    for no in ("false", "'no'"):
        load(f"clusters: [{{name: a, blob_redirect: {no}}}]")


def test_passwords_are_not_shown(load: Load) -> None:
    """Neither of the whole settings nor of this part."""
    settings = load(f"shared: {{metadata: '{VALKEY}', blobs: '{BUCKET}', secret_file: s}}")
    for shown in (settings, settings.shared):
        for text in (repr(shown), str(shown), f"{shown}", f"{shown!r}"):
            assert PASSWORD not in text
            assert "valkey.test" not in text


def test_passwords_in_the_environment(load: Load) -> None:
    """They may come from there, and are not shown either where they are wrong."""
    url = f"http://:{PASSWORD}@valkey.test"
    found = mistakes(load, "shared: {secret_file: s}", PULLTHROUGH_SHARED__METADATA=url)
    assert list(found) == ["shared.metadata"]
    settings = load("shared: {secret_file: s}", PULLTHROUGH_SHARED__METADATA=VALKEY)
    assert settings.shared.metadata == VALKEY


@pytest.mark.parametrize("written", ["region.secret", "../keys/region.secret", "/etc/region.secret"])
def test_the_secret_is_beside_the_file(load: Load, tmp_path: Path, written: str) -> None:
    """A relative path begins where the configuration is, not where the program was started."""
    found = load(f"shared: {{metadata: '{VALKEY}', secret_file: {written}}}").shared.secret_file
    assert found is not None
    assert found.is_absolute()
    assert found.resolve() == (tmp_path / written).resolve()


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": VALKEY.replace("/0", "/1")},
        {"metadata": None, "blobs": BUCKET},
        {"blobs": BUCKET},
        {"secret_file": "/another"},
        {"listen": "0.0.0.0:6000"},
        {"advertise": "http://here.test:5002"},
        {"blobs": BUCKET, "blob_redirect": True},
    ],
)
def test_a_change_needs_a_restart(change: dict[str, Any]) -> None:
    """One line for all of it, without its values; what runs stays."""
    described = {"metadata": VALKEY, "secret_file": "/secret"}
    upstreams = {"a.test": {"url": "https://a.test"}}
    old = Settings(upstreams=upstreams, shared=described)
    new = Settings(upstreams=upstreams, shared=described | change)
    assert needs_restart(old, new) == ["shared was changed, which needs a restart"]
    assert applicable(old, new).shared == old.shared
    assert needs_restart(old, old.model_copy(deep=True)) == []
