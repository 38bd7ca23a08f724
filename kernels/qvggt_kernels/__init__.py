"""Packed linear layers and fused steps of a transformer: storage, references, fast paths."""

from .capability import fastest_dtype, fastest_linears
from .cpu_attention import attention
from .dispatch import (
    int4_linear,
    int4_linear_fp8,
    int4_linear_int8,
    int4_linear_int8_add_,
    integer_linear,
    integer_linear_add_,
)
from .fp8 import quantize_rows_fp8
from .hadamard import hadamard_block, hadamard_transform
from .integer import (
    ACTIVATION_BITS,
    INTEGER_LAYOUTS,
    integer_product,
    levels,
    pack_integer,
    quantize_tokens,
    unpack_integer,
)
from .linear import Int4Linear, IntegerLinear, PackedLinear
from .normalise import layer_norm_add_
from .packing import GROUP_SIZES, LAYOUT, PackingError, group_size_of, pack, unpack
from .quantized_attention import int8_attention
from .reference import dequantize
from .requantize import requantize
from .rotary import qk_norm_rope_

__all__ = [
    "ACTIVATION_BITS",
    "GROUP_SIZES",
    "INTEGER_LAYOUTS",
    "LAYOUT",
    "Int4Linear",
    "IntegerLinear",
    "PackedLinear",
    "PackingError",
    "attention",
    "dequantize",
    "fastest_dtype",
    "fastest_linears",
    "group_size_of",
    "hadamard_block",
    "hadamard_transform",
    "int4_linear",
    "int4_linear_fp8",
    "int4_linear_int8",
    "int4_linear_int8_add_",
    "int8_attention",
    "integer_linear",
    "integer_linear_add_",
    "integer_product",
    "layer_norm_add_",
    "levels",
    "pack",
    "pack_integer",
    "qk_norm_rope_",
    "quantize_rows_fp8",
    "quantize_tokens",
    "requantize",
    "unpack",
    "unpack_integer",
]
