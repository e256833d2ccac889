"""Evaluation of a real, small package: figures against plain arithmetic, and every planted fault seen."""

from __future__ import annotations

import dataclasses
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer

from qalam_core.errors import CorpusError
from qalam_core.evaluation import evaluate as evaluation
from qalam_core.evaluation import integrity
from qalam_core.evaluation.baselines import Speller, Unigram
from qalam_core.evaluation.evaluate import END, START, UNK, evaluate, longest_copy
from qalam_core.evaluation.gate import Budgets, Report, judge
from qalam_core.model import PureDynamicTransformer
from qalam_core.package import Vocabulary, read, write
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.recipe import Gate
from qalam_core.tokens.tokenizer import ArabicTokenizer

CONTEXT = 16
GATE = Gate(prompts=("قال", ""))


@dataclasses.dataclass(frozen=True)
class Built:
    """A package with what it came from."""

    package: Path
    checkpoint: Path
    tokenizer: ArabicTokenizer
    model: PureDynamicTransformer
    train: list[np.ndarray]
    test: list[tuple[str, str]]

    texts: list[str]  # of the training documents

    def measure(self, **changes: Any) -> tuple[Report, Budgets]:
        given = {
            "package_folder": self.package,
            "checkpoint": self.checkpoint,
            "test": self.test,
            "train_tokens": self.train,
            "train_texts": [pa.array(self.texts)],
            "seed": 1,
            "gate": GATE,
        }
        return evaluate(**{**given, **changes})

    def evaluate(self, **changes: Any) -> Report:
        return self.measure(**changes)[0]


def texts(count: int, seed: int) -> list[str]:
    letters = random.Random(0)
    words = ["".join(letters.choices("ابتثجحدرسعفقلمنهوي", k=letters.randint(2, 6))) for _ in range(120)]
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(words, k=chosen.randint(2, 40))) for _ in range(count)]


def build(folder: Path, algorithm: str = "bpe", dtype: str = "f32", scale: float = 1.0, tied: bool = True) -> Built:
    train, test = texts(60, 1), texts(12, 2)
    if algorithm == "word":
        test += ["كلمةغريبة ظظظ xyz"]
    tokenizer = ArabicTokenizer(300, algorithm)  # type: ignore[arg-type]
    tokenizer.build_vocab(train)
    torch.manual_seed(3)
    model = PureDynamicTransformer(len(tokenizer), 16, 2, 2, CONTEXT, 0.0, tied=tied)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(scale)
    weights = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")
    }
    save_file(weights, folder / "model.safetensors")
    write_package(folder / "model", tokenizer, weights, dtype, tied)
    ids = [np.array([i for text in train for i in (START, *tokenizer.encode(text), END)], np.uint16)]
    sources = [("news" if place % 3 else "books", text) for place, text in enumerate(test)]
    return Built(folder / "model", folder / "model.safetensors", tokenizer, model.eval(), ids, sources, train)


