"""Which event a build emits, and what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from al_qalam.tasks import events
from qalam_core.evaluation.results import Check, Verdict
from qalam_core.pipeline.publish import Published
from tests.conftest import Built


def outcome(built: Built, *failed: str, promoted: bool = False, held: str = "") -> Published:
    checks = tuple(Check(name=name, value=1.0, limit=0.0, passed=False, message=f"{name}!") for name in failed)
    record = built.published.record.model_copy(update={"verdict": Verdict(passed=not failed, checks=checks)})
    return replace(built.published, record=record, promoted=promoted, champion=promoted, held=held)


@pytest.mark.parametrize(
    ("failed", "promoted", "held", "event", "decision"),
    [
        ((), True, "", events.PROMOTED, "passed"),
        ((), False, "", None, "passed"),
        (
            (), False, "rolled back on 2030-01-01 by amal: wrong dates", events.WAITING,
            "passed, but not promoted: rolled back on 2030-01-01 by amal: wrong dates",
        ),
        (("yardstick",), False, "", events.WAITING, "waits for a person (qalam promote RUN --accept-new-yardstick"),
        (
            ("gate settings", "yardstick"), False, "", events.WAITING,
            "waits for a person (qalam promote RUN --accept-looser-gate --accept-new-yardstick --why REASON): gate",
        ),
        (("yardstick", "champion"), False, "", events.GATE_REFUSED, "the gate refused: yardstick! champion!"),
    ],
)  # fmt: skip
def test_what_became_of_a_run(
    built: Built, monkeypatch: pytest.MonkeyPatch, failed: tuple[str, ...], promoted: bool, held: str,
    event: str | None, decision: str,
) -> None:  # fmt: skip
    sent: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(events, "_emit", lambda event, resource, name, payload: sent.append((event, payload)))
    published = outcome(built, *failed, promoted=promoted, held=held)
    assert published.decision.startswith(decision.replace("RUN", published.run))
    events.announce(published, "tiny")
    assert [name for name, _ in sent] == ([event] if event else [])
    assert all(payload["decision"] == published.decision for _, payload in sent)
