"""Comparison with champions: what passes, what is refused, and what waits for a person."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.evaluation.comparison import Anchor, Champion, Exchanged, Remeasured, comparable, settings_check
from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.results import Check, Report, Verdict
from qalam_core.recipe import Requirements
from tests.conftest import examples
from tests.evaluation.small_report import BUDGETS, divided, report, some

GATE = Requirements()
QUIET = Requirements(seed_sd=0.0)
COUNT = 80
BASE = np.random.default_rng(0).gamma(16, 0.5, COUNT)


def measured(mean: float = 1.0, noise: float = 0.002, seed: int = 1, count: int = COUNT) -> Report:
    """Of a model that needs `mean` times the nats of the first champion, more or less."""
    factors = mean * (1 + noise * np.random.default_rng(seed).standard_normal(count))
    return report(spread=tuple((np.resize(BASE, count) * factors).tolist()))


CHAMPION = Champion(measured(noise=0.0), level=1.0)


def verdict(
    made: Report, champion: Champion = CHAMPION, gate: Requirements = GATE, anchors: Sequence[Anchor] = ()
) -> Verdict:
    return decide(made, BUDGETS, gate, champion, anchors)


def failed(found: Verdict) -> list[str]:
    return [check.name for check in found.checks if not check.passed]


def check(found: Verdict, name: str) -> Check:
    return next(check for check in found.checks if check.name == name)


def elsewhere(made: Report, places: Sequence[int] = range(COUNT)) -> Report:
    """The same figures on other texts, at these places."""
    digests = [f"f{n:011x}" if n in places else digest for n, digest in enumerate(made.document_digests)]
    return made.model_copy(update={"document_digests": tuple(digests)})


# -- non-inferiority ------------------------------------------------------------------------------


def test_only_what_is_shown_to_be_not_worse_passes() -> None:
    assert failed(verdict(measured(1.01))) == []
    assert failed(verdict(measured(1.04))) == ["champion"]
    # possibly not worse, and not shown
    assert failed(verdict(measured(1.01, noise=0.3))) == ["champion"]
    # the same figures, when training is less stable
    assert failed(verdict(measured(1.01), gate=Requirements(seed_sd=0.02))) == ["champion"]
    assert failed(verdict(measured(1.01), gate=Requirements(seed_sd=0.02, tolerance=0.1))) == []
    # less confidence is easier
    assert failed(verdict(measured(1.03), gate=Requirements(confidence=0.6))) == []


def test_the_message_has_the_figures_that_decide() -> None:
    found = verdict(measured(1.01))
    assert found.comparison
    change = found.comparison.overall.change
    assert change.low < 0.01 < change.high
    # one-sided at 95%, of both seeds' noise and a little of the documents'
    assert change.high == pytest.approx(1.01 * math.exp(1.645 * math.sqrt(2) * 0.005) - 1, abs=3e-4)
    message = check(found, "champion").message
    assert f"{change.low:+.2%} to {change.high:+.2%} (each end with 95% confidence)" in message
    assert "below +3.50%" in message
    assert found.comparison.level == pytest.approx(1.01, abs=1e-3)
    assert found.comparison.sources["news"].documents == COUNT


@given(st.floats(1.0351, 3), st.floats(0, 0.05), st.integers(0, 9))
@settings(max_examples=examples(30))
def test_worse_by_more_than_the_margin_on_every_document_never_passes(worse: float, spread: float, seed: int) -> None:
    factors = worse + spread * np.random.default_rng(seed).random(COUNT)
    made = report(spread=tuple((BASE * factors).tolist()))
    assert "champion" in failed(verdict(made))
    assert "champion" in failed(verdict(made, gate=QUIET))


@given(st.lists(st.floats(0.9, 1.1), min_size=40, max_size=40), st.floats(0.5, 1))
@settings(max_examples=examples(30))
def test_a_model_that_is_cheaper_by_one_factor_still_passes(factors: list[float], cheaper: float) -> None:
    champion = Champion(report(spread=tuple(BASE[:40].tolist())))
    nats = BASE[:40] * np.array(factors)
    if not failed(verdict(report(spread=tuple(nats.tolist())), champion)):
        assert failed(verdict(report(spread=tuple((nats * cheaper).tolist())), champion)) == []


@given(st.permutations(range(COUNT)), st.permutations(["a", "b", "c"]))
@settings(max_examples=examples(30))
def test_neither_order_nor_names_matter(order: list[int], names: list[str]) -> None:
    slices = [n % 3 for n in range(COUNT)]
    made = measured(1.02)
    then = Champion(divided(CHAMPION.report, ["abc"[n] for n in slices]))
    plain = verdict(divided(made, ["abc"[n] for n in slices]), then)
    renamed = verdict(some(divided(made, [names[n] for n in slices]), order), then)
    assert plain.comparison
    assert renamed.comparison
    assert renamed.comparison.overall.change.high == pytest.approx(plain.comparison.overall.change.high, abs=2e-6)
    assert failed(renamed) == failed(plain)
    changes = [sorted(part.change.high for part in one.comparison.sources.values()) for one in (plain, renamed)]  # type: ignore[union-attr]
    assert changes[0] == pytest.approx(changes[1], abs=2e-6)


# -- the yardstick --------------------------------------------------------------------------------


def test_names_and_digests_of_whole_splits_do_not_matter() -> None:
    other = measured(1.01).model_copy(update={"test_digest": "b" * 64})
    assert failed(verdict(divided(other, ["renamed"] * COUNT))) == []


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (elsewhere(measured()), "was not measured again"),
        (elsewhere(measured(), range(COUNT // 2 + 1)), "was not measured again"),  # fewer than half are common
        (some(measured(), range(29)), "was not measured again"),  # and 29 are too few
        (some(measured(), [0]), "was not measured again"),
    ],
)
def test_a_model_that_cannot_be_compared_waits_for_a_person(made: Report, reason: str) -> None:
    assert not comparable(made, CHAMPION.report)
    found = verdict(made)
    assert failed(found) == ["yardstick"]
    assert found.comparison is None
    message = check(found, "yardstick").message
    assert reason in message
    assert message.endswith('qalam promote RUN --accept-new-yardstick --why "...".')


def test_one_huge_document_is_no_evidence() -> None:
    """49 documents are 6% worse, and one of 91% of the bytes is better."""
    size = (10,) * 49 + (4950,)
    champion = report(spread=size).model_copy(update={"document_bytes": size})
    made = report(spread=tuple(n * (1.06 if n == 10 else 0.9) for n in size)).model_copy(
        update={"document_bytes": size}
    )
    assert "yardstick" in failed(verdict(made, Champion(champion)))


@given(st.floats(0.001, 1), st.floats(5, 300))
@settings(max_examples=examples(30))
def test_a_large_document_cannot_mask_the_others(better: float, share: float) -> None:
    """However large it is: all others are 15% worse, and it is better."""
    size = np.array([10.0] * COUNT)
    size[0] *= share
    champion = report(spread=tuple(size)).model_copy(update={"document_bytes": tuple(map(int, size))})
    worse = report(spread=tuple(size * np.array([better] + [1.15] * (COUNT - 1))))
    made = worse.model_copy(update={"document_bytes": champion.document_bytes})
    assert failed(verdict(made, Champion(champion)))


def exchanged(champion: Remeasured, factor: float = 1.01, read: int = 0) -> Exchanged:
    """The model needs `factor` times the champion's bits for its documents, and has read some of them."""
    there = np.array(CHAMPION.report.document_nats) * factor
    return Exchanged(champion, Remeasured(tuple(there), (True,) * read + (False,) * (COUNT - read)))


