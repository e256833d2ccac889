"""Integrity: a sound package, and planted faults that must be detected."""

from __future__ import annotations

import math
import re
import unicodedata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qalam_core.arabic import NORMALISATIONS
from qalam_core.evaluation import integrity
from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.results import Report
from qalam_core.package.runtime.architecture import SPECIALS
from qalam_core.package.runtime.tokenizer import Tokenizer
from qalam_core.recipe import Requirements
from qalam_core.tokens.tokenizer import ArabicTokenizer
from tests.evaluation.small_evaluation import Exported, build, copy_of, texts, write_package
from tests.evaluation.small_report import INTACT


def test_a_sound_package_is_intact(report: Report) -> None:
    assert report.integrity.intact, report.integrity
    assert report.integrity.checkpoint_difference == 0.0
    assert report.integrity.checkpoint_limit == 0.0
    assert report.integrity.problem == ""


@pytest.mark.parametrize("dtype", ["f16", "bf16", "i8", "q8"])
@pytest.mark.usefixtures("processes")
def test_a_storage_type_is_bound_by_its_rounding(dtype: str, tmp_path: Path) -> None:
    found = build(tmp_path, dtype=dtype, tied=False).evaluate(storage=dtype).integrity
    assert found.intact, found
    assert found.checkpoint_difference is not None
    assert 0 < found.checkpoint_difference <= found.checkpoint_limit < 0.1


@pytest.mark.usefixtures("no_import")
def test_another_storage_type_than_the_recipes_fails_integrity(exported: Exported) -> None:
    assert not exported.evaluate(storage="f16").integrity.storage_agrees


@pytest.mark.usefixtures("no_import")
def test_a_tokenizer_of_another_run_fails_integrity(exported: Exported, tmp_path: Path) -> None:
    other = ArabicTokenizer(300, "bpe")
    other.build_vocab(texts(60, 9))
    weights = {name: tensor.clone() for name, tensor in exported.model.state_dict().items() if name != "lm_head.weight"}
    write_package(tmp_path / "other", other.vocabulary, weights, "f32", tied=True)
    found = exported.evaluate(package_folder=tmp_path / "other").integrity
    assert found.tensors_agree
    assert not found.trained_ids_agree
    assert not found.intact


@pytest.mark.usefixtures("no_import")
@pytest.mark.parametrize("rules", ["vocalised", "search"])
def test_a_tokenizer_with_another_normaliser_fails_integrity(rules: str, exported: Exported, tmp_path: Path) -> None:
    """The test split is normalised already, so that both tokenizers give it the same ids."""
    vocabulary = exported.tokenizer.vocabulary._replace(rules=NORMALISATIONS[rules])
    weights = {name: tensor.clone() for name, tensor in exported.model.state_dict().items() if name != "lm_head.weight"}
    write_package(tmp_path / "other", vocabulary, weights, "f32", tied=True)
    report, budgets = exported.measure(package_folder=tmp_path / "other")
    found = report.integrity
    assert found.trained_ids_agree
    assert found.tensors_agree
    assert not found.normalisation_agrees
    assert not found.intact
    verdict = decide(report.model_copy(update={"integrity": INTACT.model_copy(update={"normalisation_agrees": False})}),
                     budgets, Requirements(), None)  # fmt: skip
    assert "normalises text otherwise than the corpus was" in verdict.reasons()[0]
    # and the other way round: the package is as it was, the recipe's corpus was normalised otherwise
    assert not exported.evaluate(normalisation=NORMALISATIONS[rules]).integrity.normalisation_agrees
    assert exported.evaluate().integrity.normalisation_agrees


def test_hostile_texts_are_not_normalised(exported: Exported) -> None:
    """Each rule of the standard normalisation changes some of them, and so does each rule that others have."""
    made = integrity.hostile([text for _, text in exported.test])
    assert len(made) == len(integrity.hostile(["x"] * len(exported.test)))
    for rules in NORMALISATIONS.values():
        for pattern, _ in rules:
            assert any(re.search(pattern, text) for text in made), pattern
    assert any(unicodedata.normalize("NFC", text) != text for text in made)
    assert any(len(text) >= 10_000 and " " not in text for text in made)
    assert all(special in "".join(made) for special in SPECIALS)


def test_an_own_tokenizer_that_differs_on_raw_text_alone_fails_integrity(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = exported.tokenizer.vocabulary
    for rules, agrees in ((vocabulary.rules, True), (NORMALISATIONS["vocalised"], False)):
        own = Tokenizer(vocabulary._replace(rules=rules))
        assert own.encode(exported.test[0][1]) == exported.tokenizer.encode(exported.test[0][1])
        monkeypatch.setattr(
            integrity, "_import",
            lambda _, __, texts, own=own: integrity._Imported(
                integrity.NONE, integrity.NONE, [own.encode(text) for text in texts]
            ),
        )  # fmt: skip
        assert exported.evaluate().integrity.tokenizer_agrees == agrees


@pytest.mark.usefixtures("fresh_interpreter")
def test_a_corrupted_tensor_fails_integrity(exported: Exported, tmp_path: Path) -> None:
    broken = copy_of(exported, tmp_path)
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
    assert found.checkpoint_difference is not None
    assert found.checkpoint_difference > 0
    assert "embedding.weight" in found.problem
    verdict = decide(report, budgets, Requirements(), None)
    assert next(check for check in verdict.checks if check.name == "integrity").passed is False


@pytest.mark.usefixtures("no_import")
@pytest.mark.parametrize("name", ["pos_embedding", "ln_out.bias", "blocks.1.fc2.weight"])
def test_a_package_of_another_model_fails_integrity(exported: Exported, tmp_path: Path, name: str) -> None:
    weights = {key: tensor.clone() for key, tensor in exported.model.state_dict().items()}
    del weights["lm_head.weight"]
    weights[name].flatten()[-1] += 1e-3
    write_package(tmp_path / "other", exported.tokenizer.vocabulary, weights, "f32", tied=True)
    found = exported.evaluate(package_folder=tmp_path / "other").integrity
    assert found.verifies
    assert not found.tensors_agree
    assert found.checkpoint_difference is not None
    assert found.checkpoint_difference > found.checkpoint_limit == 0


@pytest.mark.usefixtures("no_import")
def test_another_shape_fails_integrity(exported: Exported, tmp_path: Path) -> None:
    wider = {"embedding.weight": torch.zeros(2, 2)}
    save_file(wider, tmp_path / "c.safetensors")
    found = exported.evaluate(checkpoint=tmp_path / "c.safetensors").integrity
    assert not found.tensors_agree
    assert found.checkpoint_difference is not None
    assert math.isnan(found.checkpoint_difference)
    assert not found.intact


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import qalam_core", "must not need the project"),
        ("raise ValueError('broken')", "ValueError: broken"),
        ("raise SystemExit(3)", "status 3"),
    ],
)
@pytest.mark.usefixtures("fresh_interpreter")
def test_an_import_that_fails_is_reported(tmp_path: Path, code: str, problem: str) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(code + "\n")
    imported = integrity._import(tmp_path / "package", torch.zeros(1, 2, dtype=torch.int64), ["x"])
    assert problem in imported.problem
    assert imported.torch.size == 0
