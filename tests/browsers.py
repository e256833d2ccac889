"""Runs the scripts of a page, and pages, in headless Chromium and in node, where they are installed."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NODE = shutil.which("node")
ENGINES = [name for name, path in (("chromium", CHROMIUM), ("node", NODE)) if path]
UNNAMED = """[...document.querySelectorAll("input, textarea, select, button")].filter((one) =>
  !one.labels.length && !one.textContent.trim() && !one.ariaLabel).map((one) => one.id)"""
"""What a screen reader has no name for: a label with an output in it is for that alone, unless it says otherwise."""
_FOUND = "document.documentElement.dataset.found = JSON.stringify({})"


def evaluate(engine: str, folder: Path, scripts: Sequence[str], expression: str, data: Any = None) -> Any:
    """The value of an expression of JavaScript after these scripts, with `data`, in an empty page or in node."""
    text = "\n".join((*scripts, f"const data = {_literal(data)};"))
    if engine == "node":
        (folder / "script.js").write_text(f"{text}\nconsole.log(JSON.stringify({expression}));", encoding="utf-8")
        done = subprocess.run(
            [str(NODE), folder / "script.js"], capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    page = f"<!doctype html><meta charset='utf-8'><script>{text}\n{_FOUND.format(expression)}</script>"
    (folder / "script.html").write_text(page, encoding="utf-8")
    return found(browse(folder / "script.html", folder).stdout)


def probe(page: Path, folder: Path, script: str, *options: str) -> Any:
    """What a script gives that is added to the end of a page, and allowed by the page's policy; it calls `found`."""
    script = f"const found = (value) => {{ {_FOUND.format('value')} }};\n{script}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8")
    assert text.count("script-src 'sha256-") == text.count("</body>") == 1
    text = text.replace("script-src '", f"script-src 'sha256-{digest}' '")
    probed = folder / "probed.html"
    probed.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    done = browse(probed, folder, *options)
    assert "CONSOLE" not in done.stderr, done.stderr
    return found(done.stdout)


def browse(page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page; stdout is its document after loading, stderr has what it wrote to the console."""
    return subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
         "--enable-logging=stderr", *options, "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip


def found(document: str) -> Any:
    """What a script has put into the document's `data-found`."""
    match = re.search(r'data-found="([^"]*)"', document)
    assert match, document[:2000]
    return json.loads(html.unescape(match[1]))


class Browser:
    """A headless Chromium that is driven over a pipe, by the Chrome DevTools protocol: keys and clicks are real ones.

    `requests` are the addresses that it has asked for, `problems` what it wrote to the console.
    """

    def __init__(self, folder: Path, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        self.requests, self.problems = list[str](), list[str]()
        self._number, self._left = 0, b""
        (told, self._in), (self._out, tells) = os.pipe(), os.pipe()
        # it reads from descriptor 3 and writes to 4
        command = f'exec "$0" "$@" 3<&{told} 4>&{tells}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu",
             "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"],
            pass_fds=(told, tells), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(told)
        os.close(tells)
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._in)  # then it exits
        self._process.wait(20)
        os.close(self._out)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            assert select.select([self._out], [], [], 60)[0], "no answer from chromium"
            part = os.read(self._out, 1 << 20)
            assert part, "chromium has ended"
            self._left += part
        content, _, self._left = self._left.partition(b"\0")
        message: dict[str, Any] = json.loads(content)
        given = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.problems.append(json.dumps(given, ensure_ascii=False)[:500])
        return message

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def value(self, expression: str) -> Any:
        """Of an expression of JavaScript in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 30) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < end, (expression, self.value("document.body.innerText"), self.problems)
            time.sleep(0.02)
        return found

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, *keys: str) -> None:
        """Keys by their names, such as Enter."""
        codes = {
            "Enter": 13, "Escape": 27, "Tab": 9, "Space": 32,
            "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
        }  # fmt: skip
        for key in keys:
            typed = {"Enter": "\r", "Space": " "}.get(key, "")
            shared = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": codes[key]}
            text = {"text": typed} if typed else {}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **shared, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def picture(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


def _literal(data: Any) -> str:
    return json.dumps(data).replace("<", "\\u003c")
