"""Check a calibration table against a network, route and TensorRT version; compare two tables.

Nothing here changes a table. There is a finding for each check, also when it passes.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import msgspec

from edge.errors import ArtifactError
from edge.quantization.calibration_table import FIRST_WITHOUT_CALIBRATORS, Table, TrtVersion, Where, to_float

Level = Literal["ok", "warning", "error"]
Route = Literal["implicit", "explicit"]

# A table that names fewer of the network's tensors than this was made for another model.
_FOREIGN_BELOW = 0.5
# An outlier is at least 2^10 from the median scale, and six standard deviations of the table's own spread.
_OUTLIER_LOG2 = 10.0
_OUTLIER_SIGMAS = 6.0
_OUTLIER_MIN_ENTRIES = 8
# Standard deviation of a normal distribution in units of its median absolute deviation.
_SIGMA_PER_MAD = 1.4826
# Scales of real networks lie far inside; bytes read in the wrong order mostly outside.
_SANE = (2.0**-40, 2.0**24)
# Names made by TensorRT and its ONNX parser: constants, broadcasts, layers without a name.
_OWN_NAMES = re.compile(r".+_output|\(Unnamed .*|ONNXTRT_.*")

_VALUE_TEXTS = {
    "nan": "the scale is not a number",
    "infinite": "the scale is infinite: INT8 would turn every value into 0",
    "zero": "the scale is 0: no value can be represented, and Q/DQ nodes refuse it",
    "negative": "the scale is negative",
    "denormal": "the scale is denormal: a GPU flushes it to 0",
}


class TableFinding(msgspec.Struct, frozen=True):
    """One result of a check: ``code`` names the check, ``tensors`` the affected tensors."""

    level: Level
    code: str
    text: str
    tensors: tuple[str, ...] = ()
    hint: str | None = None


class EntryChange(msgspec.Struct, frozen=True):
    """A tensor whose scale differs between two tables; ``ratio`` is b / a, or None if undefined."""

    name: str
    scale_a: float
    scale_b: float
    ratio: float | None


class TableComparison(msgspec.Struct, frozen=True):
    """Differences of table ``b`` from table ``a``; ``changes`` are sorted by |log2 ratio|, the largest first."""

    header_a: str
    header_b: str
    only_a: list[str]
    only_b: list[str]
    changes: list[EntryChange]
    same: int
    same_order: bool

    @property
    def is_same(self) -> bool:
        """True for the same header, tensors and scales; the order of the lines has no meaning."""
        return self.header_a == self.header_b and not (self.only_a or self.only_b or self.changes)


def check(
    table: Table,
    expected: Sequence[str] | None,
    *,
    route: Route,
    dla: bool,
    trt_version: TrtVersion | None,
    ignorable: Collection[str] = (),
    origin: TableFinding | None = None,
) -> list[TableFinding]:
    """Return the findings about ``table``, worst first.

    Args:
        table: the table.
        expected: names of the network's float activation tensors; None leaves coverage out.
        route: the INT8 route. Only ``implicit`` passes the table to a calibrator of TensorRT.
        dla: the engine is for a DLA core.
        trt_version: the TensorRT that will read the table; None skips the version check.
        ignorable: tensors that may be missing or without a usable scale, because nothing quantizes them.
        origin: the known origin of the table.
    """
    findings = [
        *([origin] if origin else []),
        *_values(table, expected, ignorable),
        *_outliers(table),
        *_byte_order(table),
    ]
    if expected is not None:
        findings += _coverage(table, expected, ignorable)
    findings += [
        *_algorithm(table, route=route, dla=dla, trt_version=trt_version),
        *_version(table, route, trt_version),
    ]
    return sorted(findings, key=lambda item: ("error", "warning", "ok").index(item.level))


def raise_for(findings: Iterable[TableFinding], where: Where) -> None:
    """Raise an error if ``findings`` contain errors.

    Raises:
        ArtifactError: there is an error; the message lists all.
    """
    errors = [item for item in findings if item.level == "error"]
    if errors:
        what = "the calibration table cannot be used: " + "; ".join(describe(item) for item in errors)
        raise ArtifactError(what, where=where, hint=next((item.hint for item in errors if item.hint), None))


def describe(finding: TableFinding, *, most: int = 3) -> str:
    """Format the finding in one line, with at most ``most`` tensor names."""
    if not finding.tensors:
        return finding.text
    more = len(finding.tensors) - most
    return f"{finding.text}: {', '.join(finding.tensors[:most])}{f' and {more} more' if more > 0 else ''}"


def compare(a: Table, b: Table) -> TableComparison:
    """Compare table ``b`` with table ``a``."""
    common = [name for name in a.bits if name in b.bits]
    changes = [_change(name, a, b) for name in common if a.bits[name] != b.bits[name]]
    changes.sort(key=lambda item: math.inf if item.ratio is None else abs(math.log2(item.ratio)), reverse=True)
    return TableComparison(
        header_a=a.header.text,
        header_b=b.header.text,
        only_a=[name for name in a.bits if name not in b.bits],
        only_b=[name for name in b.bits if name not in a.bits],
        changes=changes,
        same=len(common) - len(changes),
        same_order=common == [name for name in b.bits if name in a.bits],
    )


def _change(name: str, a: Table, b: Table) -> EntryChange:
    old, new = a.scale(name), b.scale(name)
    comparable = all(math.isfinite(scale) and scale > 0 for scale in (old, new))
    return EntryChange(name, old, new, new / old if comparable else None)


def value_code(pattern: int) -> str | None:
    """Return the problem of a scale's bit pattern, such as ``nan``, or None."""
    magnitude = pattern & 0x7FFFFFFF
    if magnitude > 0x7F800000:
        return "nan"
    if magnitude == 0x7F800000:
        return "infinite"
    if magnitude == 0:
        return "zero"
    if pattern >> 31:
        return "negative"
    return "denormal" if magnitude < 0x00800000 else None


