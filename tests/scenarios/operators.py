"""What operators do through the admin API, and what of the cache a test breaks under them."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web

from proxy.storage.base import StorageError
from tests.fakes.proxy import Proxy, Served
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate


async def call(
    proxy: Served, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, /, **query: Any
) -> tuple[int, Any]:
    """One call of the admin API: its status and its JSON. A body of bytes goes out as it is."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    url = f"{proxy.admin_url}/api/v1/{path}"
    params = {name: str(value) for name, value in query.items()}
    async with proxy.session.request(method, url, params=params, data=data, headers=headers) as response:
        assert response.headers["Content-Type"].startswith("application/json")
        assert response.headers["Cache-Control"] == "no-store"
        return response.status, json.loads(await response.read() or b"null")


async def done(proxy: Served, method: str, path: str, named: str | None = None, /, **query: Any) -> Any:
    """The same, where it has to succeed; with the reference that is `named` in the body."""
    body = {"reference": named} if named is not None else None
    status, found = await call(proxy, method, path, body, **query)
    assert status == 200, found
    return found


async def tags(proxy: Served, **query: Any) -> list[dict[str, Any]]:
    """One page of tags."""
    found: list[dict[str, Any]] = (await done(proxy, "GET", "tags", **query))["tags"]
    return found


async def tag(proxy: Served, reference: str, **query: Any) -> dict[str, Any]:
    """Everything about one tag."""
    (found,) = await tags(proxy, reference=reference, **query)
    return found


def names(found: list[dict[str, Any]]) -> list[str]:
    return [one["reference"] for one in found]


def hold_answer(registry: FakeRegistry, path: str) -> Gate:
    """The first answer for `path` is made at once, and leaves when the gate opens."""
    gate, answered = Gate(0), registry.answer

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = await answered(request)
        if request.rel_url.path == path and not gate.waiting:
            await gate(0)
        return response

    registry.answer = answer  # type: ignore[method-assign]
    return gate


def break_store(proxy: Proxy, monkeypatch: pytest.MonkeyPatch, *methods: str) -> None:
    """These methods of its metadata store fail from now on."""

    async def fail(*_: Any, **__: Any) -> Any:
        raise StorageError("the metadata cache failed: no disk")

    for method in methods:
        monkeypatch.setattr(proxy.application._records._store, method, fail)
