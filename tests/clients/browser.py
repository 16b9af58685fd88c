"""A headless Chromium, driven over the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

import asyncio
import base64
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.clients.process import Daemon

_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-default-browser-check",
    "--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-port=0",
)  # fmt: skip
# The place of an element's middle, once it has been scrolled into view; null where there is none to be seen.
_MIDDLE = """(() => {
  const found = document.querySelector(%s);
  if (!found) return null;
  found.scrollIntoView({block: "center", behavior: "instant"});
  const box = found.getBoundingClientRect();
  return box.width && box.height ? [box.x + box.width / 2, box.y + box.height / 2] : null;
})()"""


class Failed(Exception):
    """The browser refused a command."""


class Tab:
    """One page. `troubles`: what its console would show in red (errors, what the policy refused or did not load)."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.troubles: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read(), name="words of the browser")

    async def start(self) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command. Raises Failed."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(30):
            said = await answer
        if "error" in said:
            raise Failed(f"{method}: {said['error']}")
        return dict(said["result"])

    async def goto(self, address: str) -> None:
        """Go there, and wait until the page is whole."""
        await self.call("Page.navigate", url=address)
        await self.until(f"location.href.startsWith({json.dumps(address)}) && document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; works with the page's own scripts disabled too. Raises Failed."""
        said = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise Failed(f"{expression}: {said['exceptionDetails']}")
        return said["result"].get("value")

    async def until(self, expression: str, within: float = 20.0) -> Any:
        """Wait until `expression` is true, and give its value; the page may change meanwhile."""
        end, failed = time.monotonic() + within, None
        while True:
            try:
                if value := await self.evaluate(expression):
                    return value
            except Failed as error:
                # The page that was asked may just have gone.
                failed = error
            if time.monotonic() > end:
                text = await self.text("body")
                raise AssertionError(f"not within {within} s: {expression}\n{failed}\n{self.troubles}\n{text}")
            await asyncio.sleep(0.02)

    async def text(self, selector: str) -> str:
        """What an element shows; nothing where there is none."""
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def click(self, selector: str) -> None:
        """Click in the middle of an element with the mouse."""
        x, y = await self.until(_MIDDLE % json.dumps(selector))
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def press_enter(self) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    async def scripts(self, enabled: bool) -> None:
        """Let pages run their scripts, or none of them."""
        await self.call("Emulation.setScriptExecutionDisabled", value=not enabled)

    async def size(self, width: int, height: int, scale: float = 1) -> None:
        """How large the window is, in CSS pixels; `scale` of them make one of the screen's."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)

    async def dark(self, wanted: bool) -> None:
        """What the reader prefers."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if wanted else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def screenshot(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            waiting = self._waiting.pop(said.get("id", 0), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(said)
            elif said.get("method") == "Runtime.exceptionThrown":
                self.troubles.append(str(said["params"]["exceptionDetails"]))
            elif said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.troubles.append(str(said["params"]["entry"]))


@asynccontextmanager
async def chromium(directory: Path) -> AsyncIterator[Tab]:
    """A browser with one tab and a profile of its own below `directory`."""
    profile = directory / "profile"
    daemon = Daemon(
        ["chromium", *_OPTIONS, f"--user-data-dir={profile}", "about:blank"], directory / "log",
        {"HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "XDG_CACHE_HOME": str(directory)},
    )  # fmt: skip
    try:
        port = await asyncio.to_thread(_port, daemon, profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as response:
                address = (await response.json())["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=0) as socket:
                tab = Tab(socket)
                try:
                    await tab.start()
                    yield tab
                finally:
                    await tab.close()
    finally:
        await asyncio.to_thread(daemon.stop)


def _port(daemon: Daemon, file: Path) -> int:
    daemon.wait_until(lambda: file.exists() and file.read_text().count("\n") > 0)
    return int(file.read_text().split("\n")[0])
