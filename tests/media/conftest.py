"""Small pictures and shards, made here: the bytes of a shard are put together by hand, so they check the reader."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """``encode(".jpg", seed=3, size=(48, 64))``: a smooth picture, different for every seed."""

    def make(
        ending: str = ".jpg", *, seed: int = 0, size: tuple[int, int] = (48, 64), params: Sequence[int] = ()
    ) -> bytes:
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        ok, data = cv2.imencode(ending, cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC), list(params))
        assert ok
        return data.tobytes()

    return make


@pytest.fixture
def wire() -> SimpleNamespace:
    """The functions below that put together the bytes of shards."""
    return SimpleNamespace(frame=frame, example=example, masked=masked, field=field)


@pytest.fixture
def write_shard() -> Callable[..., Path]:
    """``write_shard(path, [(encoded, label, filename), …])``."""

    def make(path: Path, records: Sequence[tuple[bytes, int | None, bytes | None]]) -> Path:
        path.write_bytes(b"".join(frame(example(*record)) for record in records))
        return path

    return make


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit: slow, and independent of the library that edge uses."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame(data: bytes) -> bytes:
    """One record of a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(encoded: bytes | None, label: int | None, filename: bytes | None, **more: bytes) -> bytes:
    """A serialized tf.train.Example."""
    features = {}
    if encoded is not None:
        features["image/encoded"] = field(1, field(1, encoded))
    if label is not None:
        features["image/class/label"] = field(3, field(1, varint(label)))
    if filename is not None:
        features["image/filename"] = field(1, field(1, filename))
    features.update({name: field(1, field(1, value)) for name, value in more.items()})
    return field(1, b"".join(field(1, field(1, k.encode()) + field(2, v)) for k, v in features.items()))
