"""Addresses at which people find a run's report and review, who do not see the disk of the machine that built it."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

from qalam_core.errors import QalamError

REPORT_URL = "QALAM_REPORT_URL"
"""Environment variable: the address at which the store's folder `runs`, or a copy of it, is served."""

# scheme, host, port, folders; without a user, a password, a query or a fragment
_ADDRESS = re.compile(r"(https?|s3|gs)://([\w.-]+|\[[\da-f:.]+\])(:\d{1,5})?(/[\w.~%+:,=@-]+)*/*", re.ASCII)


def report_base() -> str:
    """The address in $QALAM_REPORT_URL, "" where it is not set. Raises QalamError."""
    base = os.environ.get(REPORT_URL, "")
    if base and not _ADDRESS.fullmatch(base):
        raise QalamError(  # without the value, which may hold a password
            f"{REPORT_URL} is not the address of a folder; give one such as https://models.example.org/runs, without a "
            "password, a query or spaces"
        )
    return base.rstrip("/")


def report_link(run: str) -> str:
    """The address of a run's report.html, "" where $QALAM_REPORT_URL is not set. Raises QalamError."""
    return _link(run, "report.html")


def review_link(run: str) -> str:
    """The address of a run's review against its champion, "" where $QALAM_REPORT_URL is not set. Raises QalamError."""
    return _link(run, "review.html")


def _link(run: str, page: str) -> str:
    base = report_base()
    return f"{base}/{quote(run, safe='')}/{page}" if base else ""
