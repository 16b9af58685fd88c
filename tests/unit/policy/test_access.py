"""May this principal see this: proofs, outages, and Authorizations that say nothing."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.policy.access import Principal, Proof, is_empty_authorization, proof_counts, proof_counts_in_outage
from proxy.policy.freshness import lifetimes_of
from proxy.settings import ManifestSettings

NOW = 1_800_000_000.0
TIMES = lifetimes_of(ManifestSettings())
ANONYMOUS = Principal("anonymous", "anonymous")
OWN = Principal("own", "own")
CLIENT = Principal("client", "c", "Basic secret")


def test_a_proof_counts_for_proof_ttl() -> None:
    """5 minutes, and no proof never counts."""
    assert proof_counts(Proof(NOW), NOW + 299, TIMES)
    assert not proof_counts(Proof(NOW), NOW + 300, TIMES)
    assert not proof_counts(None, NOW, TIMES)


@pytest.mark.parametrize(("principal", "longer"), [(ANONYMOUS, 86400), (OWN, 86400), (CLIENT, 3600)])
def test_in_an_outage_it_counts_longer(principal: Principal, longer: float) -> None:
    """stale_if_error for anonymous and the proxy's own; proof_stale_if_error for a client's."""
    assert proof_counts_in_outage(Proof(NOW), principal, NOW + 300 + longer - 1, TIMES)
    assert not proof_counts_in_outage(Proof(NOW), principal, NOW + 300 + longer, TIMES)
    assert not proof_counts_in_outage(None, principal, NOW, TIMES)


@pytest.mark.parametrize("principal", [ANONYMOUS, OWN, CLIENT])
def test_a_clock_set_back_does_not_make_proofs_last(principal: Principal) -> None:
    """A proof from far in the future counts no more than one from far in the past."""
    assert not proof_counts(Proof(NOW), NOW - 301, TIMES)
    assert not proof_counts_in_outage(Proof(NOW), principal, NOW - 10 * 86400, TIMES)


@pytest.mark.parametrize("header", ["", " ", "Basic", "Basic ", "basic Og==", "Basic  Og== ", "BASIC"])
def test_an_authorization_that_says_nothing(header: str) -> None:
    """Blank, or Basic without user and password: some clients send that, and mean nobody."""
    assert is_empty_authorization(header)


@pytest.mark.parametrize(
    "header",
    ["Bearer x", "Bearer", "Basic " + base64.b64encode(b"a:").decode(), "Basic " + base64.b64encode(b":a").decode(),
     "Basic !!", "Basic Og", "Digest x", "x"],
)  # fmt: skip
def test_an_authorization_that_says_something(header: str) -> None:
    """Whatever is not certainly empty is the client's own, garbage included."""
    assert not is_empty_authorization(header)


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_any_ascii_header_is_judged(header: str) -> None:
    """Never an exception."""
    assert isinstance(is_empty_authorization(f"Basic {header}"), bool)


@pytest.mark.parametrize("header", ["Basic é", "Basic \udcff"])
def test_a_header_that_is_not_ascii_is_judged_too(header: str) -> None:
    """Clients send what they like."""
    assert not is_empty_authorization(header)


def test_a_principals_authorization_is_in_no_repr() -> None:
    """Logs and tracebacks print representations; equality is by key alone."""
    assert "secret" not in repr(CLIENT)
    assert Principal("client", "c", "other") == CLIENT
