"""What changed between the recipes of two models, and between the versions of the code that built them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from qalam_core.corpus.sources import slice_name
from qalam_core.evaluation.comparison import loosened
from qalam_core.recipe import Frozen, Recipe, Requirements, Source, changed_pairs
from qalam_core.review.results import Alarm

_LENGTH = 300  # characters of a value
_SOURCE = {key: field.default for key, field in Source.model_fields.items()}
_ELSEWHERE = ("package:", "hf:")  # sources that have the same path on every machine


class ValueChange(Frozen):
    """A value that differs; "absent" where there was none."""

    key: str  # "gate.tolerance"
    old: str
    new: str
    looser: bool = False  # a setting of the gate under which more models pass


class RecipeChanges(Frozen):
    """The values of the recipe that differ, those of the gate first; and the versions that differ."""

    values: tuple[ValueChange, ...]
    versions: tuple[ValueChange, ...]  # of al-qalam, of its dependencies, of Python

    @property
    def looser(self) -> tuple[ValueChange, ...]:
        """The settings of the gate that were loosened."""
        return tuple(change for change in self.values if change.looser)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """A setting of the gate under which more models pass."""
        messages = (f"{one.key} is looser: {one.old} -> {one.new}." for one in self.looser)
        return tuple(Alarm(section="recipe", severity="high", message=message) for message in messages)


def recipe_changes(
    old: Recipe, new: Recipe, old_versions: Mapping[str, str], new_versions: Mapping[str, str]
) -> RecipeChanges:
    """What differs between two recipes and versions. Of a path on a machine, its last part is compared."""
    looser = {f"gate.{key}" for key in loosened(new.gate.narrowed(Requirements), old.gate.narrowed(Requirements))}
    found = [
        ValueChange(key=key, old=_shown(before), new=_shown(after), looser=key in looser)
        for key, before, after in changed_pairs(_values(old), _values(new))
    ]
    found.sort(key=lambda change: (not change.key.startswith("gate."), not change.looser))  # else in the recipe's order
    versions = sorted(changed_pairs(old_versions, new_versions))
    return RecipeChanges(
        values=tuple(found),
        versions=tuple(ValueChange(key=key, old=_shown(before), new=_shown(after)) for key, before, after in versions),
    )


def _values(recipe: Recipe) -> dict[str, Any]:
    """The recipe's values, with the sources by name."""
    values = recipe.model_dump(mode="json", exclude={"runner"})
    corpus, named = values["corpus"], dict[str, Any]()
    for source, plain in zip(recipe.corpus.sources, corpus["sources"], strict=True):
        name, number = slice_name(source), 2
        while name in named:  # sources of one name
            name, number = f"{slice_name(source)} ({number})", number + 1
        plain["name"] = slice_name(source)
        plain["path"] = _portable(source.path)
        if not source.revision:
            plain["data_files"] = [_portable(file) for file in source.data_files]
        named[name] = plain
    corpus["sources"], corpus["exclude"] = named, _portable(corpus["exclude"])
    return values


def _portable(path: str) -> str:
    return path if path.startswith(_ELSEWHERE) else PurePath(path).name


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):  # a source that was added or removed
        other = {key: each for key, each in value.items() if each != _SOURCE.get(key, "")}
        value = ", ".join(f"{key} {_shown(each)}" for key, each in other.items())
    text = "absent" if value is None else '""' if value == "" else " ".join(str(value).split())
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 1]}…"
