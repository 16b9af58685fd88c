"""/readyz: who serves without what replicas share is ready, and says what is away."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from proxy.server.admin import Admin, stores_away
from proxy.server.admin_access import AdminAccess
from proxy.server.api import ApiRequest, ApiResponse
from proxy.settings import AdminSettings
from proxy.telemetry.events import SharedStoreFailed, SharedStoreTurned
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.shared import SharedMetrics, environment_of_workers

ROOT = Path(__file__).parents[3]
# Says of each store in its arguments whether it is up, as the worker of that number.
WORKER = """
import sys
from proxy.telemetry.events import SharedStoreTurned
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.shared import share_metrics

share_metrics(int(sys.argv[1]))
metrics = Metrics(machine=False)
for store, up in zip(("metadata", "blobs"), sys.argv[2:]):
    metrics.record(SharedStoreTurned(store, up == "up"))
"""


async def nothing() -> None:
    return None


async def no_backend(request: ApiRequest) -> ApiResponse:
    raise AssertionError(request)


async def asked(metrics: Metrics | SharedMetrics, not_ready: Callable[[], str | None] = lambda: None) -> web.Response:
    """What /readyz answers."""
    settings = AdminSettings()
    access = AdminAccess(settings.address, lambda: settings, lambda: 0.0)
    admin = Admin(metrics, not_ready, nothing, nothing, access, no_backend)
    response = await admin.handle(make_mocked_request("GET", "/readyz"))
    assert isinstance(response, web.Response)
    return response


def turn(metrics: Metrics, **up: bool) -> None:
    for store, is_up in up.items():
        metrics.record(SharedStoreTurned(store, is_up))


@pytest.mark.parametrize(
    ("up", "text"),
    [
        ({}, "ok\n"),
        ({"metadata": True, "blobs": True}, "ok\n"),
        ({"metadata": False, "blobs": True}, "ok\nthe shared metadata store is away\n"),
        ({"metadata": True, "blobs": False}, "ok\nthe shared blobs store is away\n"),
        ({"metadata": False}, "ok\nthe shared metadata store is away\n"),
        (
            {"metadata": False, "blobs": False},
            "ok\nthe shared blobs store is away\nthe shared metadata store is away\n",
        ),
    ],
)
async def test_a_store_that_is_away(up: dict[str, bool], text: str) -> None:
    """It is no reason to send clients elsewhere: 200, and a line for each of them."""
    metrics = Metrics()
    turn(metrics, **up)
    response = await asked(metrics)
    assert (response.status, response.text) == (200, text)


async def test_a_store_that_comes_back() -> None:
    """What counts is the last that was heard of it; a failure alone says nothing."""
    metrics = Metrics()
    turn(metrics, metadata=False)
    turn(metrics, metadata=True)
    metrics.record(SharedStoreFailed("metadata", "timeout"))
    assert (await asked(metrics)).text == "ok\n"


async def test_a_reason_to_go_elsewhere() -> None:
    """503 with that reason alone."""
    metrics = Metrics()
    turn(metrics, metadata=False)
    response = await asked(metrics, lambda: "shutting down")
    assert (response.status, response.text) == (503, "shutting down\n")


async def test_of_several_workers_one_is_enough(tmp_path: Path) -> None:
    """A store that one of them does not reach is away; what all of them reach is there. One that ended says nothing."""
    for worker, up in enumerate([("up", "up"), ("away", "up")], 1):
        subprocess.run(
            [sys.executable, "-c", WORKER, str(worker), *up], env=environment_of_workers(tmp_path), cwd=ROOT, check=True
        )
    metrics = SharedMetrics(tmp_path)
    assert await asyncio.to_thread(stores_away, metrics) == ["metadata"]
    response = await asked(metrics)
    assert (response.status, response.text) == (200, "ok\nthe shared metadata store is away\n")
    await asyncio.to_thread(metrics.ended, 2)
    assert await asyncio.to_thread(stores_away, metrics) == []