def _values(table: Table, expected: Sequence[str] | None, ignorable: Collection[str]) -> list[TableFinding]:
    """Check for unusable scales: an error for a tensor of the network, a warning for any other name."""
    if not table.bits:
        return [TableFinding("error", "empty", "the table has a header but no tensors")]
    network = (set(table.bits) if expected is None else set(expected)) - set(ignorable)
    found: dict[tuple[Level, str], list[str]] = {}
    for name, pattern in table.bits.items():
        if code := value_code(pattern):
            found.setdefault(("error" if name in network else "warning", code), []).append(name)
    if not found:
        return [TableFinding("ok", "scales", f"all {len(table.bits)} scales are finite and above 0")]
    return [TableFinding(level, code, _VALUE_TEXTS[code], tuple(names)) for (level, code), names in found.items()]


def _outliers(table: Table) -> list[TableFinding]:
    """Check for scales far from the table's median in log2; the limit depends on the table's own spread (MAD)."""
    logs = {name: math.log2(to_float(bits)) for name, bits in table.bits.items() if value_code(bits) is None}
    if len(logs) < _OUTLIER_MIN_ENTRIES:
        return []
    middle = statistics.median(logs.values())
    spread = _SIGMA_PER_MAD * statistics.median(abs(value - middle) for value in logs.values())
    limit = max(_OUTLIER_LOG2, _OUTLIER_SIGMAS * spread)
    far = tuple(name for name, value in logs.items() if abs(value - middle) > limit)
    if not far:
        return []
    text = f"scale more than {2**limit:.0f} times away from the table's median {2**middle:.3g}"
    return [TableFinding("warning", "outlier", text, far)]


def _byte_order(table: Table) -> list[TableFinding]:
    """Check for scales that only make sense with their four bytes reversed."""
    reversed_ones = tuple(name for name, bits in table.bits.items() if not _is_sane(bits) and _is_sane(_swapped(bits)))
    if not reversed_ones:
        return []
    whole = len(reversed_ones) * 2 >= len(table.bits)
    text = "the scales look little-endian" if whole else "the scale makes sense only with its bytes reversed"
    hint = "TensorRT writes the most significant byte first: make the table again with a writer that does"
    return [TableFinding("error" if whole else "warning", "little-endian", text, reversed_ones, hint)]


def _is_sane(pattern: int) -> bool:
    return _SANE[0] <= to_float(pattern) <= _SANE[1]


def _swapped(pattern: int) -> int:
    return int.from_bytes(pattern.to_bytes(4, "big"), "little")


