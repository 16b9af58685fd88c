"""How long work that nobody waits for goes on asking an upstream that fails. Pure."""

# Seconds.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
PATIENCE = 3600.0
# An answer that no registry may give is seldom better the next time.
_TRIES_OF_INVALID = 3


def next_try(failures: int, retry_after: float | None, waited: float, invalid: bool = False) -> float | None:
    """Seconds before the next try after `failures` in a row (1 or more), in which nothing was had for `waited` seconds.

    Retry-After is obeyed. None: it is given up, since it would take more than `PATIENCE` in all, or is of no use.
    """
    pause = max(min(_FIRST_PAUSE * 2.0 ** min(failures - 1, 16), _LONGEST_PAUSE), retry_after or 0.0)
    if waited + pause > PATIENCE or (invalid and failures >= _TRIES_OF_INVALID):
        return None
    return pause
