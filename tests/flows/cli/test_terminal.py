"""The terminal's consoles: what they show, and where they cannot write."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import pytest

from tests.flows.processes import clean_environment

WORK = """
import time
from al_qalam.flows.cli.terminal import bars, err, out
from qalam_core.progress import Tracker
with bars() as terminal:
    ingest = Tracker("ingest \u0646\u0635\u0648\u0635", "bytes", terminal.moved)
    ingest(0, 4_000_000)
    for done in range(1, 4):
        time.sleep(0.2)
        ingest(done * 1_000_000, 4_000_000)
    err.print("a line")
    terminal.stopped(ingest)
out.print("the result")
"""


pytestmark = pytest.mark.usefixtures("processes")


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2> >(true)", "2>&-"])
def test_work_goes_on_without_standard_error(stderr: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {stderr}', sys.executable, WORK], capture_output=True, text=True, check=False,
        env=clean_environment(QALAM_PROGRESS_SECONDS="0.1"),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "the result\n", "")


def test_a_full_disk_under_standard_output_is_one_line() -> None:
    command = '"$0" -c "from al_qalam.flows.cli.main import main; main()" --version >/dev/full'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable],
        capture_output=True, text=True, check=False, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


def on_a_terminal(term: str) -> str:
    """What WORK writes to a terminal of 40 columns."""
    ours, theirs = os.openpty()
    environment = clean_environment(QALAM_PROGRESS_SECONDS="0.1", TERM=term, COLUMNS="40")
    with subprocess.Popen([sys.executable, "-c", WORK], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        written = b""
        with suppress(OSError):  # the terminal is closed
            while chunk := os.read(ours, 4096):
                written += chunk
        os.close(ours)
    assert process.returncode == 0
    return written.decode()


@pytest.mark.parametrize(("term", "drawn"), [("xterm", True), ("dumb", False)])
def test_a_terminal_that_cannot_draw_bars_gets_lines(term: str, drawn: bool) -> None:
    text = on_a_terminal(term)
    assert ("\x1b[" in text) is drawn
    assert ("running ingest \u0646\u0635\u0648\u0635" in text) is not drawn
    assert "2.0 of 4.0 MB (50%)" in text
