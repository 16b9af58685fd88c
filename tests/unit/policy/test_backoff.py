"""How long a failing upstream is left alone, and how much of it."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.reference import Repository
from proxy.policy.access import ANONYMOUS, Principal, public_principal
from proxy.policy.backoff import Circuit, Reason, Subject, open_circuit

REPOSITORY = Repository("docker.io", "library/nginx")
PRINCIPAL = Principal("client", "key")
NOW = 1_800_000_000.0


def subject(
    repository: Repository = REPOSITORY, principal: Principal = PRINCIPAL, kind: str = "manifest", reference: str = "v1"
) -> Subject:
    return Subject(repository, principal, kind, reference)


def test_what_a_failure_speaks_of() -> None:
    """Connections: the upstream. 5xx and time-outs: the repository's manifests. 429, token server: the principal."""
    upstream, principal, repository, reference, _ = subject().scopes()
    assert subject().scope_of("connect", False, False) == upstream
    assert subject().scope_of("5xx", False, False) == repository
    assert subject().scope_of("timeout", False, False) == repository
    assert subject().scope_of("429", False, False) == principal
    assert subject().scope_of("connect", True, False) == principal
    assert subject().scope_of("5xx", False, True) == reference


def test_where_rights_are_the_question_others_failures_are_no_answer() -> None:
    """No connection, a limit of the principal's own, and what it met itself with this reference say something; a 5xx
    that another principal met in the repository does not."""
    scopes = subject().scopes_of_rights()
    assert set(scopes) < set(subject().scopes())
    other = subject(principal=Principal("client", "other"))
    assert subject().scope_of("connect", False, False) in other.scopes_of_rights()
    for reason in ("5xx", "timeout", "429"):
        assert other.scope_of(reason, False, False) not in scopes
    assert other.own_scope() not in scopes
    assert subject(reference="v2").own_scope() not in scopes


def test_one_clients_429_stops_nobody_else() -> None:
    """Its scope is in no other principal's and in no other registry's."""
    scope = subject().scope_of("429", False, False)
    assert scope not in subject(principal=Principal("client", "other")).scopes()
    assert scope not in subject(Repository("ghcr.io", "library/nginx")).scopes()
    assert scope in subject(Repository("docker.io", "other")).scopes()


def test_nobodys_429_does_not_stop_who_pulls_with_a_credential() -> None:
    """Nor the other way round, nor the credential where it has rights of its own."""
    own = Principal("own", "own")
    scopes = [subject(principal=who).scope_of("429", False, False) for who in (ANONYMOUS, own, public_principal(own))]
    assert len(set(scopes)) == 3


def test_a_blobs_failure_stops_no_tag() -> None:
    """A 5xx for a blob is in no manifest's scopes, nor an invalid tag in another tag's."""
    assert subject(kind="blob").scope_of("5xx", False, False) not in subject().scopes()
    assert subject(reference="bad").scope_of("5xx", False, True) not in subject().scopes()


def test_a_circuit_is_open_then_due_then_over() -> None:
    """A step each; and over as well where the clock was set back before it was opened."""
    circuit = Circuit(1, NOW, 10.0, "5xx")
    states = [(circuit.is_open(NOW + after), circuit.is_over(NOW + after)) for after in (0, 9, 10, 19, 20, -1)]
    assert states == [(True, False), (True, False), (False, False), (False, False), (False, True), (True, True)]


def test_steps_double_up_to_a_minute() -> None:
    """1, 2, 4, … 60 seconds, with jitter of a quarter either way."""
    circuit: Circuit | None = None
    waits = []
    for _ in range(9):
        circuit = open_circuit(circuit, "5xx", None, NOW, 0.5)
        waits.append(circuit.until - NOW)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert open_circuit(None, "5xx", None, NOW, 0.0).until - NOW == 0.75
    assert open_circuit(None, "5xx", None, NOW, 1.0).until - NOW == 1.25


def test_retry_after_is_obeyed_where_it_is_longer() -> None:
    """Up to an hour; a shorter one does not shorten our own step, nonsense does nothing."""
    assert open_circuit(None, "429", 120.0, NOW, 0.5).until == NOW + 120
    assert open_circuit(None, "429", 1e9, NOW, 0.5).until == NOW + 3600
    assert open_circuit(None, "429", 0.1, NOW, 0.5).until == NOW + 1
    assert open_circuit(None, "429", -5.0, NOW, 0.5).until == NOW + 1


@given(st.integers(0, 10**9), st.none() | st.floats(0, 1e12), st.floats(0, 1), st.sampled_from(["connect", "429"]))
def test_it_always_ends(failures: int, after: float | None, jitter: float, reason: Reason) -> None:
    """However often it failed: the wait is positive and an hour at most."""
    circuit = open_circuit(Circuit(failures, NOW, 1.0, "5xx"), reason, after, NOW, jitter)
    assert 0 < circuit.until - NOW <= 3600
    assert (circuit.failures, circuit.reason) == (failures + 1, reason)
