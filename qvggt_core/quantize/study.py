"""Studies: lists of ways to quantize one network that are compared, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qvggt_core.errors import QuantizationError
from qvggt_core.quantize.plan import DEFAULT_GROUP_SIZE, GroupSize
from qvggt_core.quantize.recipes import RECIPES, Recipe
from qvggt_core.util.yaml_text import read_yaml, reasons

_STUDIES = Path(__file__).parent / "studies"
STUDIES = tuple(sorted(path.stem for path in _STUDIES.glob("*.yaml")))
"""Studies that come with the package, by name."""

AUTO = "auto"
"""Plan of a row that is solved from a sensitivity sweep."""

CHANCE = "chance"
"""Plan of a row that protects linears drawn by chance within the same budget: a control."""

SWEPT = (AUTO, CHANCE)
"""Plans that need a sweep."""


class Row(BaseModel):
    """One way to quantize.

    Attributes:
        label: in the table.
        recipe: name in `RECIPES`.
        precision: bits of weights and activations, e.g. "w4a16".
        plan: a preset, a YAML file, "auto" for a plan solved within `Study.auto_bits`, or
            "chance" for one that protects others of as many bytes.
        plan_world: family of synthetic worlds on which the sweep of an auto plan is made; None
            takes calibration windows.
        draw: number of a plan by chance.
        group_size: columns per scale, or "channel".
        images: calibration images; None takes the run's.
        sampling: how they are chosen.
        changes: fields of the recipe that are set otherwise, nested as the recipe is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    label: str = Field(min_length=1)
    recipe: str
    precision: str
    plan: str = "uniform"
    plan_world: str | None = None
    draw: int = Field(0, ge=0)
    group_size: GroupSize = DEFAULT_GROUP_SIZE  # type: ignore[assignment]
    images: int | None = Field(None, ge=2)
    sampling: Literal["random", "diverse"] = "random"
    changes: dict[str, Any] = Field(default_factory=dict)

    def changed_recipe(self) -> Recipe:
        """Return the recipe with the row's changes.

        Raises:
            QuantizationError: there is no such recipe or no such field.
        """
        if self.recipe not in RECIPES:
            raise QuantizationError(
                f"{self.label}: there is no recipe {self.recipe!r}; known: {', '.join(RECIPES)}"
            )
        return _changed(RECIPES[self.recipe], self.changes, self.label)


class Study(BaseModel):
    """A table of ways to quantize.

    Attributes:
        name: of the study, for files.
        title: of the table.
        rows: the ways.
        auto_bits: average bits per weight of the whole file that rows with an auto plan, or one
            by chance, may take.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1, pattern=r"^[a-z0-9_-]+$")
    title: str
    rows: tuple[Row, ...] = Field(min_length=1)
    auto_bits: float = Field(7.0, gt=0)


def load_study(source: str | Path) -> Study:
    """Return a study of the package by its name, or read one from a YAML file.

    Raises:
        QuantizationError: there is neither such a study nor such a file, or it is refused.
    """
    path = _STUDIES / f"{source}.yaml" if str(source) in STUDIES else Path(source)
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise QuantizationError(
            f"{str(source)!r} is no study ({', '.join(STUDIES)}) and no readable file: {error}"
        ) from None
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise QuantizationError(f"the study {path} is refused: {reasons(error)}") from None


def _changed(value: Any, changes: Mapping[str, Any], label: str) -> Any:
    known = {field.name for field in fields(value)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise QuantizationError(
            f"{label}: a {type(value).__name__} has no {unknown[0]!r}; known: "
            f"{', '.join(sorted(known))}"
        )
    new = {}
    for name, change in changes.items():
        before = getattr(value, name)
        nested = is_dataclass(before) and isinstance(change, Mapping)
        new[name] = _changed(before, change, label) if nested else change
    return replace(value, **new)