@pytest.mark.parametrize(
    ("factor", "read", "reason"),
    [
        (1.05, 0, "on 80 of the champion's the change is +"),
        (0.9, 55, "on the champion's test documents, without the 55 that the model has read, the test documents count"),
        (math.nan, 0, "on the champion's test documents, the figures of the model are not finite"),
    ],
)
def test_better_on_its_own_documents_is_not_enough(factor: float, read: int, reason: str) -> None:
    """A corpus whose documents were cut is easier for both models."""
    again = Remeasured(CHAMPION.report.document_nats, (False,) * COUNT)
    made = elsewhere(measured(0.9))
    assert failed(verdict(made, Champion(CHAMPION.report, exchanged=exchanged(again)))) == []
    found = verdict(made, Champion(CHAMPION.report, exchanged=exchanged(again, factor, read)))
    assert failed(found) == ["yardstick"]
    assert found.comparison, "it is shown nevertheless"
    assert reason in check(found, "yardstick").message


def test_the_champion_measured_again_is_compared() -> None:
    made = elsewhere(measured(1.01))
    again = Remeasured(CHAMPION.report.document_nats, (False,) * COUNT)
    found = verdict(made, Champion(CHAMPION.report, exchanged=exchanged(again)))
    assert failed(found) == []
    assert found.comparison
    assert found.comparison.measured_again
    assert "measured again" in check(found, "yardstick").message
    worse = elsewhere(measured(1.05))
    assert failed(verdict(worse, Champion(CHAMPION.report, exchanged=exchanged(again)))) == ["champion"]


