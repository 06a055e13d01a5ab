"""The first bytes of a serialized timing cache: whose it is, and how many entries it has.

NVIDIA documents none of it. What is read here was seen in a real cache of TensorRT 8.6.1: the magic ``ptrt``, a number
of the format, the length of the rest, then the UUID of the GPU, the commit of TensorRT, and the number of entries, each
behind a mark of its own. Another version may lay it out differently: what does not fit is None, never a guess. Whether
something is a timing cache at all, only TensorRT decides.
"""

from __future__ import annotations

import struct
import uuid

import msgspec

MAGIC = b"ptrt"
_PROLOGUE = 24  # magic, padding, format, length of the rest
# Mark of a sequence, its length, mark of its elements' type twice over, and the length again.
_SEQUENCE = struct.Struct("<IQHIQ")
_SEQUENCE_MARKS = (0x18018, 0x8001, 0x1800C)
_COUNT = struct.Struct("<IQ")
_COUNT_MARK = 0x18008
_MOST_ENTRIES = 1 << 32


class TimingCacheHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The first bytes of a timing cache; None where they are not laid out as in TensorRT 8.6.1.

    ``whole``: the length that is in the file is that of the file; None where no length was found.
    """

    format: int | None = None
    whole: bool | None = None
    gpu_uuid: str | None = None
    commit: str | None = None
    entries: int | None = None


def header(content: bytes) -> TimingCacheHeader:
    """Read the first bytes of a timing cache."""
    if not content.startswith(MAGIC) or len(content) < _PROLOGUE:
        return TimingCacheHeader()
    version, length = struct.unpack_from("<QQ", content, 8)
    first = _sequence(content, _PROLOGUE)
    if first is None or not 0 < version < 1 << 16:
        # TensorRT 8.0 put the number elsewhere, and so may versions to come.
        return TimingCacheHeader()
    whole = length == len(content) - _PROLOGUE
    raw, at = first
    gpu = f"GPU-{uuid.UUID(bytes=raw)}" if len(raw) == 16 else None
    second = _sequence(content, at)
    if second is None:
        return TimingCacheHeader(format=version, whole=whole, gpu_uuid=gpu)
    commit, at = second
    entries = None
    if len(content) >= at + _COUNT.size:
        mark, count = _COUNT.unpack_from(content, at)
        entries = count if mark == _COUNT_MARK and count < _MOST_ENTRIES else None
    return TimingCacheHeader(
        format=version, whole=whole, gpu_uuid=gpu, commit=commit.decode("ascii", "replace"), entries=entries
    )


def _sequence(content: bytes, at: int) -> tuple[bytes, int] | None:
    """The bytes of the sequence at ``at``, and where it ends."""
    if len(content) < at + _SEQUENCE.size:
        return None
    outer, count, element, inner, size = _SEQUENCE.unpack_from(content, at)
    end = at + _SEQUENCE.size + count
    if (outer, element, inner) != _SEQUENCE_MARKS or count != size or count > 64 or len(content) < end:
        return None
    return content[at + _SEQUENCE.size : end], end
