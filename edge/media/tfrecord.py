"""Read ImageNet TFRecord shards directly: the original JPEG bytes, without TensorFlow.

A shard is a sequence of records: length (uint64, little-endian), masked CRC-32C of the length, data, masked CRC-32C of
the data (https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details). The data is a serialized
``tf.train.Example`` with the features ``image/encoded``, ``image/class/label`` and ``image/filename``.

No reader on PyPI that is kept and light checks both checksums (looked at in 2026): ``tfrecord`` 1.14.6 and
``tfrecord_dataset`` 0.2.0 read the checksums and do not compare them, so a flipped bit is another image or label;
``tfrecords`` 0.3.1 does, in 70 MB of libraries, and its import may run ``patchelf``; ``tensorboard``'s reader does, in
pure Python at about 6 MB/s, with gRPC and a web server behind it. So the two hard parts are left to those who keep
them, ``google-crc32c`` (checksums in hardware, some GB/s) and ``protobuf`` (the Example; ONNX needs it anyway), and the
16 bytes of framing are read here. Both have wheels for CPython 3.10 to 3.13 on x86-64 and aarch64.

A limit of the format: a shard truncated exactly between two records looks like a shorter shard. Shards that were
compressed as a whole are refused.
"""

from __future__ import annotations

import functools
import itertools
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import IO, Any

import msgspec

from edge.errors import DEPENDENCIES, DataError, MissingDependencyError, require
from edge.media.labels import SUFFIXES, shown
from edge.media.pictures import Picture, Pictures

_NAME = re.compile(r"-\d{5}-of-\d{5}$")
_SUFFIXES = (".tfrecord", ".tfrecords")
_HEADER, _FOOTER = 12, 4
_MASK_DELTA = 0xA282EAD8
# No image is this large; a length above it is damage with an accidentally matching checksum.
_MAX_RECORD = 1 << 30


def is_shard(path: Path) -> bool:
    """Return True if the name is that of a TFRecord shard: ``train-00000-of-01024``, ``*.tfrecord``, or both."""
    return path.name.lower().endswith(_SUFFIXES) or _NAME.search(path.name) is not None


# Names of a feature in the ImageNet shards of TensorFlow's scripts, and in those of TensorFlow Datasets.
_ENCODED = ("image/encoded", "image")
_LABEL = ("image/class/label", "label")
_FILENAME = ("image/filename", "file_name")
_DAMAGED = "get the shard again"
_INSTALL = DEPENDENCIES["google"]
_ENDINGS = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"RIFF", ".webp"), (b"BM", ".bmp"))


class Example(msgspec.Struct, frozen=True):
    """The fields of a ``tf.train.Example`` that edge reads; ``filename`` is unchecked and unsafe as a path."""

    encoded: bytes
    label: int | None
    filename: str


class RecordOrigin(msgspec.Struct, frozen=True):
    """One record of a shard: its number (from 0) and the byte at which it begins."""

    shard: str
    index: int
    offset: int

    @property
    def where(self) -> str:
        """Shard, record number and byte offset."""
        return f"{shown(self.shard)}: record {self.index} at byte {self.offset}"

    def read(self) -> bytes:
        """Return the encoded image in the record after comparing both checksums again.

        Raises:
            DataError: the shard is missing, truncated or damaged here.
        """
        try:
            with Path(self.shard).open("rb") as file:
                file.seek(self.offset)
                data = _next_record(file, where=self.where)
        except OSError as exc:
            raise DataError(f"cannot read the shard: {exc.strerror or exc}", where=self.where) from exc
        if data is None:
            raise DataError("the shard was truncated after edge listed it", where=self.where)
        return parse(data, where=self.where).encoded


def open_shards(source: Path, shards: Sequence[Path]) -> Pictures:
    """Open the images in ``shards`` as a lazy list; one record at a time is in memory.

    Raises:
        DataError: the first shard is not a TFRecord file, or no shard has a record; later damage is found on listing.
        MissingDependencyError: google-crc32c or protobuf is missing.
    """
    pictures = Pictures(source, _list(source, shards))
    pictures.take(1)
    return pictures


def parse(data: bytes, *, where: str) -> Example:
    """Extract the image, label and file name from the bytes of a record.

    Raises:
        DataError: the record is not a ``tf.train.Example``, or has no image.
    """
    message_type, decode_error = _schema()
    message = message_type()
    try:
        message.ParseFromString(data)
    except decode_error as exc:
        raise DataError(f"the record is not a tf.train.Example: {exc}", where=where) from exc
    features = {entry.key: entry.value for entry in message.features.feature}
    encoded = _first(features, _ENCODED, "bytes_list")
    if not encoded:
        found = ", ".join(sorted(features)[:8]) or "nothing"
        raise DataError(f"the record has no image: looked for {' or '.join(_ENCODED)}, found {found}", where=where)
    label = _first(features, _LABEL, "int64_list")
    filename = _first(features, _FILENAME, "bytes_list") or b""
    return Example(bytes(encoded), None if label is None else int(label), filename.decode("utf-8", "backslashreplace"))