def test_documents_that_the_champion_has_read_do_not_count() -> None:
    """The champion knows 40 of them by heart."""
    nats = np.array(CHAMPION.report.document_nats) * np.array([0.1] * 40 + [1.0] * 40)
    made = elsewhere(measured(1.01))
    flattered = Remeasured(tuple(nats), (False,) * COUNT)
    assert "champion" in failed(verdict(made, Champion(CHAMPION.report, exchanged=exchanged(flattered))))
    fair = Remeasured(tuple(nats), (True,) * 40 + (False,) * 40)
    assert failed(verdict(made, Champion(CHAMPION.report, exchanged=exchanged(fair)))) == []
    few = Remeasured(tuple(nats), (True,) * 55 + (False,) * 25)
    found = verdict(made, Champion(CHAMPION.report, exchanged=exchanged(few)))
    assert failed(found) == ["yardstick"]
    assert "without the 55 that the champion has read" in check(found, "yardstick").message


def test_why_the_champion_could_not_be_measured_is_said() -> None:
    again = Remeasured(problem="the champion's package cannot be read")
    found = verdict(elsewhere(measured()), Champion(CHAMPION.report, exchanged=exchanged(again)))
    assert failed(found) == ["yardstick"]
    assert "cannot be read" in check(found, "yardstick").message


def test_a_rotated_source_is_measured_again_although_half_is_common() -> None:
    """Its texts are new, under its old name, and the model is bad there: the other source must not hide it."""
    names = ["old"] * 40 + ["new"] * 40
    then, made = divided(CHAMPION.report, names), elsewhere(divided(measured(), names), range(40, COUNT))
    assert not comparable(made, then)
    assert failed(verdict(made, Champion(then))) == ["yardstick"]


def test_dropping_the_harder_documents_waits_for_a_person() -> None:
    difficulty = np.array([0.8] * 50 + [1.2] * 30)
    then = report(spread=tuple((BASE * 0 + 10) * difficulty))
    easier = some(then, range(50))
    found = verdict(easier, Champion(then))
    assert failed(found) == ["yardstick"]
    assert "the harder part" in check(found, "yardstick").message
    # nor does it help that so many are gone that the champion is measured again
    fewer = some(then, range(34))
    again = Remeasured(fewer.document_nats, (False,) * 34)
    again_there = Remeasured(then.document_nats, (False,) * len(then.document_nats))
    assert failed(verdict(fewer, Champion(then, exchanged=Exchanged(again, again_there)))) == ["yardstick"]
    # others of the same kind may go
    assert failed(verdict(some(then, [*range(30), *range(50, 70)]), Champion(then))) == []


# -- earlier champions ----------------------------------------------------------------------------


def test_ten_small_steps_do_not_all_pass() -> None:
    champions, passed = [CHAMPION], 0
    for step in range(1, 11):
        made = measured(1.019**step, seed=step)
        found = verdict(made, champions[0], QUIET, champions[1:])
        if found.passed:
            assert found.comparison
            champions.insert(0, Champion(made, found.comparison.level))
            passed += 1
        else:
            assert "earlier champions" in failed(found)
    assert passed == 2


