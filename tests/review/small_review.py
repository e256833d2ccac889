"""A review with something in each section."""

from __future__ import annotations

from typing import Any

from qalam_core.evaluation.results import Counted
from qalam_core.review.data import DataChanges, Excerpt, RuleDocuments, Samples, SourceDocuments
from qalam_core.review.model_tests import ModelTestFlips, SuiteFlips
from qalam_core.review.recipe import RecipeChanges, ValueChange
from qalam_core.review.results import (
    Alarm,
    Behaviour,
    DocumentChange,
    HeadMoved,
    NeighbourChange,
    NextWord,
    PartChange,
    PieceChange,
    PromptChange,
    RowMovement,
    TensorMovement,
    TextChange,
    TokenizerChanges,
    TokensPerWord,
    WeightChanges,
    WordCost,
    WordShare,
)
from qalam_core.review.summary import Decision, Model, Review, reviewed

OLD, NEW = (Model(name=f"demo-{name}", run=f"demo-{name}", package="a" * 64) for name in ("old", "new"))
PASSED = Decision("passed", OLD.name, ())
RECIPE = RecipeChanges(values=(ValueChange(key="seed", old="1", new="2"),), versions=())
LOOSER = RecipeChanges(
    values=(ValueChange(key="gate.tolerance", old="0.03", new="0.1", looser=True), *RECIPE.values),
    versions=(ValueChange(key="torch", old="2.9.0", new="2.10.0"),),
)


def data(name: str = "news", text: str = "نص الوثيقة") -> DataChanges:
    """Twelve documents added, one gone, one moved."""
    excerpt = Excerpt(source=name, id="0" * 16, text=text, characters=900, note="train -> test")
    row = SourceDocuments(name=name, old=100, new=111, added=12, gone=1, moved=1)
    return DataChanges(
        overall=row.model_copy(update={"name": "all"}), sources=(row,), sources_changed=1, unmatched="",
        splits={"train": (90, 100), "validation": (5, 5), "test": (5, 6)}, moves={"train -> test": 1},
        gone_because={"too short": 1}, rules=(RuleDocuments(source=name, rule="too_short", old=0, new=1),),
        samples=(Samples(what="moved", count=1, documents=(excerpt,)),), emptied=(),
    )  # fmt: skip


def tokenizer(word: str = "كلمة") -> TokenizerChanges:
    """One word gained, one lost."""
    text = TokensPerWord(name="raw text", words=100, old=2.5, new=2.75, old_unknown=0.0, new_unknown=0.01)
    return TokenizerChanges(
        same=False, algorithm=("bpe", "bpe"), sizes=(4096, 4096), gained=1, lost=1, renumbered=7,
        gained_words=(word,), lost_words=(word,), normalisation_changed=False, texts=(text,), alarms=(),
    )  # fmt: skip


def behaviour(word: str = "كلمة", name: str = "news", alarms: tuple[Alarm, ...] = ()) -> Behaviour:
    """Two slices, and one of each kind of word and document."""
    slices = tuple(
        PartChange(name=part, documents=5, bytes=900, old=1.5, new=new, z=z)
        for part, new, z in ((name, 1.6, 3.5), ("poems", 1.49, None))
    )
    pieces = tuple(PieceChange(text=f"{word} ", old=2.0, new=2.0 + step) for step in (0.1, 0.5, 2.0, 9.0, -0.5, -9.0))
    document = DocumentChange(
        slice=name, digest="0" * 12, bytes=200, old=1.5, new=1.7, start=3, characters=900, pieces=pieces
    )
    share: dict[str, Any] = {"word": word, "old": 1e-6, "new": 1.4e-4, "ratio": 140.0, "z": 12.0, "alarm": True}
    if "written" in WordShare.model_fields:
        share["written"] = 1e-6
    cost = WordCost(word=word, count=4, old=5.0, new=9.0, z=4.0, alarm=True)
    text = TextChange(
        name="held-out text", counted=Counted(documents=10, of=40, size=1800), old=1.5, new=1.53, z=2.0,
        gained=(document,), lost=(document,), slices=slices, positions=slices, more=(WordShare(**share),),
        less=(WordShare(**share),), cheaper=(cost,), dearer=(cost,), frequent_ratio=1.1, by_first_token=True,
    )  # fmt: skip
    prompt = PromptChange(
        prompt=word, divergence=0.1, old_to_new=0.2, new_to_old=0.3,
        next_words=(NextWord(word=word, old=0.1, new=0.2),), same=word, old=f"{word} قديم", new=f"{word} جديد",
    )  # fmt: skip
    empty = prompt.model_copy(update={"prompt": "", "old": "", "new": ""})
    return Behaviour(
        texts=(text, text.model_copy(update={"name": "training text"})), prompts=(empty, prompt), alarms=alarms
    )


def model_tests(name: str = "agreement", alarms: tuple[Alarm, ...] = ()) -> ModelTestFlips:
    """Two tests that fail now, one that passes."""
    suite = SuiteFlips(
        name=name, lost=("dual-1", "dual-2"), lost_count=2, gained=("gender-7",), gained_count=1, same=97, uncompared=3
    )
    return ModelTestFlips(suites=(suite,), alarms=alarms)


def weights(word: str = "كلمة", alarms: tuple[Alarm, ...] = ()) -> WeightChanges:
    """Two heads swapped, positions shifted, a row that moved."""
    moved = TensorMovement(name="embedding.weight", moved=3.0, before=0.0)
    heads = tuple(
        HeadMoved(layer=0, head=head, was=1 - head, parts=("query", "key"), similarity=0.99) for head in (0, 1)
    )
    return WeightChanges(
        tensors=(moved,), layers=(moved.model_copy(update={"name": "layer 0"}),), unchanged=3,
        rows=(RowMovement(tensor="embedding.weight", row=7, word=word, moved=3.0, before=1.0, times=40.0),),
        heads=heads, shift=1, neighbours=(NeighbourChange(word=word, old=(word,), new=(word, word)),), alarms=alarms,
    )  # fmt: skip


def review(**parts: Any) -> Review:
    """A review; `parts` replace sections, None ones are missing."""
    sections: dict[str, Any] = {
        "recipe": RECIPE, "data": data(), "tokenizer": tokenizer(), "behaviour": behaviour(),
        "tests": model_tests(), "weights": weights(),
    } | {name: part for name, part in parts.items() if name != "decided"}  # fmt: skip
    missing = {name: "the corpus of run demo-old was deleted" for name, part in sections.items() if part is None}
    return reviewed(OLD, NEW, parts.get("decided", PASSED), **sections, missing=missing)
