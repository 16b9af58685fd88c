"""Logging as it was before each test here."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """setup_logging changes what is global in a process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    loggers = [logging.getLogger(name) for name in ("pullthrough", "pullthrough.access")]
    levels = [logger.level for logger in loggers]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for logger, before in zip(loggers, levels, strict=True):
        logger.setLevel(before)
