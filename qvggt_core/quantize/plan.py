"""The plan: which weight is kept in which precision, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from qvggt_kernels import GROUP_SIZES

from qvggt_core.errors import QuantizationError

DEFAULT_GROUP_SIZE = 128


class Precision(NamedTuple):
    """How one tensor is stored: 4 bits in groups, bfloat16, or float32 (group size 0)."""

    bits: int
    group_size: int = 0


class Rule(BaseModel):
    """One line of a plan.

    Attributes:
        match: glob on a tensor's name in the checkpoint; `*` also matches dots.
        bits: 4, 16 (bfloat16) or 32 (float32).
        group_size: columns per scale for 4 bits; None takes the run's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    match: str = Field(min_length=1)
    bits: Literal[4, 16, 32]
    group_size: Literal[32, 64, 128] | None = None


class Plan(BaseModel):
    """Ordered rules; the first that matches a tensor's name decides.

    Four bits are for the weights of linear layers: two dimensions, name ending in `.weight`.
    Whatever else a 4-bit rule matches (biases, norms, convolutions) is kept in 16 bits. A
    weight whose input width is not a multiple of the group size takes the largest smaller
    group that divides it, and 16 bits if none does.

    Attributes:
        name: what the checkpoint's metadata calls the plan.
        rules: see `Rule`.
        default_bits: for tensors that no rule matches.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("custom", min_length=1)
    rules: tuple[Rule, ...]
    default_bits: Literal[16, 32] = 16

    def rule_for(self, name: str) -> Rule | None:
        """Return the rule that decides over a tensor, None if it is left to the default."""
        return next((rule for rule in self.rules if fnmatchcase(name, rule.match)), None)

    def precision(
        self, name: str, shape: Sequence[int], group_size: int = DEFAULT_GROUP_SIZE
    ) -> Precision:
        """Return how a tensor is stored.

        Args:
            name: of the tensor in the full-precision checkpoint.
            shape: of the tensor; (N, K) for a linear's weight.
            group_size: for 4-bit rules that name none.

        Raises:
            QuantizationError: the group size is not one that the kernels have.
        """
        if group_size not in GROUP_SIZES:
            raise QuantizationError(f"group size {group_size} is not one of {GROUP_SIZES}")
        rule = self.rule_for(name)
        if rule is None or rule.bits != 4:
            return Precision(rule.bits if rule else self.default_bits)
        if not name.endswith(".weight") or len(shape) != 2:
            return Precision(16)
        widest = rule.group_size or group_size
        fitting = [size for size in GROUP_SIZES if size <= widest and shape[1] % size == 0]
        return Precision(4, max(fitting)) if fitting else Precision(16)

    def unused_rules(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the globs that decide over none of the names: typing errors, usually."""
        used = {rule.match for name in names if (rule := self.rule_for(name))}
        return tuple(rule.match for rule in self.rules if rule.match not in used)

    def to_yaml(self) -> str:
        """Return the plan as YAML, which `load_plan` reads."""
        return yaml.safe_dump(self.model_dump(exclude_none=True, mode="json"), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> Plan:
        """Read a plan.

        Raises:
            QuantizationError: no YAML, or a rule is refused; says which and why.
        """
        try:
            return cls.model_validate(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise QuantizationError(f"the plan is not YAML: {error}") from error
        except ValidationError as error:
            raise QuantizationError(_reasons(error)) from None


def _reasons(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        place = ".".join(str(part + 1) if isinstance(part, int) else part for part in item["loc"])
        found = "nothing" if item["type"] == "missing" else repr(item["input"])
        lines.append(f"{place or 'document'}: {item['msg']}, found {found}")
    return "the plan is refused (rules count from 1): " + "; ".join(lines)


# What carries poses in and out of the camera head, and depth out of the dense heads, is a
# thousandth of the network, and the network computes it in float32.
_FINE = tuple(
    Rule(match=match, bits=32)
    for match in (
        "camera_head.empty_pose_tokens",
        "camera_head.embed_pose.*",
        "camera_head.pose_branch.*",
        "*_head.scratch.output_conv2.2.*",
    )
)
_BLOCKS = tuple(
    Rule(match=match, bits=4)
    for match in (
        "aggregator.patch_embed.blocks.*.weight",
        "aggregator.frame_blocks.*.weight",
        "aggregator.global_blocks.*.weight",
        "camera_head.trunk.*.weight",
    )
)
# Fragile blocks that QVGGT found in VGGT-1B (section 3.2): only their attn.proj bears 4 bits.
_PROTECTED = tuple(
    rule
    for block in ("frame_blocks.14", "frame_blocks.17", "frame_blocks.23", "global_blocks.23")
    for rule in (
        Rule(match=f"aggregator.{block}.attn.proj.weight", bits=4),
        Rule(match=f"aggregator.{block}.*", bits=16),
    )
)

PRESETS: Mapping[str, Plan] = {
    "uniform": Plan(name="uniform", rules=(*_FINE, *_BLOCKS)),
    "qvggt-paper": Plan(name="qvggt-paper", rules=(*_FINE, *_PROTECTED, *_BLOCKS)),
}
"""Plans by name: every transformer block in 4 bits; the same with the paper's exceptions."""


def load_plan(source: str | Path) -> Plan:
    """Return a preset by its name, or read a plan from a YAML file.

    Raises:
        QuantizationError: there is neither such a preset nor such a file, or it is refused.
    """
    if str(source) in PRESETS:
        return PRESETS[str(source)]
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QuantizationError(
            f"{str(source)!r} is no preset ({', '.join(PRESETS)}) and no readable file: {error}"
        ) from error
    return Plan.from_yaml(text)
