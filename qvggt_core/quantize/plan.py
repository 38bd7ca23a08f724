"""The plan: which weight is stored in which precision, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from qvggt_kernels import GROUP_SIZES

from qvggt_core.errors import QuantizationError
from qvggt_core.util.files import read_bounded_text
from qvggt_core.util.quoting import short
from qvggt_core.util.yaml_text import MOST_BYTES, load_yaml

DEFAULT_GROUP_SIZE = 128
CHANNEL: Literal["channel"] = "channel"
"""Group size of a plan that gives each row one scale."""

GroupSize = Literal[32, 64, 128, "channel"]


class Precision(NamedTuple):
    """How one tensor is stored and multiplied.

    Attributes:
        bits: 3, 4 or 8 for integers, 16 for bfloat16, 32 for float32.
        group_size: columns per scale; the whole width for one scale a row, 0 for floats.
        activations: 16 where inputs stay floating, 8 or 4 where they are quantized per token
            and multiplied as integers; such weights have one scale a row.
    """

    bits: int
    group_size: int = 0
    activations: int = 16

    @property
    def quantized(self) -> bool:
        """Whether the tensor is stored in integers."""
        return self.bits < 16


class Rule(BaseModel):
    """One line of a plan.

    Attributes:
        match: glob on a tensor's name in the checkpoint; `*` also matches dots.
        bits: 3, 4 or 8, 16 (bfloat16) or 32 (float32). 3 bits are stored in 4-bit words: they
            save nothing and serve to compare recipes.
        group_size: columns per scale, or "channel" for one scale a row; None takes the run's.
        activations: 16, or 8 or 4 bits per token; 8-bit weights need integer activations.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    match: str = Field(min_length=1)
    bits: Literal[3, 4, 8, 16, 32]
    group_size: GroupSize | None = None
    activations: Literal[4, 8, 16] = 16

    @model_validator(mode="after")
    def _has_a_kernel(self) -> Rule:
        if self.bits == 8 and self.activations == 16:
            raise ValueError("8-bit weights are multiplied by 8- or 4-bit activations: set both")
        if self.bits >= 16 and self.activations < 16:
            raise ValueError("integer activations need integer weights of 3, 4 or 8 bits")
        if self.activations < 16 and self.group_size not in (None, CHANNEL):
            raise ValueError("integer products are scaled per row: leave the group size out")
        return self


