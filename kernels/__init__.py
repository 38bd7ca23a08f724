"""INT4 linear layers: packed storage, the reference, and the fast path of each device."""

from .capability import fastest_dtype
from .dispatch import int4_linear
from .linear import Int4Linear
from .packing import GROUP_SIZES, LAYOUT, PackingError, group_size_of, pack, unpack
from .reference import dequantize

__all__ = [
    "GROUP_SIZES",
    "LAYOUT",
    "Int4Linear",
    "PackingError",
    "dequantize",
    "fastest_dtype",
    "group_size_of",
    "int4_linear",
    "pack",
    "unpack",
]
