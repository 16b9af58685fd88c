"""How long what was answered may be answered again without looking."""

from typing import Any

import pytest

from proxy.cache.ask import Ask
from proxy.cache.known import Known, Lasting
from proxy.cache.origin import Content
from proxy.cache.records import TagRecord
from proxy.cache.standing import Standing
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.policy.access import ANONYMOUS, Proof
from proxy.policy.freshness import lifetimes_of
from proxy.settings import ManifestSettings

NOW = 1_800_000_000.0
BODY = b'{"schemaVersion": 2}'
DIGEST = Digest.of(BODY)


class Holds:
    """A stamp."""

    def holds(self) -> bool:
        return True


STAMP = Holds()
CONTENT = Content(DIGEST, "application/json", len(BODY), BODY, NOW - 50)


def ask(**manifests: Any) -> Ask:
    return Ask(
        Repository("registry.test", "team/app"), ANONYMOUS, lifetimes_of(ManifestSettings(**manifests)), "default"
    )


def known(**more: Any) -> Known:
    """A tag that was checked 20 s ago, proved 10 s ago."""
    record = TagRecord(str(DIGEST), NOW - 40, NOW - 20)
    found: dict[str, Any] = {"standing": Standing(proof()), "content": CONTENT, "stamp": STAMP, "record": record}
    return Known(**(found | more))


def proof(at: float = NOW - 10) -> Proof:
    return Proof(at)


@pytest.mark.parametrize(
    ("tag_ttl", "proof_ttl", "until"), [("1m", "5m", NOW + 40), ("10m", "5m", NOW + 290), ("1h", "1h", NOW + 3580)]
)
def test_a_tag_lasts_to_the_first_of_its_ends(tag_ttl: str, proof_ttl: str, until: float) -> None:
    """That of its freshness, counted from its last check, and that of the proof; its age counts from the check."""
    asked = ask(tag_ttl=tag_ttl, proof_ttl=proof_ttl, refresh_ahead=0)
    lasting = known().lasting(asked, "v1")
    assert lasting == Lasting(until, STAMP, NOW - 20, asked.lifetimes.ttl_of("team/app", "v1"))


def test_a_digest_lasts_as_long_as_the_proof() -> None:
    """It has no ttl; its age counts from when it came."""
    assert known(record=None).lasting(ask(tag_ttl="1m", proof_ttl="5m"), None) == Lasting(
        NOW + 290, STAMP, NOW - 50, None
    )


@pytest.mark.parametrize(
    "lacks", [{"content": None}, {"standing": Standing(None)}, {"standing": Standing(proof(), NOW - 5)}],
    ids=["content", "proof", "gone"],
)  # fmt: skip
def test_what_has_to_be_looked_at_each_time(lacks: dict[str, Any]) -> None:
    """Without the content, without a proof, and what the upstream has deleted."""
    assert known(**lacks).lasting(ask(), "v1") is None
    assert known(**lacks).lasting(ask(), None) is None
