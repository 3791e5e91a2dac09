"""Drives a real Chromium over its DevTools protocol: no driver and no library between, one page at a time."""

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_UNPACKED = Path(__file__).parents[2] / ".cache" / "browser" / "chromium"
_DEADLINE_SECONDS = 120
Value = TypeVar("Value")


def find_chromium() -> str:
    """Its path. Raises RuntimeError with what to do where there is none."""
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    if _UNPACKED.exists():
        return str(_UNPACKED)
    raise RuntimeError("no Chromium on PATH; run .ci/browser/setup.sh")


class Chromium:
    """A headless Chromium with one open page. `console` collects errors that pages report, of scripts and of loading."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.console: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self._log = (folder / "chromium.log").open("wb")
        self._process = subprocess.Popen(
            [
                find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}", "about:blank",
            ],
            stderr=self._log, stdout=self._log,
        )  # fmt: skip
        self._run(self._connect())

    def close(self) -> None:
        """End it."""
        self._run(self._session.close())
        self._loop.close()
        self._process.terminate()
        self._process.wait(60)
        self._log.close()

    def open(self, address: str, width: int, height: int = 900) -> None:
        """Open a page in a window of that size, in pixels, and wait until it has loaded."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self._run(self._navigate(address))

    def evaluate(self, script: str) -> Any:
        """What an expression is, as JSON has it."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def print_to_pdf(self) -> bytes:
        """The page printed, on the paper that its style asks for."""
        answer = self.call("Page.printToPDF", preferCSSPageSize=True)
        return base64.b64decode(answer["data"])

    def send_header(self, name: str, value: str) -> None:
        """Send a header with each request from now on."""
        self.call("Network.setExtraHTTPHeaders", headers={name: value})

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol."""
        return self._run(self._call(method, parameters))

    def _run(self, work: Coroutine[Any, Any, Value]) -> Value:
        return self._loop.run_until_complete(asyncio.wait_for(work, _DEADLINE_SECONDS))

    async def _connect(self) -> None:
        file = self._folder / "profile" / "DevToolsActivePort"
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not file.exists() or len(file.read_text().splitlines()) < 2:
            assert self._process.poll() is None and time.monotonic() < deadline, "Chromium did not start"
            await asyncio.sleep(0.1)
        port = int(file.read_text().splitlines()[0])
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [page for page in await answer.json() if page["type"] == "page"]
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._call(f"{domain}.enable", {})

    async def _navigate(self, address: str) -> None:
        answer = await self._call("Page.navigate", {"url": address})
        assert "errorText" not in answer, answer
        while (await self._next()).get("method") != "Page.loadEventFired":
            pass

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        number = self._number
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._next()
            if message.get("id") == number:
                assert "error" not in message, (method, message)
                result: dict[str, Any] = message["result"]
                return result

    async def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self._socket.receive_str())
        said = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.console.append(str(said["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if said["type"] in {"error", "warning", "assert"}:
                self.console.append(str(said["args"]))
            case "Log.entryAdded" if said["entry"]["level"] == "error":
                self.console.append(said["entry"]["text"])
            case _:
                pass
        return message
