"""Fixtures that several test files share: a small Arabic corpus of our own, and a recipe for it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from qalam_core.recipe import Recipe
from qalam_core.store import Store

# Tests run side by side; threads of their own would only wait for each other. Set before torch starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Two busy cores make any deadline a coin toss; the same examples each time make a red test findable.
settings.register_profile("qalam", deadline=None, derandomize=True)
settings.load_profile("qalam")

SUBJECTS = ["القط", "الولد", "المعلم", "الطبيب", "الفلاح", "القاضي", "الطالب", "التاجر", "الكاتب", "النجار"]
VERBS = ["يقرأ", "يكتب", "يحمل", "يرى", "يبيع", "يشتري", "يحب", "يصنع", "يفتح", "يغلق"]
OBJECTS = ["الكتاب", "الباب", "الدفتر", "القلم", "السمك", "الخبز", "الشجرة", "المدينة", "الرسالة", "الكرسي"]
PLACES = [
    "في البيت",
    "في السوق",
    "قرب النهر",
    "أمام المدرسة",
    "تحت الشجرة",
    "على الجبل",
    "بعد الظهر",
    "قبل الفجر",
]


def sentences(count: int, seed: int = 0) -> list[str]:
    """`count` distinct short documents of plain Arabic, always the same for a seed."""
    choice = random.Random(seed).choice
    found: dict[str, None] = {}
    while len(found) < count:
        parts = [f"{choice(VERBS)} {choice(SUBJECTS)} {choice(OBJECTS)} {choice(PLACES)}" for _ in range(3)]
        found["، ثم ".join(parts) + "."] = None
    return list(found)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "stories.jsonl"
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in sentences(400))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tiny_recipe(corpus: Path, /, **parts: dict[str, Any]) -> Recipe:
    """A recipe that builds in seconds; `parts` replace single values of its sections."""
    data: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "corpus": {"sources": [{"path": str(corpus), "name": "stories"}], "test": 0.1, "validation": 0.1},
        "tokenizer": {"vocab_size": 320},
        "model": {"dim": 32, "num_heads": 2, "num_layers": 2, "max_seq_len": 32},
        "train": {"steps": 60, "batch_size": 8, "learning_rate": 0.01, "threads": 1, "log_every": 10,
                  "checkpoint_every": 20, "validate_every": 30},
    }  # fmt: skip
    for section, values in parts.items():
        data[section] = {**data[section], **values} if section in data else values
    return Recipe.parse(data)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
