"""Finding a recipe by its path or by the name of one that is included in the project."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from qalam_core.errors import RecipeError


def recipe_path(recipe: str) -> Path:
    """The file for `recipe`, a path or the bare name of a file in deployments/recipes. Raises RecipeError."""
    if Path(recipe).exists() or "/" in recipe or recipe.endswith(".toml"):
        return Path(recipe)
    if not (path := included_recipe(recipe)).is_file():
        names = ", ".join(sorted(path.stem for path in path.parent.glob("*.toml")))
        raise RecipeError(f"{recipe}: neither a recipe file nor an included recipe ({names})")
    return path


def included_recipe(name: str) -> Path:
    """The file of that name in deployments/recipes; it need not exist."""
    return Path(str(resources.files("al_qalam.deployments"))) / "recipes" / f"{name}.toml"
