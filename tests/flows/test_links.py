"""The addresses of reports."""

from __future__ import annotations

from uuid import uuid4

import pytest
from prefect.events.actions import SendNotification
from prefect.server.utilities.user_templates import render_user_template_sync

from al_qalam.flows.serving.automations import automations
from al_qalam.flows.serving.deploy import settings
from al_qalam.tasks.links import REPORT_URL, report_base, report_link, review_link
from qalam_core.errors import QalamError


@pytest.mark.parametrize(
    "base", ["https://models.example.org/runs", "http://[::1]:8080", "s3://bucket/a-prefix/runs/", "gs://b/x%20y"]
)
def test_a_link(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REPORT_URL, base)
    assert report_link("demo-1") == f"{base.rstrip('/')}/demo-1/report.html"
    assert review_link("demo-1") == f"{base.rstrip('/')}/demo-1/review.html"
    assert report_link("a/../\x1b") == f"{base.rstrip('/')}/a%2F..%2F%1B/report.html"


def test_no_link_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REPORT_URL, raising=False)
    assert report_link("demo-1") == ""


@pytest.mark.parametrize(("link", "shown"), [("https://e.org/r/demo-1/report.html", None), ("", "qalam show demo-1")])
def test_a_notice_has_the_link_or_the_command(link: str, shown: str | None) -> None:
    event = {"payload": {"run": "demo-1", "report": link, "bits_per_byte": 1.5, "reasons": "r", "decision": "d"}}
    actions = [action for one in automations("demo", uuid4()) for action in one.actions]
    bodies = [action.body for action in actions if isinstance(action, SendNotification) and "payload" in action.body]
    assert len(bodies) == 3
    for body in bodies:
        assert render_user_template_sync(body, {"event": event}).endswith(f"Report: {shown or link}")


def test_a_notice_has_the_review() -> None:
    payload = {
        "run": "demo-1", "report": "https://e.org/report.html", "bits_per_byte": 1.5, "reasons": "r", "decision": "d",
        "review": "https://e.org/review.html", "changes": "The gate passed it; 2 alarms.",
    }  # fmt: skip
    actions = [action for one in automations("demo", uuid4()) for action in one.actions]
    bodies = [action.body for action in actions if isinstance(action, SendNotification) and "payload" in action.body]
    for body in bodies:
        text = render_user_template_sync(body, {"event": {"payload": payload}})
        assert "The gate passed it; 2 alarms. Review: https://e.org/review.html Report: " in text


@pytest.mark.parametrize(
    "base",
    [
        "models.example.org", "file:///srv/runs", "/srv/runs", "javascript:alert(1)", "https://", "https:///runs",
        "https://amal:secret@example.org/runs", "https://e.org/runs?key=secret", "https://e.org/#runs", " ",
        "https://e.org/a b", "https://e.org/a\n", "https://e.org/\u202e", "https://e.org/a)", "https://e.org:x/",
        'https://e.org/"><b>',
    ],
)  # fmt: skip
def test_a_wrong_address_is_one_line(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REPORT_URL, base)
    for read in (report_base, lambda: settings("demo")):
        with pytest.raises(QalamError, match=f"^{REPORT_URL} is not the address of a folder; [^\n]*$") as raised:
            read()
        assert "secret" not in str(raised.value)
