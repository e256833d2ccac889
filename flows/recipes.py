"""Where a recipe is: a file as it is named, or one of those that come with the project.
Takes what a person typed, gives a path.
It does not read recipes: qalam_core.recipe does.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from qalam_core.errors import RecipeError

__all__ = ["recipe_path"]


def recipe_path(recipe: str) -> Path:
    """The file behind `recipe`; a bare name is one of deployments/recipes. Raises RecipeError."""
    if Path(recipe).exists() or "/" in recipe or recipe.endswith(".toml"):
        return Path(recipe)
    shipped = Path(str(resources.files("al_qalam.deployments"))) / "recipes"
    if not (shipped / f"{recipe}.toml").is_file():
        names = ", ".join(sorted(path.stem for path in shipped.glob("*.toml")))
        raise RecipeError(f"{recipe}: neither a recipe file nor one that comes with the project ({names})")
    return shipped / f"{recipe}.toml"
