"""A real browser for tests: Chromium without a window, driven over its DevTools protocol.

A test takes the fixture `browser`: a page with cookies of its own. Where Chromium is not installed such tests are
skipped, saying so.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# what a key writes, its code and its number, as the protocol wants them
KEYS = {"Enter": ("\r", "Enter", 13), "Escape": ("", "Escape", 27), "Tab": ("", "Tab", 9), " ": (" ", "Space", 32)} | {
    f"Arrow{way}": ("", f"Arrow{way}", 37 + number) for number, way in enumerate(("Left", "Up", "Right", "Down"))
}
MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}


class Browser:
    """One page: `open`, `evaluate`, `wait_for`, `click`, `write`, `press`, `screenshot`."""

    def __init__(self, socket: Any, session: str) -> None:
        self.socket, self.session, self.numbers = socket, session, itertools.count(1)
        self.problems: list[str] = []
        """Exceptions, errors on the console and what the content policy refused, since the page was opened."""
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends one command of the protocol and waits for its result."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "sessionId": self.session, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=30))
            if message.get("id") == number and message.get("sessionId") == self.session:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif message.get("method") == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.problems.append(" ".join(str(part.get("value", part.get("description"))) for part in told["args"]))
        elif message.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.problems.append(f"{told['entry']['text']} {told['entry'].get('url', '')}".strip())

    def open(self, url: str) -> None:
        """Goes to the address and waits until the page has loaded."""
        told = self.command("Page.navigate", url=url)
        assert not told.get("errorText"), f"{url}: {told['errorText']}"
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, as JSON; a promise is waited for."""
        done = self.command(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in done, f"{expression}: {done['exceptionDetails']}"
        return done["result"].get("value")

    def wait_for(self, expression: str, timeout: float = 10) -> Any:
        """The expression's value as soon as it is true; fails after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"not within {timeout:g} s: {expression}; problems: {self.problems}"
            time.sleep(0.03)
        return value

    def click(self, selector: str) -> None:
        """Clicks the middle of the first element that the selector finds, with the mouse."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait_for(f"{found} !== null")
        place = self.evaluate(
            f"(() => {{ const e = {found}; e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            " const r = e.getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def write(self, text: str) -> None:
        """Writes the text where the cursor stands."""
        self.command("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Presses a key: "a", "Enter", "Escape", "ArrowLeft", or with others held, "Shift+Enter"."""
        *held, key = key.split("+") if key != "+" else ["+"]
        text, code, number = KEYS.get(key) or (key, f"Key{key.upper()}", ord(key.upper()))
        modifiers = sum(MODIFIERS[name] for name in held)
        same = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.command("Input.dispatchKeyEvent", **down, **same)
        self.command("Input.dispatchKeyEvent", type="keyUp", **same)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the window, and whether the person prefers dark colours."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> Path:
        """What is seen now, as a PNG."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot")["data"]))
        return path


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serves an application in a thread, at a free port; yields its address without a slash at the end."""
    import uvicorn

    from melete.web.listen import bound

    with bound("127.0.0.1", 0) as listening:
        config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def _chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt install chromium)")
    connect = pytest.importorskip("websockets.sync.client").connect
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # a container has no user namespaces and a small /dev/shm
        flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]
        process = subprocess.Popen(
            [CHROMIUM, *flags, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
        )
        try:
            port, path = _devtools(Path(profile) / "DevToolsActivePort", process)
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=2**26, open_timeout=30) as socket:
                yield socket
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _devtools(file: Path, process: subprocess.Popen[bytes]) -> tuple[str, str]:
    end = time.monotonic() + 60
    while True:
        lines = file.read_text().split() if file.exists() else []
        if len(lines) == 2:
            return lines[0], lines[1]
        assert process.poll() is None, f"Chromium ended with status {process.returncode}"
        assert time.monotonic() < end, "Chromium did not start within a minute"
        time.sleep(0.05)


@pytest.fixture
def browser(_chromium: Any) -> Iterator[Browser]:
    """A page with cookies of its own."""
    numbers = itertools.count(1_000_000)

    def ask(method: str, **parameters: Any) -> dict[str, Any]:
        number = next(numbers)
        _chromium.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(_chromium.recv(timeout=30))
            if message.get("id") == number and "sessionId" not in message:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    context = ask("Target.createBrowserContext")["browserContextId"]
    target = ask("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
    session = ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    yield Browser(_chromium, session)
    ask("Target.disposeBrowserContext", browserContextId=context)
