"""Headless Chromium, driven through its DevTools pipe: what a page requests, reports as errors and looks like."""

import base64
import fcntl
import json
import os
import re
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--hide-scrollbars",
)
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync")


class Page:
    """A tab that records its requests, its console and its errors."""

    def __init__(self, send, receive):
        self.send, self.receive, self.last, self.events = send, receive, 0, []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    session = None

    def ask(self, method, **parameters):
        self.last += 1
        call = {"id": self.last, "method": method, "params": parameters}
        self.send(call | ({"sessionId": self.session} if self.session else {}))
        while (answer := self.receive()).get("id") != self.last:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, width: int, dark: bool = False) -> None:
        """Load a file at a width in CSS pixels, and wait until it has loaded."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        while not self.said("Page.loadEventFired"):
            self.events.append(self.receive())

    def said(self, *methods: str) -> list[dict]:
        return [event["params"] for event in self.events if event.get("method") in methods]

    def requests(self) -> list[str]:
        return [event["request"]["url"] for event in self.said("Network.requestWillBeSent")]

    def complaints(self) -> list[dict]:
        return self.said("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")

    def value(self, expression: str):
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self) -> bytes:
        """A PNG of the whole page."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"])


@contextmanager
def page(chromium: str):
    """A page in a new browser, which is ended afterwards."""
    to_browser, from_browser = os.pipe(), os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser[0], from_browser[1])]
    os.close(to_browser[0])
    os.close(from_browser[1])
    wired = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'  # Chromium reads from 3 and writes to 4

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            ["bash", "-c", wired, "bash", chromium, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in ends:
            os.close(end)
        with os.fdopen(to_browser[1], "wb") as out, os.fdopen(from_browser[0], "rb") as source:
            waiting = b""

            def send(message: dict) -> None:
                out.write(json.dumps(message).encode() + b"\0")
                out.flush()

            def receive() -> dict:
                nonlocal waiting
                while b"\0" not in waiting:
                    more = source.read1(2**20)
                    assert more, "the browser has ended"
                    waiting += more
                first, _, waiting = waiting.partition(b"\0")
                return json.loads(first)

            try:
                yield Page(send, receive)
                send({"id": 0, "method": "Browser.close"})
            finally:
                process.terminate()
                process.wait()


def ink(png: bytes) -> float:
    """The share of a PNG's pixels that are not its background's, the most frequent color."""
    import io

    import numpy as np
    from matplotlib.image import imread

    pixels = (imread(io.BytesIO(png), format="png")[..., :3] * 255).astype(int) @ [65536, 256, 1]
    return 1 - np.unique(pixels, return_counts=True)[1].max() / pixels.size


def words(markup: str) -> str:
    """A page's text without tags."""
    return re.sub(r"<[^>]+>", " ", markup)
