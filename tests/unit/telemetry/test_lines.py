"""What log lines look like, for every value that there can be."""

import json

from hypothesis import example, given

from proxy.telemetry.events import RequestFinished
from proxy.telemetry.lines import json_access, text_access, timestamp
from tests.unit.telemetry.requests import requests

WHEN = timestamp(1_700_000_000.25)
EVENT = RequestFinished(
    "192.0.2.1", "prod", "docker.io", "manifest", "GET", "library/nginx", "latest", 200, "hit", "", 1234, 0.1, 0.12345
)


def fields(event: RequestFinished) -> dict[str, object]:
    """What an access line says, in its order."""
    return {
        "client": event.client,
        "cluster": event.cluster,
        "registry": event.registry,
        "kind": event.kind,
        "repository": event.repository,
        "reference": event.reference,
        "method": event.method,
        "status": event.status,
        "cache": event.cache,
        "detail": event.detail,
        "bytes": event.bytes_sent,
        "seconds": round(event.seconds, 4),
    }


def written(value: object) -> str:
    """As a value stands in a line of text: quoted where it has to be, control characters escaped."""
    text = str(value)
    if set(text) & set(' "='):
        return json.dumps(text)
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def test_times_are_rfc_3339() -> None:
    """In UTC, to the millisecond."""
    assert WHEN == "2023-11-14T22:13:20.250Z"


@given(requests)
@example(EVENT)
def test_access_lines_as_text(event: RequestFinished) -> None:
    """Every field that is not empty, in its order, quoted where it has to be; on one line."""
    line = text_access(event).of(WHEN, event.client, event.seconds)
    pairs = " ".join(f"{key}={written(value)}" for key, value in fields(event).items() if value != "")
    assert line == f"{WHEN} info pullthrough.access: {pairs}\n"
    assert line[:-1].isprintable()


@given(requests)
@example(EVENT)
def test_access_lines_as_json(event: RequestFinished) -> None:
    """Every field, as `json.dumps` writes it; on one line."""
    line = json_access(event).of(WHEN, event.client, event.seconds)
    first = {"time": WHEN, "level": "info", "logger": "pullthrough.access"}
    assert line == json.dumps(first | fields(event)) + "\n"
    assert line[:-1].isprintable()
