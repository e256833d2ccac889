"""Which event a build leaves, what it says, and that it is kept until the server has confirmed it."""

from __future__ import annotations

import errno
import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, temporary_settings

from al_qalam.flows.cli import build as cli
from al_qalam.flows.serving.watch import watch
from al_qalam.tasks import events
from qalam_core.errors import QalamError
from qalam_core.pipeline.publish import Published
from qalam_core.runs import Proposal
from qalam_core.store import Store
from tests.conftest import Built, judged, sentences, tiny_recipe
from tests.failing_disk import WRITES, broken


class Server:
    """Answers with the given statuses, the last one for ever, and records the ids of the events that it confirms."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.confirmed, self.requests = list(statuses), list[str](), 0
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/api/events"
                server.requests += 1
                status = server.statuses.pop(0) if len(server.statuses) > 1 else server.statuses[0]
                server.confirmed += [event["event"] for event in body] if status == 204 else []
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.api = f"http://127.0.0.1:{self.http.server_port}/api"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(events, "DELAYS", (0.01, 0.01))
    found = Server(204)
    with temporary_settings({PREFECT_API_URL: found.api, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
        yield found
    found.http.shutdown()
    found.http.server_close()


def outcome(built: Built, *failed: str, promoted: bool = False, held: str = "") -> Published:
    record = built.published.record.model_copy(update={"verdict": judged(*failed)})
    return replace(built.published, record=record, promoted=promoted, champion=promoted, held=held)


def outbox(store: Store) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in (store.root / "outbox").glob("*")]


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
        (("yardstick", "champion"), False, "", events.GATE_REFUSED, "the gate refused: yardstick. champion."),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("server")
def test_what_became_of_a_run(
    built: Built, tmp_path: Path, failed: tuple[str, ...], promoted: bool, held: str, event: str | None, decision: str,
) -> None:  # fmt: skip
    published, store = outcome(built, *failed, promoted=promoted, held=held), Store(tmp_path)
    assert published.decision.startswith(decision.replace("RUN", published.run))
    events.announce(store, published, "tiny")
    assert [left["event"] for left in outbox(store)] == ([event] if event else [])
    assert all(left["payload"]["decision"] == published.decision for left in outbox(store))


@pytest.mark.parametrize(
    ("failed", "promoted", "before"),
    [((), True, events.PROMOTED), (("champion",), False, events.GATE_REFUSED), ((), False, None)],
)
@pytest.mark.usefixtures("server")
def test_every_decision_on_a_proposal(
    built: Built, tmp_path: Path, failed: tuple[str, ...], promoted: bool, before: str | None
) -> None:
    """Also of one that was decided before: whoever proposed it waits for an answer."""
    made, store = outcome(built, *failed, promoted=promoted), Store(tmp_path)
    proposal = Proposal(package="0" * 64, why="x\x1b", who="amal", edits=(), changes=(), unknown="")
    published = replace(made, record=made.record.model_copy(update={"proposal": proposal}))
    events.announce(store, published, "tiny")
    left = {one["event"]: one["payload"] for one in outbox(store)}
    assert left.keys() == {events.PROPOSED, before} - {None}
    decided = left[events.PROPOSED]
    assert (decided["who"], decided["passed"], decided["parent"]) == ("amal", not failed, "")
    assert "\x1b" not in decided["why"]


@pytest.mark.parametrize(
    ("statuses", "requests", "problem"),
    [
        ([204], 1, ""),
        ([500, 204], 2, ""),
        ([401], 1, "status 401; set PREFECT_API_AUTH_STRING to its password"),
        ([404], 1, "status 404; is it a Prefect server?"),
        ([200], 1, "status 200; is it a Prefect server?"),  # a page to sign in
        ([500], 3, "status 500"),
    ],
)
def test_an_event_is_kept_until_it_is_confirmed(
    server: Server, built: Built, tmp_path: Path, statuses: list[int], requests: int, problem: str
) -> None:
    store = Store(tmp_path)
    events.announce(store, outcome(built, "champion"), "tiny")
    events.announce(store, outcome(built, promoted=True), "tiny")
    before = sorted(left["id"] for left in outbox(store))
    server.statuses = statuses
    line = events.deliver(store)
    assert server.requests == requests
    if problem:
        assert line.startswith("2 notices were not delivered, and the next build")
        assert problem in line
        assert "\n" not in line
        assert sorted(left["id"] for left in outbox(store)) == before
        server.statuses = [204]
        assert events.deliver(store) == ""
    assert server.confirmed == [events.GATE_REFUSED, events.PROMOTED], "the oldest first"
    assert outbox(store) == []
    assert events.deliver(store) == line * (not problem) == ""
    assert len(server.confirmed) == 2


def test_a_damaged_event_is_named_and_the_others_are_sent(server: Server, built: Built, tmp_path: Path) -> None:
    store = Store(tmp_path)
    events.announce(store, outcome(built, promoted=True), "tiny")
    (tmp_path / "outbox" / "damaged.json").write_bytes(b"{")
    assert events.deliver(store) == f"{tmp_path / 'outbox' / 'damaged.json'} is not a readable event; delete it"
    assert server.confirmed == [events.PROMOTED]


def test_watch_records_what_the_server_has_confirmed(server: Server, built: Built, tmp_path: Path) -> None:
    """Otherwise it says so once, and tries again; files that a build would not read are named."""
    texts, store = tmp_path / "texts", Store(tmp_path / "store")
    texts.mkdir()
    for name in ("one.txt", "two.txt"):
        (texts / name).write_text("\n".join(sentences(5)), encoding="utf-8")
    recipe, warnings = tiny_recipe(texts / "one.txt"), list[str]()
    server.statuses = [401]
    with pytest.raises(QalamError, match="status 401; set PREFECT_API_AUTH_STRING"):
        next(watch(texts, store, recipe, 0.01, warnings.append, once=True))
    assert not (store.root / "watched").exists()
    assert len(warnings) == 1
    assert warnings.pop().startswith(
        f"1 file is not in the corpus of {recipe.name}, and a build will not read them: two."
    )
    events.announce(store, outcome(built, promoted=True), "tiny")
    server.statuses = [401, 401, 204]
    running = watch(texts, store, tiny_recipe(texts), 0.01, warnings.append)
    assert next(running) == ["one.txt", "two.txt"]
    assert server.confirmed == [events.CORPUS_UPDATED]
    (warning,) = warnings
    assert "status 401" in warning
    assert warning.endswith("; trying again every 0.01 s")
    (texts / "three.txt").touch()
    assert next(running) == ["three.txt"]
    assert server.confirmed == [events.CORPUS_UPDATED, events.PROMOTED, events.CORPUS_UPDATED]
    assert list(watch(texts, store, tiny_recipe(texts), 0.01, warnings.append, once=True)) == []


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"null", b'{"one.txt": 1}', b"\xff"])
def test_watch_with_a_damaged_record_sends_everything_again(
    damaged: bytes, server: Server, built: Built, tmp_path: Path
) -> None:
    texts, store = tmp_path / "texts", Store(tmp_path / "store")
    texts.mkdir()
    (texts / "one.txt").write_text("\n".join(sentences(5)), encoding="utf-8")
    assert [*watch(texts, store, tiny_recipe(texts), 0.01, print, once=True)] == [["one.txt"]]
    (record,) = (store.root / "watched").iterdir()
    record.write_bytes(damaged)
    assert [*watch(texts, store, tiny_recipe(texts), 0.01, print, once=True)] == [["one.txt"]]
    assert [*watch(texts, store, tiny_recipe(texts), 0.01, print, once=True)] == []


def test_watch_on_a_full_disk_sends_a_change_once(server: Server, built: Built, tmp_path: Path) -> None:
    """Each event starts a build."""
    texts, store = tmp_path / "texts", Store(tmp_path / "store")
    texts.mkdir()
    (texts / "one.txt").write_text("\n".join(sentences(5)), encoding="utf-8")
    warnings, full = list[str](), ExitStack()
    full.enter_context(broken(store.root, WRITES, errno.ENOSPC))

    def mend() -> None:
        time.sleep(0.5)  # fifty scans
        full.close()
        (texts / "two.txt").write_text("\n".join(sentences(5)), encoding="utf-8")

    thread = threading.Thread(target=mend)
    thread.start()
    assert next(watch(texts, store, tiny_recipe(texts), 0.01, warnings.append)) == ["two.txt"]
    thread.join()
    assert server.confirmed == [events.CORPUS_UPDATED] * 2
    assert [warning for warning in warnings if "no space left" in warning]


def test_watch_says_that_nothing_would_build(api: str, built: Built, tmp_path: Path) -> None:
    texts, warnings = tmp_path / "texts", list[str]()
    texts.mkdir()
    (texts / "one.txt").write_text("\n".join(sentences(5)), encoding="utf-8")
    recipe = tiny_recipe(texts).model_copy(update={"name": "undeployed"})
    with temporary_settings({PREFECT_API_URL: api}):
        assert [*watch(texts, Store(tmp_path / "store"), recipe, 0.01, warnings.append, once=True)] == [["one.txt"]]
    assert warnings == [
        "the server has no deployment build_model/on-new-corpus-undeployed, so that no build will start; create it "
        "with `qalam deploy`"
    ]


def test_a_build_whose_notice_is_not_delivered_says_so_and_fails(mine: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is published all the same."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(cli, "_built", lambda *_: mine.published)
    cli.build("demo", mine.store.place)
    (mine.store.root / "outbox").mkdir()
    (mine.store.root / "outbox" / "0.json").write_text("{}", encoding="utf-8")
    with pytest.raises(QalamError, match=rf"{mine.published.run} is published, but 1 of the notices in .*outbox"):
        cli.build("demo", mine.store.place)
