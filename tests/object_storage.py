"""A real S3 server for tests, SeaweedFS, and what a machine's environment has of it."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, cycle
from pathlib import Path

import pytest

KEY, SECRET = "the-key", "a-secret-key-that-must-not-be-found"


def credentials(port: int) -> dict[str, str]:
    """The environment with which obstore, like Amazon's own tools, finds the server."""
    return {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true",
    }  # fmt: skip


def _free_port() -> int:
    """A port that is free, as is that which is 10,000 higher, which SeaweedFS uses too."""
    while True:
        port = random.randrange(20_000, 30_000)
        try:
            for each in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
        except OSError:
            continue
        return port


class Server:
    """SeaweedFS, which can be killed and started again on what it has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: _free_port() for name in ("master", "volume", "filer", "s3")}
        (folder / "data").mkdir(parents=True)
        who = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [who]}), encoding="utf-8")

    @property
    def port(self) -> int:
        """Of its S3 interface."""
        return self.ports["s3"]

    def start(self) -> None:
        ports = [f"-{name}.port={port}" for name, port in self.ports.items()]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("weed"), "server", "-s3", "-ip=127.0.0.1", *ports,
                 f"-dir={self.folder / 'data'}", f"-s3.config={self.folder / 's3.json'}",
                 "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64", "-volume.max=50"],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "log").read_text(errors="replace")[-2000:]
            assert time.monotonic() < until, "the S3 server did not respond within a minute"
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=2).close()
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 403  # it knows who may ask, so it is ready
        except OSError:
            return False
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def s3_server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def on(monkeypatch: pytest.MonkeyPatch, machine: Path, port: int) -> None:
    """Continue as a machine with its own folder of copies."""
    for name, value in {**credentials(port), "QALAM_CACHE": str(machine)}.items():
        monkeypatch.setenv(name, value)


def machine(folder: Path, port: int) -> dict[str, str]:
    """The environment of a process on a machine."""
    return {**os.environ, **credentials(port), "QALAM_CACHE": str(folder)}


class Faulty:
    """A proxy before an S3 server that spoils every k-th request, in turn: a status 503, no answer to a request that
    was not passed on, no answer to one that was, half of an answer, and an answer after a second."""

    KINDS: tuple[str, ...] = ("status", "before", "after", "half", "late")

    def __init__(self, port: int, each: int) -> None:
        self.spoiled: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()  # by method
        self.read: Counter[str] = Counter()  # requests to read, by what comes after the address
        self.bytes: Counter[str] = Counter()  # up and down
        calls, spoiled, requests, read, carried = count(1), self.spoiled, self.requests, self.read, self.bytes
        lock = threading.Lock()
        kinds = cycle(self.KINDS)

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with lock:
                    kind = next(kinds) if next(calls) % each == 0 else ""
                    spoiled[kind] += 1
                    requests[self.command] += 1
                    read[self.path] += self.command == "GET"
                    carried["up"] += len(body)
                if kind == "status":
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if kind == "before":
                    self.close_connection = True
                    return
                if kind == "late":
                    time.sleep(1)
                there = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        there.putheader(name, value)
                    there.endheaders(body)
                    answer = there.getresponse()
                    data = answer.read()
                except (OSError, http.client.HTTPException):  # the server was killed
                    self.close_connection = True
                    return
                finally:
                    there.close()
                with lock:
                    carried["down"] += len(data)
                if kind == "after":
                    self.close_connection = True
                    return
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                if "content-length" not in {name.lower() for name, _ in answer.getheaders()}:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.close_connection = kind == "half"
                self.wfile.write(data[: len(data) // 2] if kind == "half" else data)

            def log_message(self, *_: object) -> None: ...

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None: ...  # of a client that was killed

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.port: int = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
