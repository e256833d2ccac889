"""The targets that a benchmark states: printed with what was measured, and judged."""

from __future__ import annotations

from collections.abc import Sequence

Target = tuple[str, float, str, float]
"""What was measured, its value, "at most" or "at least", and the limit."""


def judged(targets: Sequence[Target], check: bool) -> int:
    """Print each target, met or missed; -> exit status, 1 when one is missed and `check` is on."""
    missed = 0
    for name, value, direction, limit in targets:
        good = value <= limit if direction == "at most" else value >= limit
        missed += not good
        print(f"{'met   ' if good else 'MISSED'}  {name:60}{value:9.3g}  {direction} {limit}")
    return int(check and missed > 0)
