"""onnxruntime's ``calibration.flatbuffers`` as pairs of texts.

The schema is ``table TrtTable { dict: [KeyValue]; }`` with ``table KeyValue { key: string; value: string; }``. Writing
uses the flatbuffers library. Reading does not: the reader that onnxruntime generated from the schema slices past the
end of a truncated file and gives a shorter number, this one refuses.

Source: quantization/CalTableFlatBuffers in onnxruntime 1.32; the FlatBuffers binary format ("FlatBuffers internals").
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from edge.errors import ArtifactError, require
from edge.quantization.calibration_table import Where


def build(pairs: Iterable[tuple[str, str]]) -> bytes:
    """FlatBuffers content with ``pairs`` in their order.

    Raises:
        MissingDependencyError: the flatbuffers library is missing (it comes with onnxruntime).
    """
    builder = require("flatbuffers").Builder(1024)
    made = []
    for name, value in pairs:
        key, text = builder.CreateString(name), builder.CreateString(value)
        builder.StartObject(2)
        builder.PrependUOffsetTRelativeSlot(0, key, 0)
        builder.PrependUOffsetTRelativeSlot(1, text, 0)
        made.append(builder.EndObject())
    builder.StartVector(4, len(made), 4)
    # A vector is built from its end.
    for entry in reversed(made):
        builder.PrependUOffsetTRelative(entry)
    vector = builder.EndVector()
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, vector, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def entries(data: bytes, *, where: Where) -> list[tuple[str, str]]:
    """The pairs in file order.

    Raises:
        ArtifactError: not such a file, or truncated.
    """
    return _Buffer(data, where).entries()


class _Buffer:
    """Reads with every offset checked against the end of the data."""

    def __init__(self, data: bytes, where: Where) -> None:
        self.data = data
        self.where = where

    def entries(self) -> list[tuple[str, str]]:
        """Keys and values in file order."""
        vector = self._follow(self._field(self._follow(0), 0))
        count = self._read("<I", vector)
        if vector + 4 + 4 * count > len(self.data):
            raise self._broken(f"a list of {count} entries")
        tables = [self._follow(vector + 4 + 4 * index) for index in range(count)]
        return [(self._string(self._field(at, 0)), self._string(self._field(at, 1))) for at in tables]

    def _field(self, at: int, index: int) -> int:
        """Position of a field's value in the table at ``at``."""
        vtable = at - self._read("<i", at)
        slot = 4 + 2 * index
        offset = self._read("<H", vtable + slot) if slot < self._read("<H", vtable) else 0
        if offset == 0:
            raise self._broken(f"no field {index}")
        return at + offset

    def _follow(self, at: int) -> int:
        return at + self._read("<I", at)

    def _string(self, at: int) -> str:
        start = self._follow(at) + 4
        size = self._read("<I", start - 4)
        # FlatBuffers ends strings with a zero byte that does not count.
        if start + size >= len(self.data) or self.data[start + size] != 0:
            raise self._broken(f"a string of {size} bytes")
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError as exc:
            raise self._broken("a string that is not UTF-8") from exc

    def _read(self, form: str, at: int) -> int:
        if at < 0 or at + struct.calcsize(form) > len(self.data):
            raise self._broken("an offset")
        value: int = struct.unpack_from(form, self.data, at)[0]
        return value

    def _broken(self, what: str) -> ArtifactError:
        return ArtifactError(
            f"not onnxruntime's calibration.flatbuffers, or truncated: {what} leads out of {len(self.data)} bytes",
            where=self.where,
        )
