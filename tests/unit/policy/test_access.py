"""May this principal see this: proofs, outages, and Authorizations that say nothing."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.policy.access import (
    ANONYMOUS,
    Principal,
    Proof,
    client_principal,
    is_empty_authorization,
    own_principal,
    proof_counts,
    proof_counts_in_outage,
    proof_counts_when_deleted,
    public_principal,
    takes_basic,
)
from proxy.policy.freshness import lifetimes_of
from proxy.settings import ManifestSettings

NOW = 1_800_000_000.0
TIMES = lifetimes_of(ManifestSettings())
OWN = Principal("own", "own")
CLIENT = Principal("client", "c", "Basic secret")


def test_public_is_nobody_whose_pulls_are_counted_elsewhere() -> None:
    """The same rights, proofs and negative answers as nobody has; its rate limit is another one than either's."""
    public = public_principal(OWN)
    assert public == ANONYMOUS
    assert public.pulls_as == OWN
    assert len({public.limited_as, ANONYMOUS.limited_as, OWN.limited_as}) == 3


def test_a_proof_counts_for_proof_ttl() -> None:
    """5 minutes, and no proof never counts."""
    assert proof_counts(Proof(NOW), CLIENT, NOW + 299, TIMES)
    assert not proof_counts(Proof(NOW), CLIENT, NOW + 300, TIMES)
    assert not proof_counts(None, CLIENT, NOW, TIMES)


@pytest.mark.parametrize(("principal", "longer"), [(ANONYMOUS, 86400), (OWN, 86400), (CLIENT, 3600)])
def test_in_an_outage_it_counts_longer(principal: Principal, longer: float) -> None:
    """stale_if_error for anonymous and the proxy's own; proof_stale_if_error for a client's."""
    assert proof_counts_in_outage(Proof(NOW), principal, NOW + 300 + longer - 1, TIMES)
    assert not proof_counts_in_outage(Proof(NOW), principal, NOW + 300 + longer, TIMES)
    assert not proof_counts_in_outage(None, principal, NOW, TIMES)


@pytest.mark.parametrize("principal", [ANONYMOUS, OWN, CLIENT])
def test_a_clock_set_back_does_not_make_proofs_last(principal: Principal) -> None:
    """A proof from far in the future counts no more than one from far in the past."""
    assert not proof_counts(Proof(NOW), principal, NOW - 301, TIMES)
    assert not proof_counts_in_outage(Proof(NOW), principal, NOW - 10 * 86400, TIMES)


@pytest.mark.parametrize("principal", [ANONYMOUS, OWN, CLIENT])
def test_strict_proofs_count_no_longer_in_an_outage(principal: Principal) -> None:
    """What is not proved now is refused, whatever fails."""
    strict = lifetimes_of(ManifestSettings(strict_proofs=True))
    assert proof_counts_in_outage(Proof(NOW), principal, NOW + 299, strict)
    assert not proof_counts_in_outage(Proof(NOW), principal, NOW + 300, strict)


@pytest.mark.parametrize("principal", [ANONYMOUS, OWN])
def test_offline_a_proof_has_no_end(principal: Principal) -> None:
    """Of nobody, and of the proxy's own credential; nobody can be asked whether it still counts. Strict ones have."""
    offline = lifetimes_of(ManifestSettings(), offline=True)
    assert proof_counts_in_outage(Proof(NOW), principal, NOW + 1e9, offline)
    assert not proof_counts_in_outage(None, principal, NOW, offline)
    strict = lifetimes_of(ManifestSettings(strict_proofs=True), offline=True)
    assert not proof_counts_in_outage(Proof(NOW), principal, NOW + 300, strict)


def test_offline_a_clients_own_proof_ends_as_in_any_outage() -> None:
    """An hour after it would have had to be renewed."""
    offline = lifetimes_of(ManifestSettings(), offline=True)
    assert proof_counts_in_outage(Proof(NOW), CLIENT, NOW + 3899, offline)
    assert not proof_counts_in_outage(Proof(NOW), CLIENT, NOW + 3900, offline)


