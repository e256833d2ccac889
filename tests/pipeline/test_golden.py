"""Outputs kept in tests/golden: a diff there shows a reviewer what changed.

`make golden` rewrites them. Data stages are compared byte for byte, losses within rounding, since the
last bits of a matrix product depend on the processor.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from qalam_core import package as packages
from qalam_core.arabic import NORMALISATIONS, normalise
from qalam_core.corpus.sources import resolve
from qalam_core.model import PureDynamicTransformer
from qalam_core.package.releases import CODE, code_files
from qalam_core.pipeline.build import STAGES, InPlace, ingested, tokenized
from qalam_core.recipe import Optimisation
from qalam_core.store import Artifact, Store
from qalam_core.tokens.shards import Batches, flattened, write_shard
from qalam_core.tokens.tokenizer import ArabicTokenizer
from qalam_core.training.step import Training, weights_of
from tests import GOLDEN
from tests.conftest import Built, sentences, tiny_recipe
from tests.small_package import contents, golden_package

REWRITE = os.environ.get("QALAM_GOLDEN") == "rewrite"

TEXTS = [
    "كَتَبَ الطَّالِبُ الـــدَّرْسَ فِي الدَّفْتَرِ.",
    "إلى أين يذهب الأولاد، وآباؤهم على الطريق؟",
    "ﷺ ﻻ إله إلا الله",
    "\u200fنصٌّ فيه\u200b محارف\u202e خفيّة\ufeff",
    "  مسافات \t كثيرة \r\n\r\n وأسطر\u2028فارغة  ",
    "Latin ١٢٣ 123 و½ وﬁ",
]


def matches(name: str, text: str) -> None:
    """Compare `text` with the golden file `name`, or rewrite that."""
    if REWRITE:
        (GOLDEN / name).write_text(text, encoding="utf-8")
    assert text == (GOLDEN / name).read_text(encoding="utf-8"), f"{name} changed; if that is meant: make golden"


def test_normalised_text() -> None:
    lines = [f"{name}\t{normalise(text, rules)!r}" for name, rules in NORMALISATIONS.items() for text in TEXTS]
    matches("normalised.txt", "\n".join(lines) + "\n")


def test_losses(tmp_path: Path) -> None:
    """Twenty steps of the real loop."""
    torch.manual_seed(1)
    tokenizer = ArabicTokenizer(320, "bpe")
    tokenizer.build_vocab(sentences(200))
    model = PureDynamicTransformer(vocab_size=320, dim=32, num_heads=2, num_layers=2, max_seq_len=32, dropout=0.1)
    shard = tmp_path / "tokens.arrow"
    write_shard(shard, [flattened(tokenizer.encode_batch(sentences(200)))], len(tokenizer), 2, 3)
    settings = Optimisation(steps=20, batch_size=8, learning_rate=0.01, threads=1, dtype="float32")
    training = Training(model, Batches([shard], 8, 32, seed=1), settings, seed=1)
    losses = [training.step(number)[0].item() for number in range(20)]
    if REWRITE:
        (GOLDEN / "losses_cpu.txt").write_text("".join(f"{loss:.6f}\n" for loss in losses), encoding="utf-8")
    golden = [float(line) for line in (GOLDEN / "losses_cpu.txt").read_text(encoding="utf-8").split()]
    assert losses == pytest.approx(golden, rel=1e-4)


def _tiny_package(folder: Path) -> None:
    """Weights from a formula, so that every machine writes the same bytes."""
    tokenizer = ArabicTokenizer(300, "bpe")
    tokenizer.build_vocab(sentences(200))
    model = PureDynamicTransformer(vocab_size=300, dim=16, num_heads=2, num_layers=1, max_seq_len=16)
    weights = {
        name: (np.arange(tensor.numel(), dtype=np.float64) * 7919 % 1009 / 1009 - 0.5)
        .astype(np.float32)
        .reshape(tensor.shape)
        for name, tensor in weights_of(model).items()
    }
    config = packages.ModelConfig(vocab_size=300, dim=16, num_heads=2, num_layers=1, max_seq_len=16)
    packages.write(
        folder, config=config, vocabulary=tokenizer.vocabulary, weights=weights,
        card="# tiny\n\nA formula, not a model.", provenance={"corpus": "none"},
    )  # fmt: skip


def test_a_complete_package(tmp_path: Path) -> None:
    """Its data is as in tests/golden, its code as in the source."""
    _tiny_package(tmp_path / "package")
    golden = GOLDEN / "tiny_package"
    written = contents(tmp_path / "package")
    code = {name: written.pop(name) for name in CODE}
    if REWRITE:
        shutil.rmtree(golden, ignore_errors=True)
        golden.mkdir()
        for name, content in written.items():
            (golden / name).write_bytes(content)
    kept = contents(golden)
    assert sorted(kept) == sorted(written)
    changed = [name for name in kept if kept[name] != written[name]]
    assert changed == [], "if that is meant: make golden"
    assert code == code_files()
    assert packages.verify(golden_package(tmp_path / "golden")) == []


# -- stages -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """The data stages over a small corpus, in order."""
    folder = tmp_path_factory.mktemp("golden")
    texts = [*sentences(200), *TEXTS, "قصير", "only latin letters in this document, so it is rejected", *sentences(3)]
    (folder / "stories.jsonl").write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8"
    )
    recipe = tiny_recipe(folder / "stories.jsonl")
    store = Store(folder / "store")
    documents = ingested(recipe, resolve(recipe.corpus.sources), InPlace(store))
    corpus, tokenizer, tokens, _ = tokenized(recipe, documents, InPlace(store))
    return [*documents.read, *documents.filtered, *documents.matches, corpus, tokenizer, *tokens]


def test_a_stage_whose_output_changes_raises_its_version(artifacts: list[Artifact]) -> None:
    versions = {stage.name: stage.version for stage in STAGES}
    found = {
        f"{artifact.stage}-{number}": {
            "version": versions[artifact.stage],
            "files": {name: entry.sha256 for name, entry in artifact.manifest.files.items()},
        }
        for number, artifact in enumerate(artifacts)
    }
    path = GOLDEN / "stages.json"
    if REWRITE:
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    golden = json.loads(path.read_text(encoding="utf-8"))
    assert found.keys() == golden.keys()
    for stage, entry in found.items():
        if entry["version"] == golden[stage]["version"]:
            assert entry["files"] == golden[stage]["files"], f"{stage}: raise its version, then make golden"


def lineage(artifacts: list[Artifact]) -> str:
    """Every edge of a build, by stage: whose digests are among whose inputs."""
    makers: dict[str, str] = {}
    edges = set()
    for artifact in artifacts:
        for made in artifact.manifest.inputs.values():
            if made in makers:
                edges.add(f"{makers[made]} -> {artifact.stage}")
        makers[artifact.digest] = artifact.stage
        makers |= {entry.sha256: artifact.stage for entry in artifact.manifest.files.values()}
    return "\n".join(sorted(edges)) + "\n"


def test_the_dag(built: Built) -> None:
    matches("dag.txt", lineage(list(built.published.artifacts)))


def test_ci_never_rewrites() -> None:
    """CI must compare, not rewrite."""
    assert not (REWRITE and os.environ.get("CI"))