@pytest.mark.parametrize("kept", [0, 1])
def test_small_steps_do_not_all_pass_when_earlier_champions_are_deleted(kept: int) -> None:
    """Else each deletion would make the champion of that day the yardstick."""
    champion, before, passed = replace(CHAMPION, levels={"run-0": 1.0}), list[Anchor](), 0
    for step in range(1, 11):
        made = measured(1.019**step, seed=step)
        found = verdict(made, champion, QUIET, [*before[:kept], *(Anchor(None, one.level) for one in before[kept:])])
        if found.passed:
            assert found.comparison
            assert found.comparison.levels == champion.levels
            before.insert(0, champion)
            level = found.comparison.level
            champion = Champion(made, level, levels={f"run-{step}": level, **found.comparison.levels})
            passed += 1
        else:
            assert "earlier champions" in failed(found)
    assert passed == 2
    assert list(champion.levels) == ["run-2", "run-1", "run-0"]


def test_a_hidden_drift_is_refused_by_the_mean_of_the_last_models() -> None:
    drifted = [Champion(measured(1 + 0.0025 * step, seed=step), 1 + 0.0025 * step) for step in range(8, 0, -1)]
    champions = [*drifted, CHAMPION]
    found = verdict(measured(1.0225), champions[0], anchors=champions[1:])
    assert failed(found) == ["drift"]
    assert check(found, "earlier champions").passed
    # a better model is welcome
    assert failed(verdict(measured(0.99), champions[0], anchors=champions[1:])) == []


def test_champions_without_common_documents_are_compared_through_those_between() -> None:
    older = [Anchor(elsewhere(CHAMPION.report), 0.97), Anchor(elsewhere(CHAMPION.report), 0.97)]
    found = verdict(measured(1.01), anchors=older)
    assert "earlier champions" in failed(found)
    assert (
        "Of 2 before the champion, 0 were compared on common documents, 2 through"
        in check(found, "earlier champions").message
    )
    assert failed(verdict(measured(0.99), anchors=older)) == []
    # a person has accepted another yardstick since
    for anchors, champion in ((older, Champion(CHAMPION.report)), ([Anchor(elsewhere(measured())), *older], CHAMPION)):
        found = verdict(measured(1.01), champion, anchors=anchors)
        assert failed(found) == []
        assert "2 could not be" in check(found, "earlier champions").message


def test_anchors_are_read_one_at_a_time() -> None:
    alive: list[int] = []

    def some_anchors() -> object:
        for n in range(5):
            alive.append(n)
            yield Anchor(measured(seed=n), 1.0)

    assert verdict(measured(), anchors=some_anchors()).passed  # type: ignore[arg-type]
    assert alive == [0, 1, 2, 3, 4]


# -- slices ---------------------------------------------------------------------------------------

NAMES = ["news"] * 60 + ["poetry"] * 20


def test_a_worse_slice_is_refused_and_named() -> None:
    then = Champion(divided(CHAMPION.report, NAMES))
    nats = BASE * np.array([0.97] * 60 + [1.1] * 20)
    made = report(spread=tuple(nats))
    found = verdict(divided(made, NAMES), then)
    assert failed(found) == ["slices"]
    assert '"poetry" (+' in check(found, "slices").message
    # merging it into another source does not hide it
    assert failed(verdict(divided(made, ["all"] * COUNT), then)) == ["slices"]
    # nor a new division, where the champion had none
    assert failed(verdict(divided(made, NAMES))) == ["slices"]
    assert failed(verdict(divided(made, NAMES), then, Requirements(slice_tolerance=0.12))) == []


def test_slices_that_could_not_be_tested_are_named() -> None:
    then, names = Champion(divided(CHAMPION.report, NAMES)), [*NAMES[:-1], "one poem"]
    found = check(verdict(divided(measured(), names), then), "slices")
    assert found.passed
    assert found.message.startswith("Of 2 slices")
    assert found.message.endswith('too few documents to tell for "one poem".')
    assert "too few" not in check(verdict(divided(measured(), NAMES), then), "slices").message


