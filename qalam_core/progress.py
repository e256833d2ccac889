"""Progress callbacks of long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called as (done, total), in a unit of the caller's; a total of 0 is not known yet."""


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""
