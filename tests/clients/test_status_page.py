"""The status page in a real browser, with scripts and without: what goes on is seen, what is pressed is done.

`SCREENSHOT=FILE` writes the picture for the README on the way (`make screenshot`).
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.clients.browser import Tab, chromium
from tests.clients.proxy_process import Proxy
from tests.fakes.content import digest_of, make_image, random_bytes
from tests.fakes.registry import FakeRegistry

MIB = 1 << 20
LAYER = random_bytes(24 * MIB, 1)
PYTHON = "docker.io/library/python:3.12"
MOVED = f'tr:has([aria-label="Refresh {PYTHON}"])'
FILL = "#fills progress"
# Seconds: the proxy looks for what has moved every 15.
DRIFT = 60


class Hub(FakeRegistry):
    """A registry that counts pulls, and sends of blobs no more than it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.limits[""] = 100
        self._allowed = 0
        self._more = asyncio.Condition()
        self.pause = self._wait

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def allow(self, offset: int) -> None:
        """Bytes before `offset` may leave."""
        async with self._more:
            self._allowed = offset
            self._more.notify_all()

    async def _wait(self, offset: int) -> None:
        async with self._more:
            await self._more.wait_for(lambda: offset < self._allowed or offset >= len(LAYER))


@dataclass
class Scene:
    """A proxy whose upstream is slow with a layer and has moved a tag on."""

    hub: Hub
    proxy: Proxy
    tab: Tab
    session: aiohttp.ClientSession
    before: str
    after: str = ""

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self.proxy.admin_port}/"

    async def get(self, path: str) -> bytes:
        async with self.session.get(f"http://127.0.0.1:{self.proxy.port}{path}") as response:
            assert response.status == 200, await response.text()
            return await response.read()

    async def move_tag(self) -> None:
        """Upstream, while the proxy has it for an hour yet."""
        image = make_image(10, seed=2)
        self.hub.push("library/python", "3.12", image)
        self.after = image.digest

    @asynccontextmanager
    async def fill(self) -> AsyncIterator[None]:
        """A node waits for the layer; a quarter of it may come."""
        digest = self.hub.put("library/python", "application/octet-stream", LAYER)
        await self.hub.allow(len(LAYER) // 4)
        body = asyncio.create_task(self.get(f"/v2/library/python/blobs/{digest}"), name="a node")
        try:
            yield
            await self.hub.allow(len(LAYER))
            assert digest_of(await body) == digest
        finally:
            body.cancel()
            await asyncio.gather(body, return_exceptions=True)


@asynccontextmanager
async def scene(scratch: Path, **more: Any) -> AsyncIterator[Scene]:
    async with asyncio.timeout(200), AsyncExitStack() as stack:
        hub = Hub()
        await hub.start()
        stack.push_async_callback(hub.stop)
        image = make_image(10, seed=1)
        hub.push("library/python", "3.12", image)
        for name in ("library/alpine", "library/nginx", "library/redis"):
            hub.push(name, "latest", make_image(10, seed=len(name)))
        configuration: dict[str, Any] = {
            "manifests": {"tag_ttl": "1h", "drift_interval": "1s"},
            "clusters": [
                {"name": "edge", "mode": "metadata-only", "match": {"hosts": ["edge.internal"]}},
                {"name": "prod", "mode": "transparent"},
            ],
        } | more
        proxy = await asyncio.to_thread(lambda: Proxy(scratch / "proxy", hub, "docker.io", **configuration))
        stack.push_async_callback(asyncio.to_thread, proxy.stop)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        (scratch / "browser").mkdir()
        tab = await stack.enter_async_context(chromium(scratch / "browser"))
        made = Scene(hub, proxy, tab, session, image.digest)
        for name in ("alpine", "nginx", "redis"):
            await made.get(f"/v2/library/{name}/manifests/latest")
        base = hub.put("library/python", "application/octet-stream", random_bytes(2 * MIB, 2))
        # Past its last byte: an answer that never ends would hold up whatever comes after it on its connection.
        await hub.allow(2 * MIB + 1)
        for _ in range(12):
            await made.get(f"/v2/library/python/blobs/{base}")
        assert digest_of(await made.get("/v2/library/python/manifests/3.12")) == image.digest
        yield made


def row_says(words: str) -> str:
    """As an expression: the moved tag's row says so."""
    return f"document.querySelector({json.dumps(MOVED)})?.innerText.includes({json.dumps(words)})"


def progress_above(value: int) -> str:
    return f"document.querySelector('{FILL}')?.value > {value}"


@pytest.fixture(params=[1, 2], ids=["one-process", "two-workers"])
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


async def test_live(tmp_path: Path, workers: int) -> None:
    """With scripts: a fill is seen to grow, a tag to drift and to be refreshed by its button, all without a reload.

    What is typed, open or in focus stays, and the policy of the page is never violated.
    """
    async with scene(tmp_path, workers=workers) as here:
        tab = here.tab
        await tab.goto(here.page)
        await tab.evaluate("window.witness = document.querySelector('#tags').witness = true")
        await tab.click("#q")
        await tab.type("half a wo")
        await tab.evaluate(f"document.querySelector('{MOVED} details').open = true")
        await here.move_tag()
        await tab.until(row_says("moved upstream"), within=DRIFT)
        async with here.fill():
            await tab.until(progress_above(0))
            seen = int(await tab.evaluate(f"document.querySelector('{FILL}').value"))
            assert 0 < seen <= len(LAYER) // 4 < await tab.evaluate(f"document.querySelector('{FILL}').max")
            await here.hub.allow(len(LAYER) // 2)
            await tab.until(progress_above(seen))
            assert await tab.evaluate("document.activeElement.id + document.activeElement.value") == "qhalf a wo"
            await take_screenshot(tab)
            await tab.click(f'{MOVED} [aria-label="Refresh {PYTHON}"]')
            await tab.until(f"document.querySelector('#notice').innerText.includes({json.dumps(f'{PYTHON} is now')})")
            await tab.until(row_says(here.after[:19]))
            assert not await tab.evaluate(row_says("moved upstream"))
            assert await tab.evaluate(f"document.querySelector('{MOVED} details').open")
        await tab.until("document.querySelector('#fills').innerText.includes('Nothing is being downloaded')")
        assert digest_of(await here.get("/v2/library/python/manifests/3.12")) == here.after
        assert await tab.evaluate("window.witness && document.querySelector('#tags').witness")
        assert await tab.text("#live") == "Live"
        assert tab.troubles == []


async def test_without_scripts(tmp_path: Path, workers: int) -> None:
    """Every reload shows how far the fill is; the button leads to a page that says what came of it, once."""
    async with scene(tmp_path, workers=workers) as here:
        tab = here.tab
        await tab.scripts(False)
        await here.move_tag()
        await reloaded_until(tab, here.page, row_says("moved upstream"))
        async with here.fill():
            await reloaded_until(tab, here.page, progress_above(0))
            seen = int(await tab.evaluate(f"document.querySelector('{FILL}').value"))
            await here.hub.allow(len(LAYER) // 2)
            await reloaded_until(tab, here.page, progress_above(seen))
            await tab.click(f'{MOVED} [aria-label="Refresh {PYTHON}"]')
            await tab.until(f"document.querySelector('#notice')?.innerText.includes({json.dumps(f'{PYTHON} is now')})")
            assert await tab.evaluate(row_says(here.after[:19]))
            assert not await tab.evaluate(row_says("moved upstream"))
            await tab.call("Page.reload")
            await tab.until("document.querySelector('#notice')?.innerText === ''")
        assert digest_of(await here.get("/v2/library/python/manifests/3.12")) == here.after
        assert await tab.text("#live") == ""
        assert tab.troubles == []


async def test_hold_and_release(tmp_path: Path) -> None:
    """A tag is rolled back to a digest of its history while upstream has another one, and let go again."""
    async with scene(tmp_path) as here:
        tab = here.tab
        await here.move_tag()
        await tab.goto(here.page)
        await tab.click(f'{MOVED} [aria-label="Refresh {PYTHON}"]')
        await tab.until(row_says(here.after[:19]))
        await tab.until(f"document.querySelector({json.dumps(f'{MOVED} li')}) !== null")
        await tab.click(f"{MOVED} summary")
        await tab.click(f'{MOVED} [aria-label="Hold this {here.before}"]')
        await tab.until(row_says(f"held at {here.before[:19]}"))
        assert digest_of(await here.get("/v2/library/python/manifests/3.12")) == here.before
        await tab.click(f'{MOVED} [aria-label="Release {PYTHON}"]')
        await tab.until(f"!{row_says('held at')}")
        await tab.click(f'{MOVED} [aria-label="Purge {PYTHON}"]')
        await tab.until("document.querySelector('#notice').innerText.includes('is forgotten here')")
        assert digest_of(await here.get("/v2/library/python/manifests/3.12")) == here.after
        assert tab.troubles == []


async def test_log_in(tmp_path: Path) -> None:
    """The token opens the page until the log-out; scripts cannot see the cookie."""
    file = tmp_path / "token"
    file.write_text("correct horse\n")
    async with scene(tmp_path, workers=1) as here:
        tab = here.tab
        document = {"address": f"127.0.0.1:{here.proxy.admin_port}", "token_file": str(file)}
        here.proxy.configure(admin=document)
        await asyncio.to_thread(here.proxy.restart)
        await tab.goto(here.page)
        for token, then in (("wrong", "#refused"), ("correct horse", "#status")):
            await tab.click("#token")
            await tab.type(token)
            await tab.press_enter()
            await tab.until(f"document.querySelector('{then}') !== null")
        await tab.until(row_says("fresh"))
        assert await tab.evaluate("document.cookie") == ""
        await tab.click(f'{MOVED} [aria-label="Refresh {PYTHON}"]')
        await tab.until("document.querySelector('#notice').innerText.includes('is unchanged')")
        await tab.click("#leave button")
        await tab.until("document.querySelector('#token') !== null")


async def test_out_of_sight_and_out_of_reach(tmp_path: Path) -> None:
    """A tab that is hidden asks for nothing; a server that is gone is said to be, and shown again when it is back."""
    async with scene(tmp_path) as here:
        tab = here.tab
        await tab.goto(here.page)
        asked = "performance.getEntriesByType('resource').length"
        await tab.until(f"{asked} > 4")
        await tab.evaluate(
            "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        assert await tab.text("#live") == "Paused"
        before = await tab.evaluate(asked)
        # Longer than it waits between two.
        await asyncio.sleep(3)
        assert await tab.evaluate(asked) == before
        await tab.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        await tab.until(f"{asked} > {before}")
        await tab.until("document.querySelector('#live').innerText === 'Live'")
        assert tab.troubles == []
        await asyncio.to_thread(here.proxy.stop)
        await tab.until("document.querySelector('#live').innerText.includes('the server cannot be reached')")
        await asyncio.to_thread(here.proxy.restart)
        await tab.until("document.querySelector('#live').innerText === 'Live'", within=60)


async def test_readable(tmp_path: Path) -> None:
    """On a phone nothing has to be scrolled sideways; in light and dark every word stands out from its background."""
    async with scene(tmp_path) as here:
        tab = here.tab
        await here.move_tag()
        async with here.fill():
            for dark in (False, True):
                await tab.dark(dark)
                for width in (360, 1200):
                    await tab.size(width, 800)
                    await tab.goto(here.page)
                    await tab.until(f"{row_says('moved upstream')} && {progress_above(0)}", within=DRIFT)
                    await tab.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
                    assert await tab.evaluate("document.scrollingElement.scrollWidth") <= width
                    assert await tab.evaluate(FAINT) == []


async def reloaded_until(tab: Tab, address: str, expression: str) -> None:
    """Load the page again and again until `expression` is true."""
    async with asyncio.timeout(DRIFT):
        await tab.goto(address)
        while not await tab.evaluate(expression):
            await asyncio.sleep(0.1)
            await tab.goto(address)


async def take_screenshot(tab: Tab) -> None:
    """For the README, where it is asked for; the page is as people see it, without what the test typed."""
    file = os.environ.get("SCREENSHOT")
    if not file:
        return
    await tab.evaluate("document.querySelector('#q').value = ''; document.activeElement.blur()")
    await tab.evaluate("document.querySelectorAll('details').forEach((one) => one.open = false)")
    await tab.size(1100, 1200)
    height = await tab.evaluate(
        "Math.ceil(document.querySelector('#tags').getBoundingClientRect().bottom + scrollY + 16)"
    )
    await tab.size(1100, int(height))
    await tab.evaluate("scrollTo(0, 0)")
    Path(file).write_bytes(await tab.screenshot())
    await tab.evaluate(f"document.querySelector('{MOVED} details').open = true")


# Words whose contrast is below 4.5 to 1 (WCAG 2, 1.4.3).
FAINT = """(() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (text) => channels(text).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (channels(colour)[3] !== 0) return colour;
    }
  };
  return [...document.querySelectorAll("body *")].filter((element) => {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) return false;
    const pair = [light(getComputedStyle(element).color), light(behind(element))];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05) < 4.5;
  }).map((element) => element.outerHTML);
})()"""
