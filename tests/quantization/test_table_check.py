from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ArtifactError
from edge.quantization.calibration_table import Table, TableHeader, TrtVersion, from_ranges, parse, to_bits
from edge.quantization.table_check import TableFinding, check, compare, describe, raise_for, value_code

V10 = TrtVersion(10, 3, 0)
NETWORK = ["input", *(f"/layer{index}/Conv_output_0" for index in range(20))]


def make(header: str = "TRT-100300-EntropyCalibration2", **bits: int) -> Table:
    """Table of NETWORK with believable scales; ``bits`` replaces or adds some."""
    usual = {name: to_bits((1 + index / 7) / 127) for index, name in enumerate(NETWORK)}
    return Table(TableHeader.parse(header), {**usual, **bits})


def findings_of(table: Table, code: str, **options: object) -> list[TableFinding]:
    usual: dict[str, object] = {"expected": NETWORK, "route": "implicit", "dla": False, "trt_version": V10}
    return [item for item in check(table, **{**usual, **options}) if item.code == code]  # type: ignore[arg-type]


def test_a_good_table_has_only_good_findings() -> None:
    found = check(make(), NETWORK, route="implicit", dla=True, trt_version=V10)
    assert {item.level for item in found} == {"ok"}
    assert {item.code for item in found} == {"coverage", "scales", "algorithm", "version"}
    raise_for(found, "t.table")


@pytest.mark.parametrize(
    ("bits", "code"),
    [
        (0x00000000, "zero"),
        (0x80000000, "zero"),
        (0x7F800000, "infinite"),
        (0xFF800000, "infinite"),
        (0x7FC00000, "nan"),
        (0xFF800001, "nan"),
        (0xBC010204, "negative"),
        (0x80000001, "negative"),
        (0x00000001, "denormal"),
        (0x007FFFFF, "denormal"),
        (0x00800000, None),
        (0x7F7FFFFF, None),
    ],
)
def test_what_is_wrong_with_a_scale(bits: int, code: str | None) -> None:
    assert value_code(bits) == code


@pytest.mark.parametrize(
    ("code", "bits"),
    [
        ("zero", 0),
        ("infinite", 0x7F800000),
        ("nan", 0x7FC00000),
        ("negative", 0xBC010204),
        ("denormal", 0x00000100),
    ],
)
def test_an_unusable_scale_is_an_error_for_a_tensor_of_the_network_only(code: str, bits: int) -> None:
    table = make(input=bits, mask=bits)
    levels = {item.level: item.tensors for item in findings_of(table, code)}
    assert levels == {"error": ("input",), "warning": ("mask",)}
    assert findings_of(table, code, expected=None)[0].tensors == ("input", "mask")
    assert {item.level for item in findings_of(table, code, ignorable=["input"])} == {"warning"}
    assert not findings_of(table, "scales")


@pytest.mark.parametrize(("factor", "is_outlier"), [(2000.0, True), (1 / 2000, True), (200.0, False)])
def test_outliers(factor: float, is_outlier: bool) -> None:
    found = findings_of(make(input=to_bits(0.019 * factor)), "outlier")
    assert [item.tensors for item in found] == ([("input",)] if is_outlier else [])
    assert all(item.level == "warning" for item in found)


def test_the_outlier_limit_widens_with_the_tables_own_spread() -> None:
    wide = {f"t{index}": to_bits(2.0 ** (index - 20)) for index in range(40)}
    assert not findings_of(Table(TableHeader.parse("1"), wide), "outlier", expected=None)


def test_a_few_scales_have_no_outliers() -> None:
    assert not findings_of(parse(b"1\na: 3c010204\nb: 7e000000\n"), "outlier", expected=None)


@pytest.mark.parametrize(
    ("count", "level"), [(len(NETWORK), "error"), (3, "warning")], ids=["whole-table", "some-lines"]
)
def test_little_endian(count: int, level: str) -> None:
    usual = make().bits
    swapped = {
        name: int.from_bytes((bits | 0x55).to_bytes(4, "big"), "little") for name, bits in list(usual.items())[:count]
    }
    found = findings_of(make(**swapped), "little-endian")
    assert [item.level for item in found] == [level]
    assert set(found[0].tensors) == set(swapped)


