"""Message types as DDS announces and carries them: ROS 2's names and hashes, rosbags' bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from cyclonedds.idl import IdlStruct, make_idl_struct
from cyclonedds.idl import annotations as idl_annotations
from cyclonedds.idl import types as idl_types
from rosbags.interfaces import Nodetype
from rosbags.typesys.store import Typestore

from qvggt_core.errors import TransportError

# Indexed as `sequence[byte]` is in annotations, which type checkers do not see through.
types: Any = idl_types

# `uint8` is announced as `byte`, which has the same bytes on the wire and is what ROS makes of it
# (octet): release 11 announcing a sequence of uint8 crashes participants of release 0.10.5.
_BASE_TYPES: dict[str, Any] = {
    "bool": bool,
    "byte": types.byte,
    "char": types.byte,
    "uint8": types.byte,
    "int8": types.int8,
    "int16": types.int16,
    "uint16": types.uint16,
    "int32": types.int32,
    "uint32": types.uint32,
    "int64": types.int64,
    "uint64": types.uint64,
    "float32": types.float32,
    "float64": types.float64,
}


_ANNOUNCED: dict[tuple[str, str], type[Any]] = {}


@dataclass(frozen=True)
class WireType:
    """A message type on the wire.

    Attributes:
        name: full ROS name.
        typestore: serialises and deserialises it.
        announced: its IDL, for discovery.
        user_data: its hash, as ROS endpoints carry it.
    """

    name: str
    typestore: Typestore
    announced: type[Any]
    user_data: bytes

    def serialize(self, message: Any) -> bytes:
        """Return a message as CDR."""
        return bytes(self.typestore.serialize_cdr(message, self.name))

    def deserialize(self, data: bytes) -> Any:
        """Return the message of CDR; raises what its bytes lead to."""
        return self.typestore.deserialize_cdr(data, self.name)


def wire_type(typestore: Typestore, name: str) -> WireType:
    """Return how a message type is announced and carried.

    Raises:
        TransportError: the type is not known, or has what DDS does not know.
    """
    if name not in typestore.fielddefs:
        raise TransportError(f"the message type {name} is not known")
    type_hash = typestore.hash_rihs01(name)
    # One class a type and process: Cyclone DDS files each class by the hash of its type, and its
    # table grows without end at the 33rd of one hash.
    announced = _ANNOUNCED.get((name, type_hash))
    if announced is None:
        announced = idl_type(typestore, name, {})
        _carry_cdr(announced)
        _ANNOUNCED[name, type_hash] = announced
    return WireType(name, typestore, announced, f"typehash={type_hash};".encode())


def idl_type(typestore: Typestore, name: str, known: dict[str, type[IdlStruct]]) -> type[IdlStruct]:
    """Return the IDL of a message type: `pkg::msg::dds_::Name_`, final.

    Args:
        typestore: where the type is defined.
        name: its full ROS name.
        known: gets it and the types that it is made of, by name.

    Raises:
        TransportError: the type is not known, or has what DDS does not know.
    """
    if name in known:
        return known[name]
    if name not in typestore.fielddefs:
        raise TransportError(f"the message type {name} is not known")
    package, _, short = name.rpartition("/")
    nested = partial(idl_type, typestore, known=known)

    def field(definition: Any) -> Any:
        kind, content = definition
        if kind == Nodetype.NAME:
            return nested(content)
        if kind == Nodetype.BASE:
            base, limit = content
            if base == "string":
                return types.bounded_str[limit] if limit else str
            if base not in _BASE_TYPES:
                raise TransportError(f"the message type {name} has a {base}, unknown to DDS")
            return _BASE_TYPES[base]
        element, size = content
        if kind == Nodetype.ARRAY:
            return types.array[field(element), size]
        return types.sequence[field(element), size] if size else types.sequence[field(element)]

    _, fields = typestore.fielddefs[name]
    known[name] = announced = idl_annotations.final(
        make_idl_struct(
            f"{short}_",
            f"{package.replace('/', '.')}.dds_.{short}_",
            {field_name: field(definition) for field_name, definition in fields},
        )
    )
    return announced


def _carry_cdr(announced: Any) -> None:
    """Let samples of an IDL type be their own serialisation, in `cdr`.

    The binding's own way packs every byte of a picture as a Python number, a hundred
    milliseconds for one; the type store takes a tenth of a millisecond for the same bytes.
    """

    def carrier(cls: Any, data: bytes, *arguments: Any, **options: Any) -> Any:
        sample = cls.__new__(cls)
        sample.cdr = data
        return sample

    announced.of = classmethod(carrier)
    announced.serialize = lambda sample, *arguments, **options: sample.cdr
    announced.deserialize = classmethod(carrier)
    # Asked for the key of a sample without data; the messages of ROS have none.
    announced.deserialize_key = classmethod(carrier)
