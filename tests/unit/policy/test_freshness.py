"""Fresh, stale, expired; lifetimes laid over each other; clocks that were set back."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from proxy.policy.freshness import Freshness, freshness, lifetimes_of, side_by_side
from proxy.server.house import lifetimes_table
from proxy.settings import ManifestOverrides, ManifestSettings, Settings
from proxy.settings.models import UpstreamManifestOverrides

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("age", "state"),
    [
        (0, Freshness.FRESH),
        (599.9, Freshness.FRESH),
        (600, Freshness.STALE),
        (600 + 86399.9, Freshness.STALE),
        (600 + 86400, Freshness.EXPIRED),
        (1e12, Freshness.EXPIRED),
        (-30, Freshness.FRESH),
        (-60.1, Freshness.STALE),
        (-1e12, Freshness.STALE),
    ],
)
def test_the_three_states_and_their_borders(age: float, state: Freshness) -> None:
    """Fresh until the TTL, stale until stale_if_error after it. After the clock was set back far: only stale."""
    assert freshness(NOW - age, NOW, 600, 86400) is state


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 1e6), st.floats(0, 1e6))
def test_states_only_get_older(first: float, later: float, ttl: float, stale: float) -> None:
    """As time passes an entry never becomes fresher."""
    order = [Freshness.FRESH, Freshness.STALE, Freshness.EXPIRED]
    before, after = (order.index(freshness(0, age, ttl, stale)) for age in sorted((first, later)))
    assert before <= after


def test_a_ttl_of_zero_is_never_fresh() -> None:
    """Every request asks, and outages are still bridged."""
    assert freshness(NOW, NOW, 0, 60) is Freshness.STALE
    assert freshness(NOW, NOW, 0, 0) is Freshness.EXPIRED


# Of each key, what the file, an upstream and a cluster may say, and what it is where nobody says anything.
SAID: dict[str, tuple[Any, Any, Any, Any]] = {
    "tag_ttl": ("1m", "2m", "3m", 600.0),
    "stale_if_error": ("1h", "2h", "0s", 86400.0),
    "negative_ttl": ("1s", "0s", "3s", 10.0),
    "revalidate_timeout": ("1s", "2s", "250ms", 3.0),
    "proof_ttl": ("1m", "2m", "3m", 300.0),
    "proof_stale_if_error": ("0s", "2h", "3h", 3600.0),
    "strict_proofs": (True, False, True, False),
    "refresh_ahead": ("10%", 0, "90%", 0.0),
    "serve_deleted": (True, False, True, False),
    "tag_rules": ([{"tags": "a", "ttl": "1s"}], [], [{"tags": "c", "ttl": "3s", "repositories": "c/*"}], ()),
}


def test_every_key_is_tried() -> None:
    """What a cluster can override is in the table above."""
    assert set(SAID) == set(ManifestOverrides.model_fields)


@pytest.mark.parametrize("levels", list(product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("key", SAID)
def test_the_last_level_that_says_something_counts(key: str, levels: tuple[bool, bool, bool]) -> None:
    """The file's, the upstream's over it, the cluster's over both, in all eight combinations; a zero, a false and an
    empty list are values too. Other keys stay what they were."""
    file, upstream, cluster = ({key: value} if said else {} for said, value in zip(levels, SAID[key][:3], strict=True))
    times = lifetimes_of(
        ManifestSettings.model_validate(file),
        UpstreamManifestOverrides.model_validate(upstream),
        ManifestOverrides.model_validate(cluster),
    )
    expected = next((value for said, value in zip(levels[::-1], SAID[key][2::-1], strict=True) if said), None)
    alone = lifetimes_of(ManifestSettings() if expected is None else ManifestSettings.model_validate({key: expected}))
    assert times == alone
    if not any(levels):
        assert getattr(times, key) == SAID[key][3]


@pytest.mark.parametrize(("share", "age", "ahead"), [
    ("10%", 539.9, False), ("10%", 540, True), ("0%", 599, False), ("90%", 60, True), ("90%", 59, False),
])  # fmt: skip
def test_a_tag_is_refreshed_ahead_in_the_last_share_of_its_ttl(share: str, age: float, ahead: bool) -> None:
    """Its own TTL, by the rules; none of it by default."""
    times = lifetimes_of(ManifestSettings.model_validate({"refresh_ahead": share}))
    assert times.is_ahead("r", "t", age) is ahead
    rules = [{"tags": "t", "ttl": "1d"}]
    slow = lifetimes_of(ManifestSettings.model_validate({"refresh_ahead": share, "tag_rules": rules}))
    assert slow.is_ahead("r", "t", age * 144) is ahead


def test_not_all_of_a_ttl_can_be_ahead() -> None:
    """A tag that is asked for with every request has a TTL of zero."""
    with pytest.raises(ValidationError):
        ManifestSettings.model_validate({"refresh_ahead": "91%"})


def test_nothing_ends_where_nobody_can_be_asked() -> None:
    """Offline a tag of any age is stale at worst."""
    times = lifetimes_of(ManifestSettings(), offline=True)
    states = [times.freshness_of(NOW - age, NOW, 600) for age in (599, 600, 1e9)]
    assert states == [Freshness.FRESH, Freshness.STALE, Freshness.STALE]


def test_a_cluster_alone_changes_nothing_for_the_others() -> None:
    """The table of clusters and registries: each has its own, by its registry's; the proxy itself has no cluster's."""
    upstreams = {
        "a.test": {"url": "http://a.test", "manifests": {"tag_ttl": "1h", "negative_ttl": "1m"}},
        "b.test": {"url": "http://b.test"},
    }
    clusters = [
        {"name": "strict", "match": {"hosts": ["x"]}, "manifests": {"tag_ttl": "1m", "stale_if_error": "0s"}},
        {"name": "lenient"},
    ]
    table = lifetimes_table(Settings.model_validate({"upstreams": upstreams, "clusters": clusters}))
    assert {key: (times.tag_ttl, times.stale_if_error, times.negative_ttl) for key, times in table.items()} == {
        ("", "a.test"): (3600, 86400, 60), ("", "b.test"): (600, 86400, 10),
        ("strict", "a.test"): (60, 0, 60), ("strict", "b.test"): (60, 0, 10),
        ("lenient", "a.test"): (3600, 86400, 60), ("lenient", "b.test"): (600, 86400, 10),
    }  # fmt: skip


def test_what_is_stored_is_kept_for_who_may_use_it_longest() -> None:
    """A cluster with short times stores lists and proofs for as long as any other may want them."""
    strict = lifetimes_of(
        ManifestSettings(), ManifestOverrides.model_validate({"stale_if_error": "0s", "proof_stale_if_error": "0s"})
    )
    together = side_by_side({"strict": strict, "lenient": lifetimes_of(ManifestSettings())})
    assert {(one.lists_kept, one.proofs_kept) for one in together.values()} == {(600 + 86400, 300 + 3600)}
    assert (together["strict"].stale_if_error, together["strict"].proof_stale_if_error) == (0, 0)


def test_the_first_rule_that_fits_a_tag_gives_its_ttl() -> None:
    """Shell patterns over the whole tag, case-sensitive; a tag that fits none has `tag_ttl`."""
    rules = [{"tags": "v1.*", "ttl": "7d"}, {"tags": "v*", "ttl": "1d"}, {"tags": "[0-9]*", "ttl": "1h"}]
    times = lifetimes_of(ManifestSettings.model_validate({"tag_rules": rules}))
    assert [times.ttl_of("team/app", tag) for tag in ("v1.2", "v2", "3.4", "V1.2", "latest", "xv1.2")] == [
        7 * 86400, 86400, 3600, 600, 600, 600,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("repository", "tag", "ttl"),
    [
        ("library/nginx", "latest", 60),
        ("library/nginx", "v1", 7 * 86400),
        ("library/a/b", "v1", 7 * 86400),
        ("library", "v1", 600),
        ("Library/nginx", "v1", 600),
        ("team/library/nginx", "v1", 600),
        ("team/app", "latest", 60),
        ("team/app", "sha256-0123.sig", 30),
        ("library/nginx", "sha256-0123.sig", 30),
        ("team/app", "1.0", 600),
    ],
)
def test_rules_may_be_for_some_repositories(repository: str, tag: str, ttl: float) -> None:
    """Both patterns have to fit; `*` goes over slashes; without one a rule is for all. The first that fits counts."""
    rules = [
        {"tags": "sha256-*.sig", "ttl": "30s"},
        {"tags": "latest", "ttl": "1m"},
        {"repositories": "library/*", "tags": "*", "ttl": "7d"},
    ]
    assert lifetimes_of(ManifestSettings.model_validate({"tag_rules": rules})).ttl_of(repository, tag) == ttl


def test_rules_are_overridden_as_a_whole() -> None:
    """An upstream's rules replace the file's; an empty list of a cluster's takes all of them away."""
    base = ManifestSettings.model_validate({"tag_rules": [{"tags": "*", "ttl": "1h"}]})
    other = ManifestOverrides.model_validate({"tag_rules": [{"tags": "a", "ttl": "2h"}]})
    none = ManifestOverrides.model_validate({"tag_rules": []})
    assert lifetimes_of(base).ttl_of("r", "b") == 3600
    assert lifetimes_of(base, other).ttl_of("r", "b") == 600
    assert lifetimes_of(base, other, none).ttl_of("r", "a") == 600
