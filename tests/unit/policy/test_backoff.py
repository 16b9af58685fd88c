"""How long a failing upstream is left alone, and how much of it."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.reference import Repository
from proxy.policy.access import Principal
from proxy.policy.backoff import Circuit, Reason, open_circuit, scope_of, scopes_of

REPOSITORY = Repository("docker.io", "library/nginx")
PRINCIPAL = Principal("client", "key")
NOW = 1_800_000_000.0


def test_what_a_failure_speaks_of() -> None:
    """Connections: the upstream. 5xx and time-outs: the repository. 429 and the token server: this principal."""
    upstream, repository, principal = scopes_of(REPOSITORY, PRINCIPAL)
    assert scope_of("connect", False, REPOSITORY, PRINCIPAL) == upstream
    assert scope_of("5xx", False, REPOSITORY, PRINCIPAL) == repository
    assert scope_of("timeout", False, REPOSITORY, PRINCIPAL) == repository
    assert scope_of("429", False, REPOSITORY, PRINCIPAL) == principal
    assert scope_of("connect", True, REPOSITORY, PRINCIPAL) == principal


def test_one_clients_429_stops_nobody_else() -> None:
    """Its scope is in no other principal's and in no other registry's."""
    scope = scope_of("429", False, REPOSITORY, PRINCIPAL)
    assert scope not in scopes_of(REPOSITORY, Principal("client", "other"))
    assert scope not in scopes_of(Repository("ghcr.io", "library/nginx"), PRINCIPAL)
    assert scope in scopes_of(Repository("docker.io", "other"), PRINCIPAL)


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
    circuit = open_circuit(Circuit(failures, NOW, "5xx"), reason, after, NOW, jitter)
    assert 0 < circuit.until - NOW <= 3600
    assert (circuit.failures, circuit.reason) == (failures + 1, reason)