def _coverage(table: Table, expected: Sequence[str], ignorable: Collection[str]) -> list[TableFinding]:
    wanted = [name for name in expected if name not in ignorable]
    missing = tuple(name for name in wanted if name not in table.bits)
    known = set(expected)
    extra = tuple(name for name in table.bits if name not in known)
    findings = []
    here = len(wanted) - len(missing)
    if not missing:
        findings.append(TableFinding("ok", "coverage", f"all {len(wanted)} tensors of the network are in the table"))
    elif here < _FOREIGN_BELOW * len(wanted):
        text = f"the table was made for another model: it has {here} of the network's {len(wanted)} tensors"
        findings.append(TableFinding("error", "foreign", text, hint="edge calibrate"))
    if missing:
        text = f"missing: {len(missing)} of {len(wanted)} tensors; a layer without a scale does not run in INT8"
        findings.append(TableFinding("error", "missing", text, missing, "edge calibrate"))
    own = tuple(name for name in extra if _OWN_NAMES.fullmatch(name))
    strange = tuple(name for name in extra if not _OWN_NAMES.fullmatch(name))
    if own:
        text = f"{len(own)} names are not tensors of the network, but were made by TensorRT (harmless)"
        findings.append(TableFinding("ok", "extra", text, own))
    if strange:
        text = f"{len(strange)} names are not tensors of the network; TensorRT ignores them"
        findings.append(TableFinding("warning", "extra", text, strange))
    return findings


def _algorithm(table: Table, *, route: Route, dla: bool, trt_version: TrtVersion | None) -> list[TableFinding]:
    """Check the calibrator against the route and the DLA.

    Sources: NvInfer.h 10.3 and the developer guide (Entropy2 "required calibrator for DLA"; Entropy and Legacy
    calibrate after fusion unless kCALIBRATE_BEFORE_FUSION is set; legacy caches "will not be used if these do not match
    the settings of the current calibrator"); TensorRT 11 removed all calibrators.
    """
    name = table.header.algorithm
    if route == "explicit":
        if dla:
            text = "DLA does not support Q/DQ networks on TensorRT 8 to 10; use the implicit route"
            return [TableFinding("error", "route", text, hint="set int8_route: implicit in the profile")]
        return [
            TableFinding(
                "ok",
                "algorithm",
                f"{name}; the explicit route supports any algorithm, because no calibrator reads the table",
            )
        ]
    if trt_version is not None and trt_version.major >= FIRST_WITHOUT_CALIBRATORS:
        text = f"TensorRT {trt_version} has no calibrators: the implicit route ends with TensorRT 10"
        return [TableFinding("error", "route", text, hint="set int8_route: explicit in the profile")]
    if dla and name != "entropy2":
        text = f"DLA accepts only EntropyCalibration2, but this table says {name}"
        return [TableFinding("error", "algorithm", text, hint="edge table retarget --as entropy2 keeps the scales")]
    if name in {"entropy", "legacy"}:
        text = f"{name} calibrates after layer fusion, so its scales may be wrong for another device or TensorRT"
        if name == "legacy":
            text += f"; the calibrator needs quantile {table.header.quantile} and cutoff {table.header.cutoff}"
        return [TableFinding("warning", "algorithm", text)]
    return [TableFinding("ok", "algorithm", f"{name} is valid for the implicit route{' and DLA' if dla else ''}")]


def _version(table: Table, route: Route, wanted: TrtVersion | None) -> list[TableFinding]:
    """Check the version: the same major version is accepted with a note, another one needs a new header.

    Sources: NVIDIA's developer guide 8.4, API Versioning ("can usually be reused within a major version, but
    compatibility is not guaranteed"); public reports that TensorRT 10.3 refuses TRT-8600 tables.
    """
    has = table.header.version
    if route == "explicit" or (wanted is not None and wanted.major >= FIRST_WITHOUT_CALIBRATORS):
        return []
    if wanted is None:
        return (
            [TableFinding("ok", "version", f"made for TensorRT {has}, not compared with a TensorRT version")]
            if has
            else []
        )
    if has is None:
        if table.header.algorithm == "legacy":
            return []
        return [
            TableFinding(
                "warning",
                "version",
                "the header is from before TensorRT 5.1 and has no version",
                hint=_retarget(wanted),
            )
        ]
    if has == wanted:
        return [TableFinding("ok", "version", f"made for TensorRT {has}")]
    if has.major == wanted.major:
        text = (
            f"made for TensorRT {has}, accepted by {wanted}: the same major version usually works, without a guarantee"
        )
        return [TableFinding("warning", "version", text)]
    text = f"made for TensorRT {has}; {wanted} refuses it and would calibrate without data"
    return [TableFinding("error", "version", text, hint=_retarget(wanted))]


def _retarget(version: TrtVersion) -> str:
    return f"edge table retarget --trt {version} writes the header for it and keeps the scales"