def test_what_is_deleted_is_given_to_those_with_a_proof() -> None:
    """Nobody's and the proxy's own count without end, a client's as long as it counts unasked; strict ones too."""
    times = lifetimes_of(ManifestSettings(serve_deleted=True))
    for principal in (ANONYMOUS, OWN):
        assert proof_counts_when_deleted(Proof(NOW), principal, NOW + 1e9, times)
        assert not proof_counts_when_deleted(None, principal, NOW, times)
        strict = lifetimes_of(ManifestSettings(serve_deleted=True, strict_proofs=True))
        assert not proof_counts_when_deleted(Proof(NOW), principal, NOW + 300, strict)
    assert proof_counts_when_deleted(Proof(NOW), CLIENT, NOW + 299, times)
    assert not proof_counts_when_deleted(Proof(NOW), CLIENT, NOW + 300, times)
    assert not proof_counts_when_deleted(Proof(NOW), ANONYMOUS, NOW, lifetimes_of(ManifestSettings()))


def bearer(claims: object) -> str:
    packed = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"Bearer head.{packed}.signature"


def test_no_proof_counts_beyond_its_tokens_life() -> None:
    """Not before `proof_ttl` has passed, and not in an outage: the registry itself has set the end."""
    principal = client_principal(b"key", "reg.test", bearer({"exp": NOW + 60}), takes_basic=False)
    assert proof_counts(Proof(NOW), principal, NOW + 59, TIMES)
    assert not proof_counts(Proof(NOW), principal, NOW + 60, TIMES)
    assert not proof_counts_in_outage(Proof(NOW), principal, NOW + 60, TIMES)


@pytest.mark.parametrize(
    "header",
    ["Bearer opaque", "Bearer a.b.c", "Bearer a.é.c", "Basic a.b.c", bearer([]), bearer({}), bearer({"exp": None}),
     bearer({"exp": "soon"}), bearer({"exp": [1]}), bearer(1), "Bearer ..", "Bearer a." + "W1tb" * 1000 + ".c"],
)  # fmt: skip
def test_a_token_that_does_not_say_when_it_ends(header: str) -> None:
    """Counts for `proof_ttl`, whatever it is made of."""
    principal = client_principal(b"key", "reg.test", header, takes_basic=True)
    assert principal.expires is None
    assert proof_counts(Proof(NOW), principal, NOW + 299, TIMES)


def test_who_is_who() -> None:
    """Another header, registry, credential or random key is another principal; the same are the same."""
    keys = [
        client_principal(b"key", "a.test", "Bearer 1", takes_basic=False).key,
        client_principal(b"key", "a.test", "Bearer 2", takes_basic=False).key,
        client_principal(b"key", "b.test", "Bearer 1", takes_basic=False).key,
        client_principal(b"other", "a.test", "Bearer 1", takes_basic=False).key,
        own_principal(b"key", "a.test", "Bearer 1").key,
        own_principal(b"key", "a.test", "robot").key,
        ANONYMOUS.key,
    ]
    assert len(set(keys)) == len(keys)
    assert client_principal(b"key", "a.test", "Bearer 1", takes_basic=True).key == keys[0]


def basic(text: bytes) -> str:
    return "Basic " + base64.b64encode(text).decode()


@pytest.mark.parametrize(
    ("header", "expected"),
    [(basic(b"alice:wonder"), ("alice", "wonder")), (basic(b"a:b:c"), ("a", "b:c")), (basic(b":x"), ("", "x")),
     (basic("ü:ß".encode()), ("ü", "ß")), (basic(b"\xff:x"), None), (basic(b"alice"), None), ("Basic !!", None),
     ("Bearer x", None), ("basic " + basic(b"a:b")[6:] + " ", ("a", "b"))],
)  # fmt: skip
def test_user_and_password(header: str, expected: tuple[str, str] | None) -> None:
    """As RFC 7617 has them, only where the proxy takes them itself."""
    assert client_principal(b"key", "a.test", header, takes_basic=True).basic == expected
    assert client_principal(b"key", "a.test", header, takes_basic=False).basic is None


@pytest.mark.parametrize(
    ("login", "renamed", "secure", "allow_plain", "expected"),
    [
        (False, False, True, True, False),
        (True, False, True, False, True),
        (False, True, True, False, True),
        (True, True, False, False, False),
        (False, True, False, True, True),
    ],
)
def test_when_the_proxy_asks_for_user_and_password(
    login: bool, renamed: bool, secure: bool, allow_plain: bool, expected: bool
) -> None:
    """Where a token of the upstream's own would be of no use, or nobody would ask for one; never in the open."""
    assert takes_basic(login, renamed, secure, allow_plain) is expected


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
    assert "wonder" not in repr(client_principal(b"key", "a.test", basic(b"alice:wonder"), takes_basic=True))
    assert Principal("client", "c", "other") == CLIENT