def test_missing_tensors() -> None:
    table = Table(make().header, {name: bits for name, bits in make().bits.items() if name != "input"})
    found = findings_of(table, "missing")
    assert [(item.level, item.tensors) for item in found] == [("error", ("input",))]
    assert not findings_of(table, "coverage")
    assert findings_of(table, "coverage", ignorable=["input"])[0].level == "ok"
    with pytest.raises(ArtifactError, match=r"missing: 1 of 21 tensors.*: input"):
        raise_for(check(table, NETWORK, route="implicit", dla=False, trt_version=V10), "t.table")


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("fc.weight_output", "ok"),
        ("(Unnamed Layer* 3) [Constant]_output", "ok"),
        ("ONNXTRT_Broadcast_240_output", "ok"),
        ("/another/Conv", "warning"),
    ],
)
def test_extra_names_are_harmless(name: str, level: str) -> None:
    assert [(item.level, item.tensors) for item in findings_of(make(**{name: 0x3C010204}), "extra")] == [
        (level, (name,))
    ]


def test_a_table_for_another_model() -> None:
    other = from_ranges({f"t{index}": 1.0 for index in range(30)}, algorithm="entropy2", trt_version=V10)
    found = findings_of(other, "foreign")
    assert [item.level for item in found] == ["error"]
    assert "0 of the network's 21 tensors" in found[0].text


@pytest.mark.parametrize(("known", "is_foreign"), [(9, True), (10, False), (11, False)])
def test_half_of_the_tensors_is_still_the_same_model(known: int, is_foreign: bool) -> None:
    network = [f"t{index}" for index in range(20)]
    given = from_ranges(dict.fromkeys(network[:known], 1.0), algorithm="entropy2", trt_version=V10)
    assert bool(findings_of(given, "foreign", expected=network)) is is_foreign


def test_an_empty_table() -> None:
    assert findings_of(parse(b"1\n"), "empty", expected=None)[0].level == "error"


@pytest.mark.parametrize(
    ("header", "route", "dla", "trt", "code", "level"),
    [
        ("TRT-100300-EntropyCalibration2", "implicit", True, "10.3.0", "algorithm", "ok"),
        ("TRT-100300-MinMaxCalibration", "implicit", False, "10.3.0", "algorithm", "ok"),
        ("TRT-100300-MinMaxCalibration", "implicit", True, "10.3.0", "algorithm", "error"),
        ("TRT-100300-EntropyCalibration", "implicit", False, "10.3.0", "algorithm", "warning"),
        ("0 3ff0000000000000 3fefffeb074a771d", "implicit", False, "8.6.2", "algorithm", "warning"),
        ("0 3ff0000000000000 3fefffeb074a771d", "explicit", False, "8.6.2", "algorithm", "ok"),
        ("0 3ff0000000000000 3fefffeb074a771d", "implicit", True, "8.6.2", "algorithm", "error"),
        ("TRT-100300-MinMaxCalibration", "explicit", False, "11.4.1", "algorithm", "ok"),
        ("TRT-100300-EntropyCalibration2", "explicit", True, "10.3.0", "route", "error"),
        ("TRT-100300-EntropyCalibration2", "implicit", False, "11.4.1", "route", "error"),
    ],
)
def test_algorithm_against_route_and_dla(header: str, route: str, dla: bool, trt: str, code: str, level: str) -> None:
    found = findings_of(make(header), code, route=route, dla=dla, trt_version=TrtVersion.parse(trt))
    assert [item.level for item in found] == [level]


@pytest.mark.parametrize(
    ("header", "trt", "level", "words"),
    [
        ("TRT-100300-EntropyCalibration2", "10.3.0", "ok", "made for TensorRT 10.3.0"),
        ("TRT-100300-EntropyCalibration2", "10.14.1", "warning", "accepted by 10.14.1"),
        ("TRT-8001-EntropyCalibration2", "8.6.2", "warning", "made for TensorRT 8.0.1"),
        ("TRT-8602-EntropyCalibration2", "10.3.0", "error", "10.3.0 refuses it"),
        ("TRT-100300-EntropyCalibration2", "8.6.2", "error", "8.6.2 refuses it"),
        ("1", "8.6.2", "warning", "has no version"),
    ],
)
def test_version_rule(header: str, trt: str, level: str, words: str) -> None:
    found = findings_of(make(header), "version", trt_version=TrtVersion.parse(trt))
    assert [item.level for item in found] == [level]
    assert words in found[0].text
    if level == "error":
        assert f"retarget --trt {trt}" in (found[0].hint or "")


