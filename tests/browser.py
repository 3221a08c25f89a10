"""A headless Chromium, controlled through chromedriver by the W3C WebDriver protocol: plain HTTP and JSON."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
MISSING = "chromium and chromedriver are not installed (Debian: chromium, chromium-driver)"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key with which the protocol identifies elements
ARROW_LEFT, ARROW_RIGHT, HOME = "\ue012", "\ue014", "\ue011"

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


class Browser:
    """One browser window."""

    def __init__(self, address: str, session: str) -> None:
        self._address = f"{address}/session/{session}"

    def send(self, method: str, path: str, **values: Any) -> Any:
        return _call(method, f"{self._address}{path}", values)

    def open(self, page: Path) -> None:
        self.send("POST", "/url", url=page.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """Return the value of a script, which is the body of a function that receives ``arguments[0]`` …"""
        return self.send("POST", "/execute/sync", script=script, args=list(arguments))

    def element(self, selector: str) -> dict[str, str]:
        return dict(self.send("POST", "/element", using="css selector", value=selector))

    def press(self, selector: str, keys: str) -> None:
        """Focus the element and type."""
        self.send("POST", f"/element/{self.element(selector)[ELEMENT]}/value", text=keys)

    def click(self, selector: str) -> None:
        self.send("POST", f"/element/{self.element(selector)[ELEMENT]}/click")

    def seen(self, selector: str) -> bytes:
        """Return the element as it is drawn (PNG)."""
        return base64.b64decode(self.send("GET", f"/element/{self.element(selector)[ELEMENT]}/screenshot"))

    def console(self) -> list[str]:
        """Return errors and warnings since the last call: exceptions, refused requests, breaches of its policy."""
        return [str(entry["message"]) for entry in self.send("POST", "/se/log", type="browser")]

    def devtools(self, command: str, **values: Any) -> Any:
        return self.send("POST", "/goog/cdp/execute", cmd=command, params=values)

    def size(self, width: int, height: int, scale: float = 1.0, *, mobile: bool = False) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )

    def prefer(self, scheme: str, media: str = "screen") -> None:
        """Emulate preferences; ``scheme`` is "light" or "dark", ``media`` is "screen" or "print"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", media=media, features=features)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile; it is closed at the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    driver = subprocess.Popen([str(CHROMEDRIVER), f"--port={port}"], **quiet)
    try:
        _wait_for(address)
        options = {"binary": CHROMIUM, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "WARNING"}}
        session = _call("POST", f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        try:
            yield Browser(address, session)
        finally:
            _call("DELETE", f"{address}/session/{session}", {})
    finally:
        driver.terminate()
        driver.wait(timeout=30)


def _call(method: str, url: str, values: dict[str, Any]) -> Any:
    body = json.dumps(values).encode() if method == "POST" else None
    request = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": "application/json"})
    try:
        with _direct.open(request, timeout=120) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from error


# The browser runs on this machine: bypass any proxy set in the environment.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _wait_for(address: str) -> None:
    for _ in range(300):
        try:
            if _call("GET", f"{address}/status", {})["ready"]:
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.1)
    raise AssertionError("chromedriver did not start within 30 s")
