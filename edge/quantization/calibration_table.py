"""Read and write TensorRT's calibration table byte for byte.

One header line, then ``<tensor name>: <scale>`` per tensor, LF after every line. A scale is an IEEE-754 float32 as
eight lower-case hexadecimal digits, most significant first; the dynamic range is 127 · scale. A name may contain
blanks,
slashes and colons, so a line is split at its last ``": "``.

Header forms: ``TRT-<version>-<calibrator>``; ``0 <cutoff> <quantile>``, two float64 in hexadecimal, for the legacy
calibrator; ``1`` or ``2`` alone, a bare calibrator number, before TensorRT 5.1. The version is
MAJOR·1000 + MINOR·100 + PATCH before TensorRT 10, and MAJOR·10000 + MINOR·100 + PATCH from 10 on.

Sources: ``readScalesFromCalibrationCache`` and ``setDynamicRange`` in TensorRT 10.3, samples/common/sampleEngines.cpp;
files in NVIDIA's MLPerf submissions (v0.5 to v3.0) and in NVIDIA-AI-IOT/deepstream_reference_apps (header ``1``).
The header ``2`` is inferred from the enumeration CalibrationAlgoType; no file with it was seen.

A table stores bit patterns, not numbers: NaN payloads and -0 are preserved. :func:`parse` only accepts what
:func:`write` produces; :func:`parse_lenient` also accepts the output of other programs, and reports its corrections.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Mapping
from typing import Literal, NoReturn

import msgspec

from edge.errors import ArtifactError

AlgorithmName = Literal["entropy2", "minmax", "entropy", "legacy"]
Where = str | os.PathLike[str]

LEVELS = 127
# The first TensorRT without calibrators: no header is right for it.
FIRST_WITHOUT_CALIBRATORS = 11

_CALIBRATORS: dict[str, AlgorithmName] = {
    "EntropyCalibration2": "entropy2",
    "MinMaxCalibration": "minmax",
    "EntropyCalibration": "entropy",
}
_NUMBERS: dict[str, AlgorithmName] = {"1": "entropy", "2": "entropy2"}
_TRT_HEADER = re.compile(r"TRT-([1-9][0-9]{3,5})-(\w+)")
_LEGACY_HEADER = re.compile(r"0 ([0-9a-f]{1,16}) ([0-9a-f]{1,16})")
_HEX8 = re.compile(r"[0-9a-f]{8}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BOM = b"\xef\xbb\xbf"
_MEND = "`edge table convert --lenient` repairs common damage and reports each change"


class TrtVersion(msgspec.Struct, frozen=True, order=True):
    """A TensorRT version with the precision of a table's header."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def code(self) -> int:
        """The number in the header: 8602 for 8.6.2, 100300 for 10.3.0."""
        return self.major * (1_000 if self.major < 10 else 10_000) + self.minor * 100 + self.patch

    @classmethod
    def from_code(cls, code: int) -> TrtVersion:
        """Convert a header's number to a version."""
        size = 1_000 if code < 10_000 else 10_000
        return cls(code // size, code % size // 100, code % 100)

    @classmethod
    def parse(cls, text: str) -> TrtVersion:
        """Parse ``10.3.0``; a fourth number (the build) is allowed and dropped.

        Raises:
            ArtifactError: ``text`` is not a version, or a header cannot express it.
        """
        match = re.fullmatch(r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{1,2})(\.[0-9]+)?", text, re.ASCII)
        if match is None:
            raise ArtifactError(f"{text!r} is not a TensorRT version", hint="write it like 10.3.0")
        version = cls(*(int(part) for part in match.groups()[:3]))
        if version.major == 0 or cls.from_code(version.code) != version:
            raise ArtifactError(f"a table's header cannot express TensorRT {text}", hint="write it like 10.3.0")
        return version


class TableHeader(msgspec.Struct, frozen=True):
    """First line of a table: its text and its parsed fields. Use :meth:`parse` or :meth:`make`.

    ``kind`` is ``numeric`` for the forms that begin with the calibrator's number and name no version.
    ``cutoff`` and ``quantile`` are the regression cutoff and the quantile of the legacy calibrator, both 0 to 1.
    """

    text: str
    kind: Literal["trt", "numeric"]
    algorithm: AlgorithmName
    version: TrtVersion | None = None
    cutoff: float | None = None
    quantile: float | None = None

    @classmethod
    def parse(cls, text: str, *, where: Where | None = None) -> TableHeader:
        """Read a header line.

        Raises:
            ArtifactError: the text is not a header of a calibration table.
        """
        if match := _TRT_HEADER.fullmatch(text):
            code, calibrator = match.groups()
            if calibrator not in _CALIBRATORS:
                known = ", ".join(_CALIBRATORS)
                raise ArtifactError(f"unknown calibrator {calibrator!r} in the header; known are {known}", where=where)
            return cls(text, "trt", _CALIBRATORS[calibrator], TrtVersion.from_code(int(code)))
        if match := _LEGACY_HEADER.fullmatch(text):
            cutoff, quantile = (struct.unpack(">d", bytes.fromhex(part.zfill(16)))[0] for part in match.groups())
            return cls(text, "numeric", "legacy", cutoff=cutoff, quantile=quantile)
        if text in _NUMBERS:
            return cls(text, "numeric", _NUMBERS[text])
        raise ArtifactError(
            f"not the header of a calibration table: {_short(text)}{_header_guess(text)}",
            where=where,
            hint=_MEND if text.endswith("\r") else "the first line should read like TRT-100300-EntropyCalibration2",
        )

    @classmethod
    def make(cls, algorithm: AlgorithmName, version: TrtVersion) -> TableHeader:
        """Make the header that TensorRT ``version`` writes for ``algorithm``.

        Raises:
            ArtifactError: the algorithm is legacy, whose header has a quantile and a cutoff instead of a version.
        """
        for calibrator, name in _CALIBRATORS.items():
            if name == algorithm:
                return cls(f"TRT-{version.code}-{calibrator}", "trt", algorithm, version)
        raise ArtifactError(f"no header with a version exists for the {algorithm} calibrator", hint="use entropy2")


class Table(msgspec.Struct, frozen=True):
    """A calibration table: a header, and the float32 bit pattern of each tensor's scale, in file order.

    Raises:
        ArtifactError: a name is not allowed in a table, or a pattern has more than 32 bits.
    """

    header: TableHeader
    bits: dict[str, int]

    def __post_init__(self) -> None:
        for name, pattern in self.bits.items():
            _check_name(name, where=None)
            if not 0 <= pattern < 1 << 32:
                raise ArtifactError(f"{name}: {pattern} is not a pattern of 32 bits")

    @property
    def names(self) -> list[str]:
        """Tensor names, in file order."""
        return list(self.bits)

    @property
    def scales(self) -> dict[str, float]:
        """Scale of every tensor; may contain NaN and infinity."""
        return {name: to_float(pattern) for name, pattern in self.bits.items()}

    def scale(self, name: str) -> float:
        """Return the scale of one tensor."""
        return to_float(self.bits[name])

    def range(self, name: str) -> float:
        """Return the dynamic range of one tensor: the largest magnitude in INT8, exact in float64."""
        return self.scale(name) * LEVELS


def to_float(pattern: int) -> float:
    """Return the float32 with this bit pattern."""
    value: float = struct.unpack(">f", pattern.to_bytes(4, "big"))[0]
    return value


def to_bits(value: float) -> int:
    """Return the bit pattern of ``value`` rounded to float32; raise OverflowError if it is too large."""
    return int.from_bytes(struct.pack(">f", value), "big")


def from_ranges(ranges: Mapping[str, float], *, algorithm: AlgorithmName, trt_version: TrtVersion) -> Table:
    """Make a table with scale = float32(range / 127) for every tensor; ranges in the tensor's own units.

    Raises:
        ArtifactError: a range is negative, not finite or too large for float32; a name is not allowed in a
            table; the calibrator is legacy.
    """
    bits = {name: range_bits(value, name=name) for name, value in ranges.items()}
    return Table(TableHeader.make(algorithm, trt_version), bits)


def range_bits(value: float, *, name: str, where: Where | None = None) -> int:
    """Return the bit pattern of the scale of a tensor with dynamic range ``value``.

    Raises:
        ArtifactError: the range is negative, not finite or too large for float32.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ArtifactError(f"{name}: the range must be finite and not negative, got {value}", where=where)
    try:
        # Adding 0.0 turns -0.0 into 0.0.
        return to_bits(value / LEVELS + 0.0)
    except OverflowError as exc:
        raise ArtifactError(f"{name}: the range {value} is too large for float32", where=where) from exc


def retarget(table: Table, version: TrtVersion, *, algorithm: AlgorithmName | None = None) -> Table:
    """Return the same scales under the header of another TensorRT version and, optionally, another calibrator.

    Raises:
        ArtifactError: TensorRT 11 and later read no tables; a legacy header has no version.
    """
    if version.major >= FIRST_WITHOUT_CALIBRATORS:
        raise ArtifactError(
            f"TensorRT {version} has no calibrators and reads no calibration table",
            hint="edge table convert --to qdq: this TensorRT needs Q/DQ nodes for INT8",
        )
    if algorithm is None and table.header.algorithm == "legacy":
        raise ArtifactError("a legacy header has no version that could be changed", hint="--as entropy2")
    return Table(TableHeader.make(algorithm or table.header.algorithm, version), table.bits)


def write(table: Table) -> bytes:
    """Return the content of the table's file."""
    lines = [table.header.text, *(f"{name}: {pattern:08x}" for name, pattern in table.bits.items())]
    return "".join(f"{line}\n" for line in lines).encode()


def parse(data: bytes, *, where: Where = "table") -> Table:
    """Parse the content of a table file; ``write(parse(data)) == data``.

    Raises:
        ArtifactError: the data is not in TensorRT's own form; the error has ``file:line`` and a guess of the format.
    """
    text = _decode(data, where)
    *lines, ending = text.split("\n")
    try:
        header = TableHeader.parse(lines[0] if lines else ending, where=f"{where}:1")
    except ArtifactError:
        _refuse_foreign(text, where)
        raise
    if ending:
        at = f"{where}:{len(lines) + 1}"
        raise ArtifactError("the file does not end with a newline: it may be truncated", where=at, hint=_MEND)
    bits: dict[str, int] = {}
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        at = f"{where}:{number}"
        name, separator, value = line.rpartition(": ")
        if not separator or not _HEX8.fullmatch(value):
            _refuse_line(line, at, is_last=not "".join(lines[number:]).strip())
        _check_name(name, where=at)
        if name in bits:
            raise ArtifactError(f"duplicate entry {name!r} (first defined on line {line_of[name]})", where=at)
        bits[name] = int(value, 16)
        line_of[name] = number
    return Table(header, bits)


def parse_lenient(data: bytes, *, where: Where = "table") -> tuple[Table, list[str]]:
    """Parse a table that another program wrote or an editor changed; return it with a note for each correction.

    Corrected: a byte order mark, CRLF, blanks at the end of a line, empty lines at the end, a missing final newline,
    ``0x``, upper-case digits, and dropped leading zeros (``hex()`` writes 0 as ``0x0``).

    Raises:
        ArtifactError: the result is not a table. A truncated scale at the end is not padded, because its digits are
        lost.
    """
    notes = []
    if data.startswith(_BOM):
        data = data.removeprefix(_BOM)
        notes.append("byte order mark removed")
    text = _decode(data, where)
    if "\r\n" in text:
        text = text.replace("\r\n", "\n")
        notes.append("CRLF line ends changed to LF")
    lines = text.rstrip().split("\n")
    ending = text[len(text.rstrip()) :]
    if "\n" not in ending:
        if len(lines) > 1 and not _HEX8.fullmatch(_bare_digits(lines[-1].rpartition(": ")[2])):
            raise ArtifactError(
                "the file is truncated in this line", where=f"{where}:{len(lines)}", hint="copy it again"
            )
        notes.append("final newline added")
    elif ending.count("\n") > 1:
        notes.append("empty lines at the end removed")
    mended = [lines[0].rstrip()]
    if ending.strip("\n") or mended != lines[:1]:
        notes.append("blanks at line ends removed")
    for number, line in enumerate(lines[1:], start=2):
        better = _mend(line)
        if better != line:
            notes.append(f"line {number}: {_short(line)} read as {_short(better)}")
        mended.append(better)
    return parse("".join(f"{line}\n" for line in mended).encode(), where=where), notes


def _mend(line: str) -> str:
    """Return the line in TensorRT's form if the correction is certain, otherwise unchanged."""
    name, separator, value = line.rpartition(": ")
    digits = _bare_digits(value)
    return f"{name}: {digits.zfill(8)}" if separator and re.fullmatch(r"[0-9a-f]{1,8}", digits) else line


def _bare_digits(value: str) -> str:
    return value.strip().lower().removeprefix("0x")


def _decode(data: bytes, where: Where) -> str:
    if not data.strip():
        raise ArtifactError("the file is empty", where=where)
    if data.startswith(_BOM):
        raise ArtifactError("begins with a byte order mark", where=f"{where}:1", hint=_MEND)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ArtifactError(f"not UTF-8: byte 0x{data[exc.start]:02x}", where=f"{where}:{line}") from exc


def _refuse_foreign(text: str, where: Where) -> None:
    """Raise an error for files that are often mistaken for a calibration table."""
    if text.lstrip().startswith(("{", "[")):
        raise ArtifactError("this is JSON", where=where, hint="edge table convert --from ort-json")
    if text.startswith("version https://git-lfs"):
        raise ArtifactError("this is a Git LFS pointer, not the file", where=where, hint="git lfs pull")
    parts = (line.rpartition(" ") for line in text.rstrip().split("\n"))
    if all(name and not name.endswith(":") and _is_decimal(value) for name, _, value in parts):
        raise ArtifactError(
            "this is onnxruntime's calibration.cache (name, blank, decimal range): TensorRT cannot read it, and its "
            "ranges are too small for a tensor whose minimum exceeds its maximum in magnitude",
            where=where,
            hint="convert the calibration.json next to it: edge table convert --from ort-json",
        )


def _refuse_line(line: str, at: str, *, is_last: bool) -> NoReturn:
    """Raise an error that describes a line other than ``name: 8 digits``; only blank lines follow the last line."""
    name, separator, value = line.rpartition(": ")
    digits = _bare_digits(value)
    hint: str | None = _MEND
    if not line.strip():
        what, hint = "the line is empty", _MEND if is_last else None
    elif line.endswith("\r"):
        what = "the line ends in CRLF"
    elif not separator or not re.fullmatch(r"[0-9a-f]*", digits):
        decimal = "; the scale looks decimal" if _is_decimal(line.rpartition(":")[2]) else ""
        what, hint = f"expected `name: scale` with 8 hexadecimal digits, got {_short(line)}{decimal}", None
    elif not digits:
        what, hint = f"{name}: 0 digits instead of 8: the line is truncated", None
    elif len(digits) < 8:
        what = (
            f"{name}: {len(digits)} digits instead of 8: the line is truncated,  "
            "or its writer dropped leading zeros as hex() does"
        )
    elif len(digits) > 8:
        what, hint = f"{name}: {len(digits)} digits instead of 8", None
    elif digits == value.lower():
        what = f"{name}: upper-case digits: {value}"
    else:
        what = f"{name}: more than 8 digits after the colon: {_short(value)}"
    raise ArtifactError(what, where=at, hint=hint)


def _is_decimal(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _check_name(name: str, *, where: Where | None) -> None:
    if not name:
        raise ArtifactError("a tensor has no name", where=where)
    if found := _CONTROL.search(name):
        raise ArtifactError(f"control character {found.group()!r} in the tensor name {_short(name)}", where=where)
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        raise ArtifactError(f"the tensor name {_short(name)} is not valid Unicode", where=where) from exc


def _header_guess(text: str) -> str:
    if text.endswith("\r"):
        return "; the line ends in CRLF"
    if text.startswith("TRT-"):
        return "; TRT- must be followed by a version of 4 to 6 digits and the calibrator's name"
    return "; the header line seems to be missing" if ": " in text else ""


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}…")
