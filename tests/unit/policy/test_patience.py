"""How long a job goes on asking an upstream that fails."""

import pytest

from proxy.policy.patience import PATIENCE, next_try


def test_pauses_grow() -> None:
    """Twice as long each time, up to a minute."""
    assert [next_try(failures, None, 0.0) for failures in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert next_try(10_000, None, 0.0) == 60


@pytest.mark.parametrize(
    ("retry_after", "waited", "pause"),
    [(30.0, 0.0, 30.0), (0.0, 0.0, 1.0), (PATIENCE, 0.0, PATIENCE), (PATIENCE, 1.0, None), (PATIENCE + 1, 0.0, None)],
)
def test_retry_after_is_obeyed(retry_after: float, waited: float, pause: float | None) -> None:
    """Where it is longer than the pause would be; what would take too long in all is given up at once."""
    assert next_try(1, retry_after, waited) == pause


def test_patience_ends() -> None:
    """An hour in which nothing was had."""
    assert next_try(70, None, PATIENCE - 60) == 60
    assert next_try(70, None, PATIENCE - 59) is None


def test_an_impossible_answer_is_not_asked_for_again_and_again() -> None:
    """Wrong bytes are seldom better the third time."""
    assert [next_try(failures, None, 0.0, invalid=True) for failures in (1, 2, 3)] == [1, 2, None]
