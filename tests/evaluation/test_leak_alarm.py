"""The gate's leak alarm: silent when the corpus grows, loud when test documents came into the training text."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from qalam_core.evaluation.baselines import CHARACTER_ORDER, CHARACTERS, KneserNey, characters
from qalam_core.evaluation.comparison import Champion
from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.results import Baselines, Check, Counted, Report
from qalam_core.recipe import Requirements
from tests.evaluation.small_evaluation import texts
from tests.evaluation.small_report import BUDGETS, report

TEST = texts(40, 2)


def measured(training: list[str], test: list[str] = TEST) -> Report:
    """A report with the figures of character n-grams that were counted on `training`."""
    stream = characters(pa.array(test, pa.large_string()))
    model = KneserNey.fit([characters(pa.array(training, pa.large_string()))], CHARACTERS, CHARACTER_ORDER)
    nats = np.add.reduceat(model.nats(stream), np.flatnonzero(stream == 2))
    counted = Counted(documents=len(training), of=len(training), size=sum(map(len, training)))
    return report(spread=tuple(float(len(text)) for text in test)).model_copy(
        update={
            "document_bytes": tuple(len(text.encode()) for text in test),
            "document_digests": tuple(f"{random.Random(text).getrandbits(48):012x}" for text in test),
            "document_character_nats": tuple(nats.tolist()),
            "baselines": Baselines(tokens=counted, characters=counted),
        }
    )


def alarm(now: Report, then: Report) -> Check:
    checks = decide(now, BUDGETS, Requirements(), Champion(report=then)).checks
    return next(check for check in checks if check.name == "leak alarm")


def paraphrased(documents: list[str], copies: int = 4, every: int = 10) -> list[str]:
    """Copies in which every tenth word is another one."""
    draw = random.Random(1)
    words = [word for text in texts(60, 3) for word in text.split()]
    made = []
    for text in documents * copies:
        split = text.split()
        for place in range(draw.randrange(every), len(split), every):
            split[place] = draw.choice(words)
        made.append(" ".join(split))
    return made


def test_the_same_text_and_more_text_of_its_kind_are_no_leak() -> None:
    champion = measured(texts(30, 1))
    assert alarm(champion, champion).value == 0
    for growth in (2, 10):
        grown = measured([text for seed in range(growth) for text in texts(30, 10 + seed)])
        found = alarm(grown, champion)
        assert found.passed, found
        assert sum(grown.document_character_nats) < sum(champion.document_character_nats)
    assert alarm(champion, measured(texts(300, 4))).passed  # a corpus that shrank


@pytest.mark.parametrize("growth", [1, 2, 10])
def test_paraphrases_of_test_documents_are_a_leak(growth: int) -> None:
    champion = measured(texts(30, 1))
    honest = [text for seed in range(growth) for text in texts(30, 10 + seed)]
    found = alarm(measured([*honest, *paraphrased(TEST)]), champion)
    assert not found.passed
    assert found.value is not None
    assert found.value < -0.15
    assert "in the training text" in found.message


def test_a_leak_of_some_documents_counts_by_their_share() -> None:
    champion = measured(texts(300, 1))
    assert not alarm(measured([*texts(300, 1), *paraphrased(TEST[:20])]), champion).passed
    assert alarm(measured([*texts(300, 1), *paraphrased(TEST[:2])]), champion).passed


def test_without_common_documents_it_says_so() -> None:
    champion, others = measured(texts(30, 1)), measured(texts(30, 1), texts(40, 7))
    found = alarm(others, champion)
    assert (found.value, found.limit, found.passed) == (None, None, True)
    assert "cannot be compared" in found.message
    assert alarm(champion, champion.model_copy(update={"baselines": None})).value is None
    few = alarm(measured(texts(30, 1), [*TEST[:5], *texts(35, 8)]), champion)
    assert few.value is None
