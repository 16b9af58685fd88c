"""Which connections may stay, and which make room."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.policy.admission import Admission, Admitted, counted_as
from proxy.policy.cluster import parse_ip

LATER = 10.0


def admission(*clients: str, now: float = 0.0) -> Admission[str]:
    """With connections named after their clients: a0, a1, b0."""
    held: Admission[str] = Admission()
    seen: dict[str, int] = {}
    for client in clients:
        seen[client] = seen.get(client, -1) + 1
        assert held.admit(f"{client}{seen[client]}", client, 0, 0, now) == Admitted()
    return held


def test_without_limits_all_stay() -> None:
    """0 is no limit."""
    held: Admission[int] = Admission()
    assert all(held.admit(number, "a", 0, 0, 0.0) == Admitted() for number in range(100))
    assert len(held) == 100


def test_the_one_at_rest_the_longest_makes_room() -> None:
    """Busy ones stay, however old; who was answered just now counts as new."""
    held = admission("a", "a", "b")
    held.busy("a0")
    held.busy("a1")
    held.rests("a1", 5.0)
    assert held.admit("c0", "c", 3, 0, LATER) == Admitted(closing="b0")
    assert held.admit("c1", "c", 3, 0, LATER) == Admitted(closing="a1")
    assert len(held) == 3


def test_who_has_too_many_makes_room_among_its_own() -> None:
    """Others are not touched, though they have been at rest longer."""
    held = admission("b", "a", "a")
    assert held.admit("a2", "a", 0, 2, LATER) == Admitted(closing="a0")
    assert held.admit("b1", "b", 0, 2, LATER) == Admitted()


def test_where_all_are_busy_the_new_one_is_refused() -> None:
    """It is told which limit it met, and holds no place."""
    held = admission("a", "b")
    for connection in ("a0", "b0"):
        held.busy(connection)
    assert held.admit("a1", "a", 0, 1, LATER) == Admitted(refused="client-connections")
    assert held.admit("c0", "c", 2, 0, LATER) == Admitted(refused="connections")
    assert len(held) == 2
    held.gone("a0")
    assert held.admit("a1", "a", 2, 1, LATER) == Admitted()


def test_a_new_connection_has_a_moment() -> None:
    """Its request is on the way: it does not make room at once."""
    held = admission("a", now=LATER)
    assert held.admit("b0", "b", 1, 0, LATER) == Admitted(refused="connections")
    assert held.admit("b0", "b", 1, 0, LATER + 1) == Admitted(closing="a0")


def test_what_was_refused_or_is_gone_changes_nothing() -> None:
    """Its connection lives on for a moment, and tells of itself."""
    held = admission("a")
    held.busy("a0")
    held.admit("a1", "a", 1, 0, LATER)
    held.rests("a1", LATER)
    held.busy("a1")
    held.gone("a1")
    held.gone("a0")
    held.gone("a0")
    held.rests("a0", LATER)
    assert len(held) == 0
    assert held.admit("a2", "a", 1, 1, LATER) == Admitted()


def test_who_is_not_counted_by_address_counts_in_all() -> None:
    """A trusted proxy's connections: no limit of one client's, but room is room."""
    held: Admission[int] = Admission()
    assert [held.admit(number, None, 3, 1, LATER).refused for number in range(4)] == [None, None, None, "connections"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["admit", "busy", "rests", "gone"]), st.integers(0, 12), st.integers(0, 3)),
        max_size=60,
    )
)
def test_no_limit_is_ever_passed(steps: list[tuple[str, int, int]]) -> None:
    """Whatever happens in whatever order, and nothing is left when all are gone."""
    held: Admission[int] = Admission()
    clients: dict[int, str | None] = {}
    for now, (step, connection, client) in enumerate(steps):
        if step == "admit" and connection not in clients:
            name = f"client {client}" if client else None
            admitted = held.admit(connection, name, 6, 3, now)
            assert not (admitted.refused and admitted.closing is not None)
            if admitted.closing is not None:
                del clients[admitted.closing]
            if admitted.refused is None:
                clients[connection] = name
        elif step == "busy":
            held.busy(connection)
        elif step == "rests":
            held.rests(connection, now)
        elif step == "gone":
            held.gone(connection)
            clients.pop(connection, None)
        assert len(held) == len(clients) <= 6
        assert all(list(clients.values()).count(name) <= 3 for name in clients.values() if name is not None)
    for connection in clients:
        held.gone(connection)
    assert len(held) == 0
    assert all(held.admit(number, "client 1", 6, 3, 1e9) == Admitted() for number in range(3))


TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("address", "client"),
    [("192.0.2.1", "192.0.2.1"), ("10.1.2.3", None), ("fd00::1", None), ("", None), ("::ffff:10.0.0.1", None),
     ("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8::1:2:3:4", "2001:db8::/64"),
     ("2001:db8:0:1::1", "2001:db8:0:1::/64")],
)  # fmt: skip
def test_who_is_counted_as_whom(address: str, client: str | None) -> None:
    """IPv4 by address, IPv6 by /64, which one machine has all of; trusted proxies and Unix sockets not at all."""
    assert counted_as(parse_ip(address), TRUSTED) == client