def nights(news: float, poetry: float, count: int) -> tuple[int, list[str]]:
    """Models that each need so many times the nats of the one before; -> how many passed, and what the next failed."""
    champions = [Champion(divided(CHAMPION.report, NAMES), level=1.0)]
    for night in range(1, count + 1):
        factors = np.array([news**night] * 60 + [poetry**night] * 20)
        noise = 1 + 0.002 * np.random.default_rng(night).standard_normal(COUNT)
        made = divided(report(spread=tuple(BASE * factors * noise)), NAMES)
        found = verdict(made, champions[0], anchors=champions[1:])
        if not found.passed:
            return night - 1, failed(found)
        assert found.comparison
        champions.insert(0, Champion(made, level=found.comparison.level))
    return count, []


def test_small_losses_of_a_slice_do_not_add_up_behind_a_better_whole() -> None:
    passed, checks = nights(news=0.99, poetry=1.015, count=30)
    assert (4 <= passed <= 12, checks) == (True, ["slices"]), passed
    assert nights(news=0.99, poetry=1.0, count=12) == (12, [])


def test_many_slices_without_a_fault_are_no_fault() -> None:
    """20 slices of 20 documents, with noise of 8% a document: Holm's procedure keeps one of them from being found."""
    count, names = 400, [f"source {n % 20}" for n in range(400)]
    then = Champion(divided(measured(noise=0.0, count=count), names))
    for seed in range(4):
        made = divided(measured(1.0, noise=0.08, seed=seed, count=count), names)
        assert "slices" not in failed(verdict(made, then, Requirements(slice_tolerance=0.0)))


def test_a_slice_that_vanished_is_refused_and_named() -> None:
    then = Champion(divided(CHAMPION.report, NAMES))
    found = verdict(some(divided(measured(), NAMES), range(60)), then)
    assert "slices" in failed(found)
    assert 'The champion\'s slice "poetry" is not in the test split' in check(found, "slices").message
    # all but one of its documents
    assert "slices" in failed(verdict(some(divided(measured(), NAMES), range(61)), then))
    # another name
    assert failed(verdict(divided(measured(), ["news"] * 60 + ["شعر"] * 20), then)) == []


def test_too_few_documents_to_call_a_slice_gone() -> None:
    names = ["news"] * 75 + ["poetry"] * 5
    assert failed(verdict(some(divided(measured(), names), range(75)), Champion(divided(CHAMPION.report, names)))) == []


# -- settings -------------------------------------------------------------------------------------

LOOSER = {
    "beat_unigram": 0.1, "beat_ngram": False, "beat_characters": False, "tolerance": 0.04, "slice_tolerance": 0.06,
    "confidence": 0.9, "seed_sd": 0.004, "max_unknown": 0.6, "max_repeated": 0.4, "max_empty": 0.3, "max_copied": 0.03,
    "max_package_mb": 3000.0, "max_load_seconds": 61.0,
}  # fmt: skip
STRICT = Requirements(beat_unigram=0.2, beat_ngram=True, beat_characters=True)


def test_every_setting_has_a_looser_value() -> None:
    assert set(LOOSER) == set(Requirements.model_fields)


@pytest.mark.parametrize("key", LOOSER)
def test_a_looser_setting_waits_for_a_person(key: str) -> None:
    looser = STRICT.model_copy(update={key: LOOSER[key]})
    found = settings_check(looser, STRICT)
    assert not found.passed
    assert f"({key}: " in found.message
    assert found.message.endswith('qalam promote RUN --accept-looser-gate --why "...".')
    assert settings_check(STRICT, looser).passed
    assert settings_check(looser, looser).passed


def test_a_stricter_gate_and_one_that_was_accepted_pass() -> None:
    loose = Requirements(tolerance=0.5)
    strict = Champion(CHAMPION.report, gate=GATE)
    assert failed(verdict(measured(), strict, loose)) == ["gate settings"]
    accepted = Champion(CHAMPION.report, gate=loose)
    assert failed(verdict(measured(), accepted, loose)) == []
    assert failed(verdict(measured(), accepted, GATE)) == []