class Plan(BaseModel):
    """Ordered rules; the first that matches a tensor's name decides.

    Integers are for the weights of linear layers: two dimensions, name ending in `.weight`.
    Whatever else such a rule matches (biases, norms, convolutions) is kept in 16 bits. A
    weight whose input width is not a multiple of the group size takes the largest smaller
    group that divides it, and 16 bits if none does.

    Attributes:
        name: what the checkpoint's metadata calls the plan.
        rules: see `Rule`.
        default_bits: for tensors that no rule matches.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field("custom", min_length=1)
    rules: tuple[Rule, ...]
    default_bits: Literal[16, 32] = 16

    def rule_for(self, name: str) -> Rule | None:
        """Return the rule that decides over a tensor, None if it is left to the default."""
        return next((rule for rule in self.rules if fnmatchcase(name, rule.match)), None)

    def precision(
        self, name: str, shape: Sequence[int], group_size: int | str = DEFAULT_GROUP_SIZE
    ) -> Precision:
        """Return how a tensor is stored.

        Args:
            name: of the tensor in the full-precision checkpoint.
            shape: of the tensor; (N, K) for a linear's weight.
            group_size: for rules that name none: a number of columns, or "channel".

        Raises:
            QuantizationError: the group size is not one that the kernels have.
        """
        if group_size not in (*GROUP_SIZES, CHANNEL):
            raise QuantizationError(
                f"group size {group_size} is not one of {(*GROUP_SIZES, CHANNEL)}"
            )
        rule = self.rule_for(name)
        if rule is None or rule.bits >= 16:
            return Precision(rule.bits if rule else self.default_bits)
        if not name.endswith(".weight") or len(shape) != 2:
            return Precision(16)
        rows, columns = shape
        if rule.activations < 16:
            return Precision(16) if rows % 2 else Precision(rule.bits, columns, rule.activations)
        wanted = rule.group_size or group_size
        widest = max(GROUP_SIZES) if wanted == CHANNEL else int(wanted)
        fitting = [size for size in GROUP_SIZES if size <= widest and columns % size == 0]
        if not fitting:
            return Precision(16)
        return Precision(rule.bits, columns if wanted == CHANNEL else max(fitting))

    def at(self, bits: int, activations: int) -> Plan:
        """Return the same plan with all its integers of other bits.

        Raises:
            QuantizationError: there are no such integers.
        """
        try:
            rules = tuple(
                Rule(
                    match=rule.match,
                    bits=bits,
                    activations=activations,
                    group_size=rule.group_size if activations == 16 else None,
                )
                if rule.bits < 16
                else rule
                for rule in self.rules
            )
        except ValidationError as error:
            raise QuantizationError(_reasons(error)) from None
        return self.model_copy(update={"rules": rules})

    def unused_rules(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the globs that decide over none of the names: typing errors, usually."""
        used = {rule.match for name in names if (rule := self.rule_for(name))}
        return tuple(rule.match for rule in self.rules if rule.match not in used)

    def to_yaml(self) -> str:
        """Return the plan as YAML, which `load_plan` reads."""
        data = self.model_dump(exclude_none=True, exclude_defaults=True, mode="json")
        return yaml.safe_dump({"name": self.name, **data}, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> Plan:
        """Read a plan.

        Raises:
            QuantizationError: no YAML, or a rule is refused, which is named.
        """
        try:
            return cls.model_validate(load_yaml(text))
        except ValidationError as error:
            raise QuantizationError(_reasons(error)) from None
        except ValueError as error:
            raise QuantizationError(f"the plan cannot be read: {error}") from None


def _reasons(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        place = ".".join(str(part + 1) if isinstance(part, int) else part for part in item["loc"])
        found = "nothing" if item["type"] == "missing" else short(item["input"])
        lines.append(f"{place or 'document'}: {item['msg']}, found {found}")
    return "the plan is refused (rules count from 1): " + "; ".join(lines)


def _rules(bits: Literal[4, 32], *matches: str) -> tuple[Rule, ...]:
    return tuple(Rule(match=match, bits=bits) for match in matches)


# What carries poses in and out of the camera head, and depth out of the dense heads, is a
# thousandth of the network, and the network computes it in float32.
_FINE = _rules(
    32,
    "camera_head.empty_pose_tokens",
    "camera_head.embed_pose.*",
    "camera_*.pose_branch.*",
    "camera_head.fc_*",
    "*_head.scratch.*output_conv2.2.*",
)
_BLOCKS = _rules(
    4,
    # Encoder, frame and global blocks of VGGT, and the one stack of Depth Anything 3.
    "aggregator.*blocks.*.weight",
    # Of VGGT's camera head, and of Depth Anything 3's camera encoder.
    "camera_*.trunk.*.weight",
)
# Fragile blocks that QVGGT found in VGGT-1B (section 3.2): only their attn.proj is in 4 bits.
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


def parse_precision(text: str) -> tuple[int, int]:
    """Return the bits of weights and activations that a name like w4a16 or w8a8 stands for.

    Raises:
        QuantizationError: the name is not of this form, or there are no such integers.
    """
    found = re.fullmatch(r"w(\d+)a(\d+)", text.lower())
    if not found:
        raise QuantizationError(f"precision {text!r} is not like w4a16, w8a8, w4a8 or w4a4")
    bits, activations = int(found[1]), int(found[2])
    Plan(name="probe", rules=(Rule(match="*", bits=4),)).at(bits, activations)
    if bits >= 16:
        raise QuantizationError(
            f"precision {text!r} quantizes nothing: weights have 3, 4 or 8 bits"
        )
    return bits, activations


def load_plan(source: str | Path) -> Plan:
    """Return a preset by its name, or read a plan from a YAML file.

    Raises:
        QuantizationError: there is neither such a preset nor such a file, or it is refused.
    """
    if str(source) in PRESETS:
        return PRESETS[str(source)]
    try:
        text = read_bounded_text(Path(source), MOST_BYTES)
    except (OSError, ValueError) as error:
        raise QuantizationError(
            f"{str(source)!r} is no preset ({', '.join(PRESETS)}) and no readable file: {error}"
        ) from error
    return Plan.from_yaml(text)