def portable_name(example: Example, shard: str, index: int) -> str:
    """Make a relative path for the image from its file name, or else from the shard's name and the record number.

    The path never leads out of a folder (no root, no drive, no ``..``, no control characters), and a folder of such
    files can be read completely: no hidden names, and a suffix of an image file.
    """
    ending = next((ending for magic, ending in _ENDINGS if example.encoded.startswith(magic)), ".jpg")
    plain = "".join(c if c.isprintable() and c not in ':*?"<>|' else "_" for c in example.filename.replace("\\", "/"))
    parts = [part for part in (p.strip() for p in plain.split("/")) if part.strip(".")]
    visible = [f"_{part[1:]}" if part.startswith(".") else part for part in parts]
    if not visible:
        return f"{shown(shard)}-{index:06d}{ending}"
    name = "/".join(visible)
    return name if PurePosixPath(name).suffix.lower() in SUFFIXES else f"{name}{ending}"


def _list(source: Path, shards: Sequence[Path]) -> Iterator[Picture]:
    empty = True
    for shard in shards:
        for origin, data in _records(shard):
            example = parse(data, where=origin.where)
            yield Picture(portable_name(example, shard.name, origin.index), example.label, origin)
            empty = False
    if empty:
        raise DataError(f"{len(shards)} TFRecord shard(s), but none has a record", where=source)


def _records(shard: Path) -> Iterator[tuple[RecordOrigin, bytes]]:
    """Yield every record of a shard with both checksums compared."""
    try:
        with shard.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise DataError(
                    "the shard is compressed", where=shard, hint="gunzip it (rename it to end in .gz first)"
                )
            file.seek(0)
            for index in itertools.count():
                origin = RecordOrigin(str(shard), index, file.tell())
                data = _next_record(file, where=origin.where)
                if data is None:
                    return
                yield origin, data
    except OSError as exc:
        raise DataError(f"cannot read the shard: {exc.strerror or exc}", where=shown(str(shard))) from exc


def _next_record(file: IO[bytes], *, where: str) -> bytes | None:
    """Return the data of the record at the file's position; None at the end of the file."""
    header = file.read(_HEADER)
    if not header:
        return None
    if len(header) < _HEADER:
        raise DataError(f"the shard is truncated: {_HEADER - len(header)} bytes are missing in a header", where=where)
    length, length_crc = struct.unpack("<QI", header)
    if _masked_crc(header[:8]) != length_crc or length > _MAX_RECORD:
        raise DataError("damaged, or not a TFRecord file: the checksum of the record's length is wrong", where=where)
    body = file.read(length + _FOOTER)
    if len(body) < length + _FOOTER:
        lost = length + _FOOTER - len(body)
        raise DataError(f"the shard is truncated: {lost} of the record's {length} bytes are missing", where=where)
    data = body[:length]
    if _masked_crc(data) != int.from_bytes(body[length:], "little"):
        raise DataError("the record is damaged: the checksum of its data is wrong", where=where, hint=_DAMAGED)
    return data


def _masked_crc(data: bytes) -> int:
    """Return the CRC-32C, rotated right by 15 bits and offset, as TensorFlow's ``crc32c::Mask`` does."""
    crc: int = _dependency("google_crc32c").value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _first(features: dict[str, Any], names: Sequence[str], kind: str) -> Any:  # noqa: ANN401
    """Return the first value of the first of ``names`` that exists with the right type."""
    for name in names:
        if name in features and getattr(features[name], kind).value:
            return getattr(features[name], kind).value[0]
    return None


@functools.cache
def _schema() -> tuple[Any, type[Exception]]:
    """Return the message class of ``tf.train.Example`` (tensorflow/core/example/*.proto) and protobuf's error class.

    A separate descriptor pool avoids a conflict with TensorFlow's, if that is loaded. The map of features is declared
    as the repeated entry that it is in the wire format.
    """
    schema = _dependency("google.protobuf.descriptor_pb2").FileDescriptorProto(
        name="edge/example.proto", package="edge", syntax="proto3"
    )
    kinds = {"string": 9, "message": 11, "bytes": 12, "float": 2, "int64": 3}
    messages = {
        "BytesList": [("value", 1, "bytes", "")],
        "FloatList": [("value", 1, "float", "")],
        "Int64List": [("value", 1, "int64", "")],
        "Feature": [
            ("bytes_list", 1, "message", "BytesList"),
            ("float_list", 2, "message", "FloatList"),
            ("int64_list", 3, "message", "Int64List"),
        ],
        "Entry": [("key", 1, "string", ""), ("value", 2, "message", "Feature")],
        "Features": [("feature", 1, "message", "Entry")],
        "Example": [("features", 1, "message", "Features")],
    }
    for name, fields in messages.items():
        message = schema.message_type.add(name=name)
        for field, number, kind, type_name in fields:
            is_repeated = name.endswith("List") or name == "Features"
            message.field.add(
                name=field,
                number=number,
                type=kinds[kind],
                label=3 if is_repeated else 1,
                type_name=f".edge.{type_name}" if type_name else None,
            )
    pool = _dependency("google.protobuf.descriptor_pool").DescriptorPool()
    pool.Add(schema)
    factory, errors = _dependency("google.protobuf.message_factory"), _dependency("google.protobuf.message")
    return factory.GetMessageClass(pool.FindMessageTypeByName("edge.Example")), errors.DecodeError


@functools.cache
def _dependency(name: str) -> ModuleType:
    try:
        return require(name)
    except MissingDependencyError as exc:
        raise MissingDependencyError(f"TFRecord shards cannot be read: {exc.what}", hint=_INSTALL) from exc