def write_package(
    folder: Path, tokenizer: ArabicTokenizer, weights: dict[str, torch.Tensor], dtype: str, tied: bool
) -> None:
    write(
        folder,
        config={
            "VOCAB_SIZE": len(tokenizer),
            "DIM": 16,
            "NUM_HEADS": 2,
            "NUM_LAYERS": 2,
            "MAX_SEQ_LEN": CONTEXT,
            "TIED": tied,
            "ACTIVATION": "gelu",
        },
        vocabulary=Vocabulary(
            tokenizer.algorithm, tokenizer.words, tokenizer.merges, tokenizer.rules, tokenizer.to_json()
        ),
        weights={name: tensor.numpy() for name, tensor in weights.items()},
        card="# test\n",
        provenance={},
        dtype=dtype,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def report(built: Built) -> Report:
    return built.evaluate()


@pytest.fixture
def no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the fresh interpreter where a test is about something else."""
    nothing = integrity._Imported(integrity.NONE, integrity.NONE, [], "not tried")
    monkeypatch.setattr(integrity, "_import", lambda *_: nothing)


# -- a sound package --------------------------------------------------------------------------------


def test_a_sound_package_is_whole(report: Report) -> None:
    assert report.integrity.whole, report.integrity
    assert report.integrity.checkpoint_difference == 0.0
    assert report.integrity.checkpoint_limit == 0.0
    assert report.integrity.problem == ""


def test_the_report_is_the_same_every_time_and_survives_json(built: Built, report: Report) -> None:
    again = built.evaluate()
    assert again.model_dump_json() == report.model_dump_json()
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert str(built.package) not in report.model_dump_json()


def test_model_bits_equal_plain_arithmetic(built: Built, report: Report) -> None:
    """Each token alone, by the definition: the longest window of the rule that predicts it."""
    for place, (_, text) in enumerate(built.test):
        ids = [START, *built.tokenizer.encode(text), END]
        expected = 0.0
        for target in range(1, len(ids)):
            begin = max(s for s, scored in evaluation._windows(len(ids) - 1, CONTEXT) if scored < target)
            with torch.inference_mode():
                logits = built.model(torch.tensor([ids[begin:target]]))[0][0, -1]
            expected -= torch.log_softmax(logits, -1)[ids[target]].item()
        assert report.document_nats[place] == pytest.approx(expected, rel=1e-5)
        assert report.document_bytes[place] == len(text.encode())
    total = sum(report.document_nats) / math.log(2) / sum(report.document_bytes)
    assert report.bits_per_byte.model == pytest.approx(total, abs=1e-6)
    assert any(len(built.tokenizer.encode(text)) > 2 * CONTEXT for _, text in built.test)


def test_baseline_bits_count_the_same_tokens(built: Built, report: Report) -> None:
    unigram = Unigram.fit(built.train, len(built.tokenizer))
    nats = sum(unigram.nats(np.array([START, *built.tokenizer.encode(text), END])).sum() for _, text in built.test)
    size = sum(report.document_bytes)
    assert report.bits_per_byte.unigram == pytest.approx(nats / math.log(2) / size, abs=1e-6)
    assert report.bits_per_byte.trigram < report.bits_per_byte.model  # the model is random


def test_sources_add_up(built: Built, report: Report) -> None:
    assert list(report.sources) == ["books", "news"]
    for field in ("documents", "bytes", "tokens", "words"):
        whole = getattr(report.overall, field)
        assert sum(getattr(part, field) for part in report.sources.values()) == whole
    weighted = sum(part.bits_per_byte.model * part.bytes for part in report.sources.values())
    assert weighted / report.overall.bytes == pytest.approx(report.bits_per_byte.model, abs=1e-5)
    ids = [len(built.tokenizer.encode(text)) for _, text in built.test]
    assert report.overall.tokens == sum(ids) + len(ids)
    words = sum(len(text.split()) for _, text in built.test)
    assert report.overall.tokens_per_word == pytest.approx(sum(ids) / words, abs=1e-6)


def test_samples_continue_the_prompts(report: Report) -> None:
    assert [sample.prompt for sample in report.samples] == ["قال", ""]
    assert report.samples[0].text.startswith("قال")


@pytest.mark.usefixtures("no_import")
def test_a_seed_changes_samples_and_nothing_else(built: Built, report: Report) -> None:
    other = built.evaluate(seed=2)
    assert other.samples != report.samples
    assert other.document_nats == report.document_nats


@pytest.mark.usefixtures("no_import")
def test_test_digest_follows_the_documents(built: Built, report: Report) -> None:
    assert built.evaluate(test=built.test[::-1]).test_digest != report.test_digest
    renamed = [("other", text) for _, text in built.test]
    assert built.evaluate(test=renamed).test_digest != report.test_digest


@pytest.mark.usefixtures("no_import")
def test_progress_reaches_its_total(built: Built, report: Report) -> None:
    seen: list[tuple[int, int]] = []
    built.evaluate(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (report.overall.tokens, report.overall.tokens)
    assert seen == sorted(seen)


@pytest.mark.usefixtures("no_import")
def test_text_that_spells_a_special_token_is_text(built: Built) -> None:
    plain = built.evaluate(test=[("a", "قال <END> ثم <UNK>")])
    assert plain.overall.unknown_rate == 0
    assert plain.overall.tokens == len(built.tokenizer.encode("قال <END> ثم <UNK>")) + 1


def test_no_test_documents_is_a_user_error(built: Built) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.test"):
        built.evaluate(test=[])


@pytest.mark.parametrize("dtype", ["f16", "bf16", "i8", "q8"])
def test_a_storage_type_is_bound_by_its_rounding(dtype: str, tmp_path: Path) -> None:
    found = build(tmp_path, dtype=dtype, tied=False).evaluate(storage=dtype).integrity
    assert found.whole, found
    assert 0 < found.checkpoint_difference <= found.checkpoint_limit < 0.1


def test_unknown_words_pay_for_their_spelling(tmp_path: Path) -> None:
    made = build(tmp_path, algorithm="word", scale=0.0)  # all logits 0: ln V a token
    found = made.evaluate()
    assert found.integrity.whole, found.integrity
    speller = Speller.fit(made.tokenizer.words[4:])
    _, text = made.test[-1]
    ids, words = made.tokenizer.encode(text), made.tokenizer.tokenize(text)
    assert ids == [UNK] * len(words)
    spelling = sum(speller.nats(word) for word in words)
    expected = (len(ids) + 1) * math.log(len(made.tokenizer)) + spelling
    assert found.document_nats[-1] == pytest.approx(expected, rel=1e-5)
    unigram = Unigram.fit(made.train, len(made.tokenizer))
    nats = [unigram.nats(np.array([START, *made.tokenizer.encode(text), END])) for _, text in made.test]
    unknown = [
        speller.nats(word)
        for _, text in made.test
        for word in made.tokenizer.tokenize(text)
        if word not in made.tokenizer.word2idx
    ]
    bits = (sum(part.sum() for part in nats) + sum(unknown)) / math.log(2) / found.overall.bytes
    assert found.bits_per_byte.unigram == pytest.approx(bits, abs=1e-6)
    assert found.overall.unknown_rate > 0


def test_pieces_are_the_text_and_their_probabilities_the_models(built: Built, report: Report) -> None:
    for sample in report.samples:
        assert sample.prompt + "".join(piece.text for piece in sample.pieces) == sample.text
        assert all(0 < piece.probability <= 1 for piece in sample.pieces)
    ids = [START, *built.tokenizer.encode("قال"), *built.tokenizer.encode(" من")]
    begin = len(built.tokenizer.encode("قال")) + 1
    writer = NumpyTransformer(read(built.package).config, read(built.package).weights)
    tokenizer = Tokenizer.from_str(built.tokenizer.to_json())
    pieces = evaluation._pieces(writer, tokenizer, [*ids, END], begin)
    with torch.inference_mode():
        chances = torch.softmax(built.model(torch.tensor([ids]))[0][0], -1)
    product = math.prod(chances[place - 1, ids[place]].item() for place in range(begin, len(ids)))
    assert math.prod(piece.probability for piece in pieces) == pytest.approx(product, rel=0.02)
    assert "".join(piece.text for piece in pieces) == "من"


def test_documents_carry_digests_and_slices(built: Built, report: Report) -> None:
    assert len(set(report.document_digests)) == len(built.test)
    assert all(len(digest) == 12 for digest in report.document_digests)
    names = list(report.sources)
    assert [names[number] for number in report.document_slices] == [source for source, _ in built.test]


def test_intervals_hold_their_figures(report: Report) -> None:
    for part in (report.overall, *report.sources.values()):
        bits, sure = part.bits_per_byte, part.intervals
        assert sure is not None
        assert sure.model.low <= bits.model <= sure.model.high
        assert sure.unigram.low <= bits.model / bits.unigram - 1 <= sure.unigram.high
        assert sure.trigram.low <= bits.model / bits.trigram - 1 <= sure.trigram.high
        assert sure.model.low < sure.model.high


# -- planted faults ---------------------------------------------------------------------------------


def copy_of(built: Built, folder: Path) -> Built:
    return dataclasses.replace(built, package=Path(shutil.copytree(built.package, folder / "copy")))


@pytest.mark.usefixtures("no_import")
def test_leaked_test_text_is_found(built: Built, report: Report) -> None:
    assert report.contamination is not None
    assert report.contamination.documents > 5
    assert report.contamination.copied == 0
    leaked = [*built.texts, *(text for _, text in built.test[:6])]
    found = built.evaluate(train_texts=[pa.array(leaked[:40]), pa.array(leaked[40:])]).contamination
    assert found is not None
    long = [len(text.split()) >= 13 for _, text in built.test]
    assert found.copied == pytest.approx(sum(long[:6]) / sum(long), abs=1e-6)
    verdict = judge(*built.measure(train_texts=[pa.array(leaked)]), GATE, None)
    assert "contamination" in [check.name for check in verdict.checks if not check.passed]


@pytest.mark.usefixtures("no_import")
def test_another_storage_type_than_asked_for_fails_integrity(built: Built) -> None:
    assert not built.evaluate(storage="f16").integrity.storage_agrees


@pytest.mark.usefixtures("no_import")
def test_a_tokenizer_of_another_run_fails_integrity(built: Built, tmp_path: Path) -> None:
    other = ArabicTokenizer(300, "bpe")
    other.build_vocab(texts(60, 9))
    weights = {name: tensor.clone() for name, tensor in built.model.state_dict().items() if name != "lm_head.weight"}
    write_package(tmp_path / "other", other, weights, "f32", tied=True)
    found = built.evaluate(package_folder=tmp_path / "other").integrity
    assert found.tensors_agree
    assert not found.trained_ids_agree
    assert not found.whole


def test_a_corrupted_tensor_fails_integrity(built: Built, tmp_path: Path) -> None:
    broken = copy_of(built, tmp_path)
    lines = (broken.package / "weights.py").read_text().splitlines(keepends=True)
    row = next(n for n, line in enumerate(lines) if line.startswith('        "'))
    lines[row] = "        [" + ", ".join(["0.5"] * 16) + "],\n"
    (broken.package / "weights.py").write_text("".join(lines))
    report, budgets = broken.measure()
    found = report.integrity
    assert found.loads_without_execution
    assert found.loads_by_import
    assert found.import_difference == 0
    assert not found.verifies
    assert not found.tensors_agree
    assert found.checkpoint_difference > 0
    assert "embedding.weight" in found.problem
    verdict = judge(report, budgets, GATE, None)
    assert next(check for check in verdict.checks if check.name == "integrity").passed is False


@pytest.mark.usefixtures("no_import")
@pytest.mark.parametrize("name", ["pos_embedding", "ln_out.bias", "blocks.1.fc2.weight"])
def test_a_package_of_another_model_fails_integrity(built: Built, tmp_path: Path, name: str) -> None:
    weights = {key: tensor.clone() for key, tensor in built.model.state_dict().items()}
    del weights["lm_head.weight"]
    weights[name].flatten()[-1] += 1e-3
    write_package(tmp_path / "other", built.tokenizer, weights, "f32", tied=True)
    found = built.evaluate(package_folder=tmp_path / "other").integrity
    assert found.verifies
    assert not found.tensors_agree
    assert found.checkpoint_difference > found.checkpoint_limit == 0


@pytest.mark.usefixtures("no_import")
def test_another_shape_fails_integrity(built: Built, tmp_path: Path) -> None:
    wider = {"embedding.weight": torch.zeros(2, 2)}
    save_file(wider, tmp_path / "c.safetensors")
    found = built.evaluate(checkpoint=tmp_path / "c.safetensors").integrity
    assert not found.tensors_agree
    assert math.isnan(found.checkpoint_difference)
    assert not found.whole


def test_a_package_that_is_refused_still_gets_a_report(built: Built, tmp_path: Path) -> None:
    broken = copy_of(built, tmp_path)
    with (broken.package / "weights.py").open("a") as file:
        file.write("import os\n")
    report, budgets = broken.measure()
    assert not report.integrity.loads_without_execution
    assert math.isnan(report.bits_per_byte.model)
    assert "weights.py" in report.integrity.problem
    assert str(tmp_path) not in report.integrity.problem
    assert Report.model_validate_json(report.model_dump_json()).test_digest == report.test_digest
    assert not judge(report, budgets, GATE, None).passed


@pytest.mark.usefixtures("no_import")
def test_a_diverged_model_gets_a_report(tmp_path: Path) -> None:
    made = build(tmp_path, scale=1e30)
    report, budgets = made.measure()
    assert not math.isfinite(report.bits_per_byte.model)
    assert report.samples == ()
    assert "unigram" in [c.name for c in judge(report, budgets, GATE, None).checks if not c.passed]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import qalam_core", "must not need the project"),
        ("raise ValueError('broken')", "ValueError: broken"),
        ("raise SystemExit(3)", "status 3"),
    ],
)
def test_an_import_that_fails_is_told(tmp_path: Path, code: str, problem: str) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(code + "\n")
    imported = integrity._import(tmp_path / "package", torch.zeros(1, 2, dtype=torch.int64), ["x"])
    assert problem in imported.problem
    assert imported.torch.size == 0


# -- parts ------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(2, 40))
def test_windows_score_each_position_once_with_half_a_context(length: int, context: int) -> None:
    next_scored = 0
    for start, scored in evaluation._windows(length, context):
        assert scored == next_scored
        assert 0 <= start <= scored < length
        assert scored == 0 or scored - start >= context / 2
        next_scored = min(start + context, length)
        assert next_scored > scored
    assert next_scored == length


small = st.lists(st.integers(4, 7), max_size=12)


@given(st.lists(small, max_size=3), st.lists(small, max_size=3))
@settings(deadline=None)
def test_longest_copy_equals_brute_force(samples: list[list[int]], parts: list[list[int]]) -> None:
    def contains(part: list[int], run: list[int]) -> bool:
        return any(part[i : i + len(run)] == run for i in range(len(part)))

    runs = [s[i:j] for s in samples for i in range(len(s)) for j in range(i + 1, len(s) + 1)]
    expected = max((len(run) for run in runs if any(contains(part, run) for part in parts)), default=0)
    assert longest_copy(samples, [np.array(part, np.uint16) for part in parts], 8) == expected


class Parrot:
    """Writes what it is told to, as a model would."""

    vocab_size = 20

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def generate(self, prompt: list[list[int]], length: int, seed: int) -> np.ndarray:
        rows = [self.rows[n % len(self.rows)] for n in range(len(prompt))]
        return np.array([[START, *row, *[END] * (length - len(row))] for row in rows])


def test_generation_figures_by_hand() -> None:
    loop, varied = [5] * 8, [5, 6, 7, 8, 9, 10, 11, 12]  # 5 4-grams each: 1 and 5 distinct
    found = evaluation._generation(Parrot([loop, varied]), [np.array([START, 7, 8, 9, END])], 1)  # type: ignore[arg-type]
    assert found.repeated_4grams == pytest.approx(0.4)
    assert found.distinct_2grams == pytest.approx(8 / (16 * 7), abs=1e-6)
    assert found.end_rate == 1.0
    assert found.longest_copy == 3


def test_generation_without_any_token() -> None:
    found = evaluation._generation(Parrot([[]]), [], 1)  # type: ignore[arg-type]
    assert (found.repeated_4grams, found.distinct_2grams, found.longest_copy) == (0.0, 0.0, 0)
