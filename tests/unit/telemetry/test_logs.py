"""Log lines: one line each, whatever is in them."""

import json
import logging
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.telemetry.events import RequestFinished
from proxy.telemetry.logs import log_access, log_unraisable, setup_logging

EVENT = RequestFinished(
    "192.0.2.1", "prod", "docker.io", "manifest", "GET", "library/nginx", "latest", 200, "hit", "", 1234, 0.1, 0.12345
)
LOG = logging.getLogger("pullthrough.test")


def test_the_access_line_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Cluster, registry, repository, reference, status, cache state, bytes, seconds; what is empty is left out."""
    setup_logging("info", "text", True)
    log_access(EVENT)
    line = capsys.readouterr().err
    assert line.endswith(
        "info pullthrough.access: client=192.0.2.1 cluster=prod registry=docker.io kind=manifest "
        "repository=library/nginx reference=latest method=GET status=200 cache=hit bytes=1234 seconds=0.1235\n"
    )


def test_the_access_line_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers are numbers, the time is RFC 3339 in UTC."""
    setup_logging("info", "json", True)
    log_access(EVENT)
    line = json.loads(capsys.readouterr().err)
    assert (line["status"], line["bytes"], line["repository"], line["level"]) == (200, 1234, "library/nginx", "info")
    assert line["time"].endswith("Z")


def test_levels_and_the_access_switch(capsys: pytest.CaptureFixture[str]) -> None:
    """Access lines have a switch of their own; libraries are heard from warning on."""
    setup_logging("error", "text", True)
    LOG.warning("hidden")
    logging.getLogger("aiohttp").info("hidden")
    log_access(EVENT)
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()] == ["pullthrough.access:"]
    setup_logging("debug", "text", False)
    log_access(EVENT)
    logging.getLogger("aiohttp").warning("heard")
    LOG.debug("heard")
    assert capsys.readouterr().err.count("heard") == 2


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_exception_is_one_line(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What failed; its traceback at level debug only, and on the same line."""
    for level in ("info", "debug"):
        setup_logging(level, form, True)  # type: ignore[arg-type]
        try:
            raise ValueError("two\nlines")
        except ValueError:
            LOG.exception("it failed")
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        assert "ValueError: two" in text
        assert ("Traceback" in text) is (level == "debug")


@given(st.text(alphabet=st.characters(exclude_categories=())))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("form", ["text", "json"])
def test_no_value_breaks_a_line(form: str, capsys: pytest.CaptureFixture[str], value: str) -> None:
    """Line ends, terminal escapes, lone surrogates: nobody forges a line of ours."""
    setup_logging("info", form, True)  # type: ignore[arg-type]
    log_access(replace(EVENT, reference=value, detail=value))
    LOG.warning("%s", value)
    text = capsys.readouterr().err
    assert text.count("\n") == 2
    assert all(char.isprintable() for line in text.split("\n") for char in line)
    assert len(text.splitlines()) == 2


class Raised:
    """What the interpreter tells of an error that nothing could catch."""

    def __init__(self, error: Exception, cause: object) -> None:
        self.exc_type, self.exc_value, self.exc_traceback = type(error), error, error.__traceback__
        self.err_msg, self.object = None, cause


def test_what_nobody_could_catch_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """And no line at all, except at level debug, where a TLS client asked for a name that is no ASCII."""
    setup_logging("info", "text", True)
    log_unraisable(Raised(ValueError("late"), None))  # type: ignore[arg-type]
    log_unraisable(Raised(UnicodeDecodeError("ascii", b"\xff", 0, 1, "no"), b"\xff"))  # type: ignore[arg-type]
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "ValueError: late" in text
