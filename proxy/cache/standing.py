"""What a principal's right to content that is here is worth: without asking, in an outage, and once that is deleted."""

from dataclasses import dataclass

from proxy.cache.ask import Ask
from proxy.policy.access import (
    Proof,
    proof_counts,
    proof_counts_in_outage,
    proof_counts_when_deleted,
    proof_ends,
)
from proxy.policy.freshness import Freshness


@dataclass(frozen=True, slots=True)
class Standing:
    """A principal's proof for the repository; `gone`: when the upstream said that what it wants is there no more."""

    proof: Proof | None
    gone: float | None = None

    def is_proved(self, ask: Ask, now: float) -> bool:
        """Is it known without asking that `ask` may read the repository?"""
        return proof_counts(self.proof, ask.principal, now, ask.lifetimes)

    def proved_until(self, ask: Ask) -> float | None:
        """When `is_proved` ends if nothing changes (Unix seconds); None without a proof."""
        return proof_ends(self.proof, ask.principal, ask.lifetimes)

    def counts(self, ask: Ask, now: float) -> bool:
        """Is the right to the content good without asking?"""
        if self.is_proved(ask, now):
            return True
        if self.gone is None or not self.counts_when_deleted(ask, now):
            return False
        # The 404 renewed no proof, but it was no refusal: it puts that question off for as long as a proof would.
        return abs(now - self.gone) < ask.lifetimes.proof_ttl

    def counts_in_outage(self, ask: Ask, now: float) -> bool:
        """Is it good while the upstream cannot be asked?"""
        counts = proof_counts_in_outage(self.proof, ask.principal, now, ask.lifetimes)
        return counts or (self.gone is not None and self.counts_when_deleted(ask, now))

    def counts_when_deleted(self, ask: Ask, now: float) -> bool:
        """Is it good although the upstream has just said 404?"""
        return proof_counts_when_deleted(self.proof, ask.principal, now, ask.lifetimes)

    def freshness(self, ask: Ask, now: float) -> Freshness:
        """Of content by its digest: what does not change is fresh, but whether it is still gone is asked again."""
        if self.gone is None:
            return Freshness.FRESH
        return ask.lifetimes.freshness_of(self.gone, now, ask.lifetimes.tag_ttl)
