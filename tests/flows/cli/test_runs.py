"""The commands that work on runs: runs, show, lineage, history, promote, rollback, reproduce and gc."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.cells import cell_len

from al_qalam.flows.cli.terminal import out
from qalam_core.evaluation.results import Compared, Comparison, Interval
from qalam_core.pipeline.build import build
from qalam_core.pipeline.publish import Published
from qalam_core.runs import Runs
from qalam_core.store import Store
from tests.conftest import Built, judged, tiny_recipe, write_corpus
from tests.flows.cli.command import qalam


def one_line(done: object) -> str:
    """The error of a command that failed, which is one line."""
    status, text = getattr(done, "returncode"), str(getattr(done, "stderr"))  # noqa: B009
    assert status == 2, text
    assert text.count("\n") == 1
    return text


# -- lists ----------------------------------------------------------------------------------------


def listed(mine: Built, *arguments: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(qalam("runs", "--json", *arguments, "--store", mine.store.root).stdout)
    return found


def test_runs_are_listed_and_chosen(mine: Built) -> None:
    first, run = mine.published.run, with_checks(mine, "yardstick")
    record = mine.runs.record(run)
    later = record.model_copy(update={"created": "2031-02-03T01:30:00+02:00"})
    (mine.runs.folder(run) / "run.json").write_bytes(later.to_json())
    lines = qalam("runs", "--store", mine.store.root).stdout.splitlines()
    assert re.search(rf"^\* {first} .* passed$", lines[1])
    assert re.search(rf"^  {run} 2031-02-02 23:30 .* waiting: yardstick$", lines[2]), "UTC"
    assert [one["run"] for one in listed(mine)] == [first, run]
    assert [one["run"] for one in listed(mine, "--limit", 1, "--since", "2031-02-02T23:30")] == [run]
    assert listed(mine, "--since", "2031-02-02T23:31") == listed(mine, "--name", "other") == []
    states = {"champion": [first], "passed": [first], "waiting": [run], "refused": [], "accepted": []}
    assert {state: [one["run"] for one in listed(mine, "--state", state)] for state in states} == states
    assert "none of 2 runs" in qalam("runs", "--state", "refused", "--store", mine.store.root).stdout
    mine.runs.promote("tiny", run, when="2031-02-04", why="new texts", who="amal", accepted=("new-yardstick",))
    assert [one["states"] for one in listed(mine)] == [["passed"], ["champion", "accepted"]]
    mine.runs.rollback("tiny", "2031-02-05", "wrong dates", "amal")
    assert [one["states"] for one in listed(mine)] == [["champion", "passed"], ["accepted", "rolled-back"]]
    (found,) = listed(mine, "--state", "rolled-back")
    assert (found["failed"], found["created"]) == (["yardstick"], "2031-02-03T01:30:00+02:00")
    assert found["bits_per_byte"] == record.bits_per_byte.canonical()
    shown = qalam("show", run, "--store", mine.store.root).stdout
    assert "accepted, rolled-back; rolled back on 2031-02-05 by amal: wrong dates" in shown


def test_a_run_fits_a_screen(mine: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it holds: sixteen failed checks with long messages, sixty sources, long names."""
    monkeypatch.setattr(out, "width", 80)
    run = with_checks(mine, *(f"{number} check" for number in range(16)))
    usual = qalam("show", mine.published.run, "--store", mine.store.root).stdout
    assert 20 < len(usual.splitlines()) <= 30
    record, report, long = mine.runs.record(run), mine.runs.report(run), "\u202e|\x1b[31m" + 30 * "long name "
    checks = tuple(check.model_copy(update={"message": long}) for check in record.verdict.checks)
    part = report.sources["stories"]
    comparison = Comparison(
        overall=Compared(documents=9, effective=9, model=1, champion=2, change=Interval(low=0, high=1)),
        sources={}, measured_again=False, level=1.0,
    )  # fmt: skip
    verdict = record.verdict.model_copy(update={"checks": checks, "comparison": comparison})
    seen = record.seen.model_copy(update={"own": {f"{number}{long}": number for number in range(60)}})
    record = record.model_copy(update={"verdict": verdict, "seen": seen, "files": {}})
    sources, samples = {f"{number}{long}": part for number in range(60)}, (report.samples[0],) * 40
    report = report.model_copy(update={"sources": sources, "samples": samples})
    (mine.runs.folder(run) / "run.json").write_bytes(record.to_json())
    (mine.runs.folder(run) / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
    mine.runs.promote("tiny", run, when="2030-01-01", why=long, who=long)
    shown = qalam("show", run, "--store", mine.store.root).stdout.splitlines()
    assert len(shown) <= 40
    *fitting, page, _ = shown
    assert all(cell_len(line) <= 80 for line in fitting)
    assert page.endswith("report.html")
    assert "and 57 more sources" in shown
    assert "-50.0%" in "".join(shown)


def test_the_page_of_a_history(mine: Built, tmp_path: Path) -> None:
    with_checks(mine, "yardstick")
    page, arguments = tmp_path / "tiny.html", ("history", "tiny", tmp_path / "tiny.html", "--store", mine.store.root)
    assert "only with --html" in one_line(qalam(*arguments))
    assert qalam(*arguments, "--html").stdout.endswith("tiny.html\n")
    assert "<a " not in page.read_text(encoding="utf-8"), "no address is known"
    assert qalam(*arguments, "--html", QALAM_REPORT_URL="https://m.example.org/r/").returncode == 0
    link = f'<a href="https://m.example.org/r/{mine.published.run}/report.html">'
    assert link in page.read_text(encoding="utf-8")
    assert "QALAM_REPORT_URL" in one_line(qalam(*arguments, "--html", QALAM_REPORT_URL="models.example.org"))
    assert "cannot be written" in one_line(qalam("history", "tiny", tmp_path, "--html", "--store", mine.store.root))
    assert "there is no run of 'no'" in one_line(qalam("history", "no", "--html", "--store", mine.store.root))


# -- exceptions -----------------------------------------------------------------------------------


def with_checks(mine: Built, *failed: str) -> str:
    """A run beside the champion, with another model, whose verdict has these failed checks."""
    runs, run = mine.runs, "tiny-0123456789ab"
    shutil.copytree(mine.published.folder, mine.published.folder.with_name(run))
    record = runs.record(run).model_copy(update={"verdict": judged(*failed), "files": {}})
    (runs.folder(run) / "run.json").write_bytes(record.to_json())
    manifest = runs.folder(run) / "model" / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["tensors"]["embedding.weight"] = "0" * 64
    manifest.write_text(json.dumps(content), encoding="utf-8")
    return run


@pytest.mark.parametrize(
    ("failed", "flags", "accepted"),
    [
        (("yardstick",), "--accept-new-yardstick", ["new-yardstick"]),
        (("gate settings",), "--accept-looser-gate", ["looser-gate"]),
        (("champion", "repetition"), "--accept-refused", ["refused"]),
        (("unigram", "yardstick"), "--accept-refused --accept-new-yardstick", ["new-yardstick", "refused"]),
    ],
)
def test_an_exception_needs_its_flag_and_a_reason(
    mine: Built, failed: tuple[str, ...], flags: str, accepted: list[str]
) -> None:
    run, champion = with_checks(mine, *failed), mine.published.run
    arguments = ["promote", run, "--store", mine.store.root, "--who", "amal"]
    text = one_line(qalam(*arguments, "--why", "better on poetry"))
    assert all(name in text for name in (*failed, *flags.split(), "--why REASON"))
    for wrong in {"--accept-new-yardstick", "--accept-looser-gate", "--accept-refused"} - set(flags.split()):
        assert flags.split()[0] in one_line(qalam(*arguments, wrong, "--why", "x")), "another flag does not do"
        assert "does not need" in one_line(qalam(*arguments, wrong, *flags.split(), "--why", "x"))
    assert "needs a reason" in one_line(qalam(*arguments, *flags.split()))
    assert "--why is blank" in one_line(qalam(*arguments, *flags.split(), "--why", " \n"))
    assert mine.runs.champion("tiny") == champion
    done = qalam(*arguments, *flags.split(), "--why", "better on\npoetry")
    assert done.returncode == 0, done.stderr
    line = mine.runs.promotions("tiny")[-1]
    assert (line.run, line.why, sorted(line.accepted)) == (run, "better on poetry", accepted)
    shown = qalam("history", "tiny", "--store", mine.store.root).stdout.splitlines()
    assert len(shown) == len(mine.runs.promotions("tiny"))
    assert re.search(rf"{run}  promote by amal, accepted .*{accepted[-1]}.*: better on poetry$", shown[-1])
    assert mine.runs.accepted(run) == tuple(f"{name}: better on poetry" for name in line.accepted)


def test_a_run_that_passed_needs_no_exception(mine: Built) -> None:
    run = with_checks(mine)
    assert "does not need --accept-refused" in one_line(
        qalam("promote", run, "--store", mine.store.root, "--accept-refused", "--why", "x")
    )
    assert "--why is blank" in one_line(qalam("promote", run, "--store", mine.store.root, "--why", ""))
    assert qalam("promote", run, "--store", mine.store.root).returncode == 0
    assert mine.runs.promotions("tiny")[-1].accepted == ()


def test_a_rolled_back_model_needs_its_own_flag(mine: Built) -> None:
    run, first = with_checks(mine), mine.published.run
    assert qalam("promote", run, "--store", mine.store.root).returncode == 0
    back = qalam("rollback", "tiny", "--store", mine.store.root, "--why", "wrong dates", "--who", "amal")
    assert f"{first} is the champion of tiny again" in back.stdout
    text = one_line(qalam("promote", run, "--store", mine.store.root))
    assert re.search(r"it was rolled back on 20..-..-.. by amal: wrong dates; add --accept-rolled-back and --why", text)
    again = qalam("promote", run, "--store", mine.store.root, "--accept-rolled-back", "--why", "the dates were right")
    assert again.returncode == 0, again.stderr
    assert mine.runs.champion("tiny") == run
    assert "--why is blank" in one_line(qalam("rollback", "tiny", "--store", mine.store.root, "--why", " "))


# -- a chain --------------------------------------------------------------------------------------


class Chain(NamedTuple):
    """Three nights, each from the weights of the one before; the last has lost texts."""

    store: Store
    nights: list[Published]

    @property
    def runs(self) -> list[str]:
        return [night.run for night in self.nights]


@pytest.fixture(scope="module")
def chain(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    store, nights = Store(folder / "store"), []
    for number, count in enumerate((340, 400, 280)):
        corpus = write_corpus(folder / f"night-{number}.jsonl", count)
        train = {"steps": 15, "checkpoint_every": 15, "validate_every": 15, "start": "champion"}
        nights.append(build(tiny_recipe(corpus, train=train, gate={"tolerance": 0.9}), store))
        accepted = ("refused",) if number == 0 else ()  # whatever the gate says
        home = Runs(store)
        (home.store.root / "champions" / "tiny.jsonl").unlink(missing_ok=True)
        home.promote("tiny", nights[-1].run, when="2030-01-01", why="|first| night", who="t", accepted=accepted)
    return Chain(store, nights)


@pytest.fixture
def copy(chain: Chain, tmp_path: Path) -> Chain:
    shutil.copytree(chain.store.root, tmp_path / "store")
    return chain._replace(store=Store(tmp_path / "store"))


def test_lineage_shows_the_tree(copy: Chain) -> None:
    first, second, third = copy.runs
    record = Runs(copy.store).record(third)
    text = qalam("lineage", third, "--store", copy.store.root).stdout
    assert text.splitlines()[0] == f"{third}: begun from run {second}"
    assert f"has read {sum(record.seen.lineage.values())} distinct documents: stories " in text
    assert f"{record.seen.gone['stories']} of them are no longer in its corpus: stories " in text
    assert text.index(third) < text.index(f"├── {second}") < text.index(f"└── {first}")
    for ancestor in record.lineage:
        assert f"package {ancestor.package[:12]}, corpus {ancestor.corpus[:12]}" in text
        assert f"trained on stories {ancestor.documents['stories']}" in text
    assert text.count("changed afterwards: the texts alone") == 2
    assert text.count("exception: refused: |first| night") == 1
    assert "deleted" not in text
    drift = f"How far the chain of 2 nights since run {first} has drifted from a model that was trained from scratch is"
    assert f"{drift} unknown" in text
    for name in ("report.md", "report.html"):
        assert drift in (Runs(copy.store).folder(third) / name).read_text(encoding="utf-8")
    shutil.rmtree(Runs(copy.store).folder(first))
    shown = qalam("lineage", third, "--store", copy.store.root).stdout
    assert shown.count("deleted from the store") == 1
    assert shown.rstrip().endswith("deleted from the store")
    assert qalam("lineage", second, "--store", copy.store.root).stdout.startswith(f"{second}: begun from run {first}\n")


def test_lineage_as_json(copy: Chain) -> None:
    first, second, third = copy.runs
    shutil.rmtree(Runs(copy.store).folder(first))
    found = json.loads(qalam("lineage", third, "--store", copy.store.root, "--json").stdout)
    record = Runs(copy.store).record(third)
    assert (found["run"], found["begun_from"]) == (third, second)
    assert (found["read"], found["own"], found["gone"]) == (record.seen.lineage, record.seen.own, record.seen.gone)
    assert [(one["run"], one["in_store"]) for one in found["ancestors"]] == [(second, True), (first, False)]
    assert found["ancestors"][1]["accepted"] == ["refused: |first| night"]
    assert "is unknown" in found["drift"]


def test_a_cold_run_is_from_scratch(chain: Chain) -> None:
    first = chain.runs[0]
    text = qalam("lineage", first, "--store", chain.store.root).stdout
    assert text.splitlines()[0] == f"{first}: from scratch"
    assert "└──" not in text
    assert json.loads(qalam("lineage", first, "--store", chain.store.root, "--json").stdout)["begun_from"] is None
    assert "training from scratch" in qalam("show", first, "--store", chain.store.root).stdout
    package = qalam("show", chain.nights[0].folder / "model").stdout
    assert "training began with random weights" in package


def test_every_account_says_the_same(chain: Chain) -> None:
    """Of a descendant: the report in both forms, `qalam show`, and the package."""
    first, second, third = chain.runs
    night, store = chain.nights[2], chain.store.root
    assert f"training begun from run {second} " in qalam("show", third, "--store", store).stdout
    assert f"training began with the weights of run {second}, package " in qalam("show", night.folder / "model").stdout
    total = f"{sum(night.record.seen.lineage.values()):,} distinct documents in all"
    gone = f"(stories {night.record.seen.gone['stories']}); the model may still repeat them"
    for name in ("report.md", "report.html", "model/MODEL_CARD.md"):
        text = (night.folder / name).read_text(encoding="utf-8")
        assert f"Training continued from the weights of run {second}. So the model has read what that run" in text
        assert total in text
        assert gone in text
        assert first in text
        assert re.search(r"refused: .{0,5}first.{0,5} night", text), name
    cold = (chain.nights[0].folder / "report.md").read_text(encoding="utf-8")
    assert "Training began with random weights." in cold
    assert "Training began with random weights." in (chain.nights[0].folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("processes")
def test_reproduce_says_what_was_copied(copy: Chain, tmp_path: Path) -> None:
    first, second, _ = copy.runs
    done = qalam("reproduce", second, "--store", copy.store.root, "--in", tmp_path / "again")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"its parent's weights were copied from the store (run {first})" in done.stdout
    assert f"{second} is reproduced" in done.stdout
    assert (tmp_path / "again" / "runs" / second).is_dir()
    whole = qalam("reproduce", second, "--store", copy.store.root, "--lineage")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "built again from text alone, with the run before it" in whole.stdout
    assert [line.split()[1] for line in whole.stdout.splitlines() if line.startswith("run ")] == [first, second]
    (Runs(copy.store).folder(first) / "model" / "vocab.py").write_text("", encoding="utf-8")
    differs = qalam("reproduce", first, "--store", copy.store.root)
    assert differs.returncode == 1
    assert "model/vocab.py" in differs.stdout


def test_gc_lists_what_can_no_longer_be_built_again(copy: Chain) -> None:
    first, second, third = copy.runs
    Runs(copy.store).promote("tiny", second, when="t", why="w", who="t")
    Runs(copy.store).promote("tiny", third, when="t", why="w", who="t")
    record = Runs(copy.store).record(second)
    for change in ({"incumbent": "", "lineage": ()}, {}):  # first so that nothing needs the first run
        (Runs(copy.store).folder(second) / "run.json").write_bytes(record.model_copy(update=change).to_json())
        dry = qalam("gc", "--keep", "1", "--store", copy.store.root)
        assert dry.returncode == 0, dry.stderr
        listed = f"can no longer be built again: {third}: from its parent's weights, and not from text: {first}"
        assert (listed in dry.stdout) == bool(change)
    assert "would be deleted (with --delete)" in dry.stdout
    assert Runs(copy.store).ids() == copy.runs
    (Runs(copy.store).folder(second) / "run.json").write_bytes(
        record.model_copy(update={"incumbent": "", "lineage": ()}).to_json()
    )
    done = qalam("gc", "--keep", "1", "--delete", "--store", copy.store.root)
    assert done.stdout.index(listed) < done.stdout.index(f"\n{first}\n")
    assert "the sources are not in the store" in done.stdout
    assert Runs(copy.store).ids() == [second, third]
