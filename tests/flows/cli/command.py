"""The command line in this process, which saves the second that a new interpreter needs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from typing import Any
from unittest import mock

import typer

from al_qalam.flows.cli import main as cli
from tests.flows.processes import clean_environment


@cache
def _app() -> Callable[[], Any]:
    """All commands, which `cli.app` makes anew for each call."""
    return typer.main.get_command(cli.app)


def qalam(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `qalam` as tests.flows.processes.qalam does. Not for commands that import Prefect, which reads its settings
    only once."""
    command = ["qalam", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, clean_environment(**environment), clear=True),
        mock.patch.object(sys, "argv", command),
        mock.patch.object(cli, "app", _app()),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())
