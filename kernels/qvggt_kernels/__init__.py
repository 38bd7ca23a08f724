"""Packed linear layers and fused steps of a transformer: storage, references, fast paths."""

from .backends import Backend, fastest_dtype, fastest_linears
from .convolution import convolution3x3
from .dense_linear import DenseLinear, dense_linear
from .dense_output import Affine, add_places, dense_output, is_one_pass
from .fp8 import quantize_rows_fp8
from .hadamard import hadamard_block, hadamard_transform
from .integer import (
    ACTIVATION_BITS,
    INTEGER_LAYOUTS,
    levels,
    pack_integer,
    quantize_tokens,
    unpack_integer,
)
from .layer_norm import LayerNorm, layer_norm_add_
from .linear import Int4Linear, IntegerLinear, PackedLinear
from .operators import (
    attention,
    int4_linear,
    int4_linear_fp8,
    int4_linear_int8,
    int4_linear_int8_add_,
    int8_attention,
    integer_linear,
    integer_linear_add_,
    qk_norm_rope_,
)
from .packing import GROUP_SIZES, LAYOUT, PackingError, group_size_of, pack, unpack
from .reference.linear import dequantize, integer_product, requantize
from .reference.rotary import HeadNorm, Rotation
from .weight import IntegerWeight, PackedWeight

__all__ = [
    "ACTIVATION_BITS",
    "GROUP_SIZES",
    "INTEGER_LAYOUTS",
    "LAYOUT",
    "Affine",
    "Backend",
    "DenseLinear",
    "HeadNorm",
    "Int4Linear",
    "IntegerLinear",
    "IntegerWeight",
    "LayerNorm",
    "PackedLinear",
    "PackedWeight",
    "PackingError",
    "Rotation",
    "add_places",
    "attention",
    "convolution3x3",
    "dense_linear",
    "dense_output",
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
    "is_one_pass",
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
