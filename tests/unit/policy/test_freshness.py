"""Fresh, stale, expired; lifetimes laid over each other; clocks that were set back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.policy.freshness import Freshness, freshness, lifetimes_of
from proxy.settings import ManifestOverrides, ManifestSettings

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


def test_the_last_override_wins() -> None:
    """The file's, the upstream's over it, the cluster's over both; a zero is a value too, None is none."""
    upstream = ManifestOverrides.model_validate({"tag_ttl": "1h", "negative_ttl": "0s"})
    cluster = ManifestOverrides.model_validate({"tag_ttl": "2h"})
    times = lifetimes_of(ManifestSettings(), upstream, cluster)
    assert (times.tag_ttl, times.negative_ttl, times.stale_if_error) == (7200, 0, 86400)


def test_the_first_rule_that_fits_a_tag_gives_its_ttl() -> None:
    """Shell patterns over the whole tag, case-sensitive; a tag that fits none has `tag_ttl`."""
    rules = [{"tags": "v1.*", "ttl": "7d"}, {"tags": "v*", "ttl": "1d"}, {"tags": "[0-9]*", "ttl": "1h"}]
    times = lifetimes_of(ManifestSettings.model_validate({"tag_rules": rules}))
    assert [times.ttl_of(tag) for tag in ("v1.2", "v2", "3.4", "V1.2", "latest", "xv1.2")] == [
        7 * 86400, 86400, 3600, 600, 600, 600,
    ]  # fmt: skip


def test_rules_are_overridden_as_a_whole() -> None:
    """An upstream's rules replace the file's; an empty list of a cluster's takes all of them away."""
    base = ManifestSettings.model_validate({"tag_rules": [{"tags": "*", "ttl": "1h"}]})
    other = ManifestOverrides.model_validate({"tag_rules": [{"tags": "a", "ttl": "2h"}]})
    none = ManifestOverrides.model_validate({"tag_rules": []})
    assert lifetimes_of(base).ttl_of("b") == 3600
    assert lifetimes_of(base, other).ttl_of("b") == 600
    assert lifetimes_of(base, other, none).ttl_of("a") == 600