def test_the_version_has_no_meaning_on_the_explicit_route() -> None:
    assert not findings_of(make("TRT-8602-EntropyCalibration2"), "version", route="explicit")


def test_an_unknown_version_is_not_compared() -> None:
    assert "not compared" in findings_of(make(), "version", trt_version=None)[0].text


def test_raise_for_lists_all_errors_and_the_first_hint() -> None:
    table = make("TRT-8602-EntropyCalibration2", input=0)
    with pytest.raises(ArtifactError) as caught:
        raise_for(check(table, NETWORK, route="implicit", dla=False, trt_version=V10), "t.table")
    assert caught.value.where == "t.table"
    assert "scale is 0" in caught.value.what
    assert "10.3.0 refuses it" in caught.value.what
    assert "retarget" in (caught.value.hint or "")


def test_many_tensors_are_counted_not_listed() -> None:
    text = describe(TableFinding("error", "missing", "missing", tuple(NETWORK)), most=2)
    assert text == "missing: input, /layer0/Conv_output_0 and 19 more"


def test_findings_are_sorted_worst_first() -> None:
    table = make("TRT-8602-EntropyCalibration2", strange=0x3C010204)
    levels = [item.level for item in check(table, NETWORK, route="implicit", dla=False, trt_version=V10)]
    assert levels == sorted(levels, key=("error", "warning", "ok").index)
    assert set(levels) == {"error", "warning", "ok"}


def test_compare() -> None:
    a = parse(b"TRT-8602-EntropyCalibration2\nx: 3f800000\ny: 3f800000\nz: 3f800000\nold: 3f800000\nw: 3f800000\n")
    b = parse(b"TRT-100300-EntropyCalibration2\nnew: 3f800000\nx: 40000000\ny: 3e800000\nz: 3f800000\nw: 00000000\n")
    result = compare(a, b)
    assert (result.header_a, result.header_b) == (a.header.text, b.header.text)
    assert (result.only_a, result.only_b, result.same) == (["old"], ["new"], 1)
    assert [(item.name, item.ratio) for item in result.changes] == [("w", None), ("y", 0.25), ("x", 2.0)]
    assert not result.is_same


def test_the_order_of_lines_does_not_count() -> None:
    a, b = parse(b"1\nx: 3f800000\ny: 3f800000\n"), parse(b"1\ny: 3f800000\nx: 3f800000\n")
    assert compare(a, b).is_same
    assert not compare(a, b).same_order
    assert compare(a, a).same_order


def test_a_header_alone_makes_a_difference() -> None:
    assert not compare(parse(b"1\nx: 3f800000\n"), parse(b"2\nx: 3f800000\n")).is_same


patterns = st.dictionaries(st.sampled_from([*NETWORK, "more", "names"]), st.integers(0, 2**32 - 1))


@given(patterns, patterns, st.booleans())
def test_any_bits_can_be_checked_and_compared(a: dict[str, int], b: dict[str, int], dla: bool) -> None:
    first, second = (Table(TableHeader.parse("TRT-8602-MinMaxCalibration"), bits) for bits in (a, b))
    for expected in (None, NETWORK):
        found = check(first, expected, route="implicit", dla=dla, trt_version=V10)
        assert all(describe(item) for item in found)
        unusable = {name for name, bits in a.items() if value_code(bits)}
        named = {
            name
            for item in found
            if item.code in {"zero", "infinite", "nan", "negative", "denormal"}
            for name in item.tensors
        }
        assert named == unusable
    result = compare(first, second)
    assert result.is_same == (a == b)
    assert result.same + len(result.changes) + len(result.only_a) == len(a)
