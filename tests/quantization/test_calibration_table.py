from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import ArtifactError
from edge.quantization.calibration_table import (
    Table,
    TableHeader,
    TrtVersion,
    from_ranges,
    parse,
    parse_lenient,
    range_bits,
    retarget,
    to_float,
    write,
)

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "calibration_tables"
REAL_TABLES = sorted(REAL.glob("*.cache"))
HEAD = "TRT-100300-EntropyCalibration2\n"

# Every header form, and every form of tensor name that public tables hold; numbers are ours.
FORMS = {
    "trt-5": "TRT-5102-EntropyCalibration2\ndata: 3c00a1b2\n",
    "trt-7-minmax": "TRT-7203-MinMaxCalibration\ninput: 3c010204\nout: 3f812345\n",
    "trt-7-entropy-1": "TRT-7000-EntropyCalibration\ninput: 3c010204\n",
    "trt-8": "TRT-8602-EntropyCalibration2\nimages: 3b9acbf1\n",
    "trt-8-patch-of-two-digits": "TRT-8510-EntropyCalibration2\nx: 4000890a\n",
    "trt-10-six-digits": "TRT-101401-EntropyCalibration2\nimages: 3c008912\n",
    "trt-10-minmax": "TRT-100300-MinMaxCalibration\nimages: 3c008912\n",
    "legacy": "0 3ff0000000000000 3feffbe76c8b4396\ninput: 3da42a11\n",
    "bare-entropy": "1\n(Unnamed ITensor* 52): 3d739c11\n(Unnamed ITensor* 71) copy: 3d2ca911\n",
    "bare-entropy2": "2\ndata: 40000811\n",
    "colon-in-name": HEAD + "input_tensor:0: 3f955011\nmodel/Relu_1:0: 3dac4911\nonnx::MatMul_398_output: 3c123456\n",
    "colon-and-blank-in-name": HEAD + "a: b: 3c123456\n: 3c123456: 3c123457\n",
    "slashes": HEAD + "/model.0/conv/Conv_output_0: 3e6c71aa\n",
    "blanks": HEAD + "Query Embedding Indices: 3c123456\n two  blanks : 3c123456\n",
    "unnamed-layer": HEAD + "(Unnamed Layer* 0) [Convolution]_output: 3e0b1c2d\n"
    "(Unnamed Layer* 124) [Fully Connected]_output: 3e612100\n",
    "parser-made": HEAD + "ONNXTRT_Broadcast_240_output: 3c810a14\n/model.23/Constant_14_output_0_output: 3c810a14\n",
    "number-as-name": HEAD + "168: 3dc6cf11\n-5: 3c123456\n3c123456: 3c123456\n",
    "not-ascii": HEAD + "卷积/输出: 3c123456\nμ²: 3c123456\n",
    "infinity": HEAD + "mask: 7f800000\n",
    "nan-with-payload": HEAD + "a: 7fc0dead\nb: ffffffff\n",
    "zeros-and-denormal": HEAD + "a: 00000000\nb: 80000000\nc: 00000001\n",
    "no-tensors": HEAD,
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
def test_every_form_is_written_back_byte_for_byte(text: str) -> None:
    data = text.encode()
    table = parse(data)
    assert write(table) == data
    assert len(table.bits) == text.count("\n") - 1
    assert parse_lenient(data) == (table, [])


@pytest.mark.skipif(not REAL_TABLES, reason="the real tables are not next to this repository")
@pytest.mark.parametrize("path", REAL_TABLES, ids=lambda path: path.stem)
def test_real_tables_are_written_back_byte_for_byte(path: Path) -> None:
    data = path.read_bytes()
    table = parse(data, where=path)
    assert write(table) == data
    assert len(table.bits) == data.count(b"\n") - 1
    assert parse_lenient(data) == (table, [])


def test_names_and_values_are_split_at_the_last_colon() -> None:
    table = parse((HEAD + "input_tensor:0: 3f800000\na: b: 3c010204\n").encode())
    assert table.names == ["input_tensor:0", "a: b"]
    assert table.scale("input_tensor:0") == 1.0
    assert table.range("input_tensor:0") == 127.0
    assert table.scales["a: b"] == pytest.approx(1 / 127, rel=1e-7)


@pytest.mark.parametrize(
    ("line", "algorithm", "version"),
    [
        ("TRT-5102-EntropyCalibration2", "entropy2", "5.1.2"),
        ("TRT-8510-EntropyCalibration2", "entropy2", "8.5.10"),
        ("TRT-8602-MinMaxCalibration", "minmax", "8.6.2"),
        ("TRT-100300-EntropyCalibration2", "entropy2", "10.3.0"),
        ("TRT-101401-EntropyCalibration", "entropy", "10.14.1"),
        ("1", "entropy", None),
        ("2", "entropy2", None),
    ],
)
def test_headers(line: str, algorithm: str, version: str | None) -> None:
    header = TableHeader.parse(line)
    assert header.algorithm == algorithm
    assert (str(header.version) if header.version else None) == version
    assert header.text == line


def test_legacy_header_holds_cutoff_and_quantile() -> None:
    header = TableHeader.parse("0 3ff0000000000000 3feffbe76c8b4396")
    assert (header.algorithm, header.cutoff, header.quantile) == ("legacy", 1.0, 0.9995)
    assert header.version is None


@pytest.mark.parametrize(
    ("text", "code"), [("8.6.2", 8602), ("8.5.10", 8510), ("10.3.0", 100300), ("10.14.1.48", 101401), ("7.2.3.4", 7203)]
)
def test_versions_and_header_numbers(text: str, code: int) -> None:
    version = TrtVersion.parse(text)
    assert version.code == code
    assert TrtVersion.from_code(code) == version


@pytest.mark.parametrize(
    "text", ["", "10", "10.3", "v10.3.0", "10.3.x", "8.10.0", "0.1.2", "10.3.0-1", "10.100.0", "１.2.3"]
)
def test_bad_versions(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"10\.3\.0"):
        TrtVersion.parse(text)


# Every kind of bad input: content, line that the error must name (None: the file), words that it must say.
BAD: dict[str, tuple[bytes, int | None, str]] = {
    "empty": (b"", None, "empty"),
    "blank": (b" \n\n", None, "empty"),
    "binary": (b"ptrt\x00\x00\xff\xfe", 1, "not UTF-8"),
    "zeros": (b"\x00" * 64, 1, "not the header"),
    "not-utf-8-name": (HEAD.encode() + b"a\xe9: 3c123456\n", 2, "not UTF-8: byte 0xe9"),
    "byte-order-mark": (b"\xef\xbb\xbf" + HEAD.encode(), 1, "byte order mark"),
    "utf-16": ((HEAD + "a: 3c123456\n").encode("utf-16"), 1, "not UTF-8"),
    "unknown-header": (b"hello\na: 3c123456\n", 1, "not the header"),
    "unknown-calibrator": (b"TRT-8600-FooCalibration\na: 3c123456\n", 1, "unknown calibrator 'FooCalibration'"),
    "placeholder-version": (b"TRT-8XXX-EntropyCalibration2\na: 3c123456\n", 1, "4 to 6 digits"),
    "version-too-short": (b"TRT-860-EntropyCalibration2\n", 1, "4 to 6 digits"),
    "version-too-long": (b"TRT-1003000-EntropyCalibration2\n", 1, "4 to 6 digits"),
    "unknown-number": (b"3\na: 3c123456\n", 1, "not the header"),
    "legacy-with-one-number": (b"0 3ff0000000000000\na: 3c123456\n", 1, "not the header"),
    "header-in-lower-case": (b"trt-8600-entropycalibration2\n", 1, "not the header"),
    "header-missing": (b"a: 3c123456\nb: 3c123456\n", 1, "header line seems to be missing"),
    "crlf": (HEAD.replace("\n", "\r\n").encode(), 1, "CRLF"),
    "crlf-in-lines": ((HEAD + "a: 3c123456\r\n").encode(), 2, "CRLF"),
    "truncated-in-value": ((HEAD + "a: 3c123456\nb: 3c12").encode(), 3, "truncated"),
    "truncated-in-name": ((HEAD + "a: 3c123456\n/model.0/co").encode(), 3, "truncated"),
    "truncated-before-newline": ((HEAD + "a: 3c123456").encode(), 2, "truncated"),
    "truncated-in-header": (b"TRT-100300-EntropyCali", 1, "unknown calibrator"),
    "header-without-newline": (HEAD.strip().encode(), 1, "truncated"),
    "seven-digits": ((HEAD + "a: 3c123456\nb: 3c12345\nc: 3c123456\n").encode(), 3, "b: 7 digits"),
    "hex-of-zero": ((HEAD + "a: 0\n").encode(), 2, "a: 1 digits"),
    "nine-digits": ((HEAD + "a: 3c1234567\n").encode(), 2, "9 digits"),
    "upper-case": ((HEAD + "a: 3C123456\n").encode(), 2, "upper-case"),
    "0x": ((HEAD + "a: 0x3c123456\n").encode(), 2, "more than 8 digits"),
    "blank-after-value": ((HEAD + "a: 3c123456 \n").encode(), 2, "more than 8 digits"),
    "not-hexadecimal": ((HEAD + "a: 3c12345g\n").encode(), 2, "8 hexadecimal digits"),
    "decimal": ((HEAD + "INPUT0:4.6586\n").encode(), 2, "looks decimal"),
    "no-blank": ((HEAD + "a:3c123456\n").encode(), 2, "8 hexadecimal digits"),
    "no-colon": ((HEAD + "a 3c123456\n").encode(), 2, "8 hexadecimal digits"),
    "no-value": ((HEAD + "a: \n").encode(), 2, "0 digits"),
    "no-name": ((HEAD + ": 3c123456\n").encode(), 2, "has no name"),
    "empty-line": ((HEAD + "a: 3c123456\n\nb: 3c123456\n").encode(), 3, "the line is empty"),
    "empty-last-line": ((HEAD + "a: 3c123456\n\n").encode(), 3, "the line is empty"),
    "comment": ((HEAD + "# made by hand\n").encode(), 2, "8 hexadecimal digits"),
    "duplicate": ((HEAD + "a: 3c123456\nb: 3c123456\na: 3c123456\n").encode(), 4, "first defined on line 2"),
    "second-header": ((HEAD + "a: 3c123456\n" + HEAD).encode(), 3, "8 hexadecimal digits"),
    "control-character": ((HEAD + "a\x00b: 3c123456\n").encode(), 2, "control character"),
    "carriage-return-in-name": ((HEAD + "a\rb: 3c123456\n").encode(), 2, "control character"),
    "json": (b'{"a": {"lowest": 1}}', None, "JSON"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", None, "Git LFS"),
    "onnxruntime-cache": (b"input 2.64\n/conv/Conv_output_0 17.3\nzero 0.0\n", None, "onnxruntime's calibration.cache"),
}


@pytest.mark.parametrize(("data", "line", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_with_its_line(data: bytes, line: int | None, words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        parse(data, where="some.table")
    assert words in caught.value.what
    assert caught.value.where == ("some.table" if line is None else f"some.table:{line}")


@pytest.mark.parametrize(("data", "line", "words"), BAD.values(), ids=BAD.keys())
def test_the_lenient_reader_is_named_only_where_it_mends(data: bytes, line: int | None, words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        parse(data)
    try:
        parse_lenient(data)
    except ArtifactError:
        # At a cut-off end only the lenient reader can tell that there is nothing to mend.
        assert "--lenient" not in (caught.value.hint or "") or "truncated" in words, (line, words)
    else:
        assert "--lenient" in (caught.value.hint or ""), (line, words)


MENDED = {
    "byte-order-mark": (b"\xef\xbb\xbf" + HEAD.encode() + b"a: 3c123456\n", ["byte order mark removed"]),
    "crlf": ((HEAD + "a: 3c123456\n").replace("\n", "\r\n").encode(), ["CRLF line ends changed to LF"]),
    "no-final-newline": ((HEAD + "a: 3c123456").encode(), ["final newline added"]),
    "empty-lines-at-the-end": ((HEAD + "a: 3c123456\n\n \n").encode(), ["empty lines at the end", "blanks"]),
    "blank-at-the-end": ((HEAD + "a: 3c123456 \n").encode(), ["blanks at line ends removed"]),
    "blank-behind-header": ((HEAD.strip() + " \na: 3c123456\n").encode(), ["blanks at line ends removed"]),
    "upper-case": ((HEAD + "a: 3C123456\n").encode(), []),
    "0x": ((HEAD + "a: 0x3c123456\nb: 3c123456\n").encode(), ["line 2: 'a: 0x3c123456' read as 'a: 3c123456'"]),
}


@pytest.mark.parametrize(("data", "notes"), MENDED.values(), ids=MENDED.keys())
def test_lenient_mends_and_says_so(data: bytes, notes: list[str]) -> None:
    with pytest.raises(ArtifactError):
        parse(data)
    table, said = parse_lenient(data)
    assert table.bits["a"] == 0x3C123456
    assert said
    for note in notes:
        assert any(note in line for line in said)
    assert parse(write(table)) == table


def test_lenient_pads_the_zeros_that_hex_drops() -> None:
    table, notes = parse_lenient((HEAD + "a: 0\nb: 3c12345\nc: 3c123456\n").encode())
    assert table.bits == {"a": 0, "b": 0x03C12345, "c": 0x3C123456}
    assert [note.split(":")[0] for note in notes] == ["line 2", "line 3"]


@pytest.mark.parametrize("tail", ["b: 3c12345", "b: ", "b", "/model.0/conv1a2b3c4d"])
def test_lenient_does_not_invent_what_was_cut_off(tail: str) -> None:
    with pytest.raises(ArtifactError, match="truncated"):
        parse_lenient((HEAD + "a: 3c123456\n" + tail).encode(), where="t")


@pytest.mark.parametrize(
    "name",
    [
        "unknown-header",
        "header-missing",
        "nine-digits",
        "not-hexadecimal",
        "no-colon",
        "duplicate",
        "control-character",
    ],
)
def test_lenient_still_refuses(name: str) -> None:
    with pytest.raises(ArtifactError):
        parse_lenient(BAD[name][0])


def test_scales_are_ranges_over_127_rounded_to_float32() -> None:
    version = TrtVersion(10, 3, 0)
    table = from_ranges({"one": 1.0, "relu6": 6.0, "zero": 0.0, "x:0": 2.5}, algorithm="entropy2", trt_version=version)
    assert write(table).decode().splitlines() == [
        "TRT-100300-EntropyCalibration2",
        "one: 3c010204",
        "relu6: 3d418306",
        "zero: 00000000",
        f"x:0: {struct.pack('>f', 2.5 / 127).hex()}",
    ]
    assert table.range("relu6") == pytest.approx(6.0, rel=1e-7)


@pytest.mark.parametrize(
    ("name", "value"),
    [("a", -1.0), ("a", float("nan")), ("a", float("inf")), ("a", 1e300), ("", 1.0), ("a\nb", 1.0), ("\ud800", 1.0)],
    ids=["negative", "nan", "infinite", "too-large", "no-name", "newline", "surrogate"],
)
def test_ranges_that_cannot_be_written(name: str, value: float) -> None:
    with pytest.raises(ArtifactError):
        from_ranges({name: value}, algorithm="minmax", trt_version=TrtVersion(10, 3, 0))


def test_no_table_is_made_for_the_legacy_calibrator() -> None:
    with pytest.raises(ArtifactError, match="legacy"):
        from_ranges({"a": 1.0}, algorithm="legacy", trt_version=TrtVersion(8, 6, 2))


@pytest.mark.parametrize("bits", [-1, 1 << 32])
def test_a_scale_has_32_bits(bits: int) -> None:
    with pytest.raises(ArtifactError, match="32 bits"):
        Table(TableHeader.parse("1"), {"a": bits})


@pytest.mark.parametrize(
    ("old", "version", "algorithm", "new"),
    [
        ("TRT-8001-EntropyCalibration2", "10.3.0", None, "TRT-100300-EntropyCalibration2"),
        ("TRT-100300-MinMaxCalibration", "8.6.2", None, "TRT-8602-MinMaxCalibration"),
        ("TRT-8602-MinMaxCalibration", "8.6.2", "entropy2", "TRT-8602-EntropyCalibration2"),
        ("0 3ff0000000000000 3fefffeb074a771d", "10.3.0", "entropy2", "TRT-100300-EntropyCalibration2"),
        ("1", "7.2.3", None, "TRT-7203-EntropyCalibration"),
    ],
)
def test_retarget_changes_the_header_and_nothing_else(old: str, version: str, algorithm: str | None, new: str) -> None:
    table = parse(f"{old}\na: 3c123456\nb: 7fc0dead\n".encode())
    changed = retarget(table, TrtVersion.parse(version), algorithm=algorithm)  # type: ignore[arg-type]
    assert write(changed) == f"{new}\na: 3c123456\nb: 7fc0dead\n".encode()


@pytest.mark.parametrize(
    ("old", "version", "words"),
    [
        ("TRT-100300-EntropyCalibration2", "11.4.1", "no calibrators"),
        ("0 3ff0000000000000 3fefffeb074a771d", "10.3.0", "no version"),
    ],
    ids=["tensorrt-11", "legacy"],
)
def test_retarget_refuses(old: str, version: str, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        retarget(parse(f"{old}\n".encode()), TrtVersion.parse(version))


versions = st.one_of(
    st.builds(TrtVersion, st.integers(1, 9), st.integers(0, 9), st.integers(0, 99)),
    st.builds(TrtVersion, st.integers(10, 99), st.integers(0, 99), st.integers(0, 99)),
)
headers = st.one_of(
    st.builds(TableHeader.make, st.sampled_from(["entropy2", "minmax", "entropy"]), versions),
    st.builds("0 {:016x} {:016x}".format, *[st.integers(0, 2**64 - 1)] * 2).map(TableHeader.parse),
    st.sampled_from(["1", "2"]).map(TableHeader.parse),
)
names = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    st.text(": /[]()*0a", min_size=1),
    st.text("\x80\x85\u2028\ufeff", min_size=1),
)
tables = st.builds(Table, headers, st.dictionaries(names, st.integers(0, 2**32 - 1), max_size=20))


@given(tables)
def test_parse_gives_back_what_write_wrote(table: Table) -> None:
    data = write(table)
    again = parse(data)
    # NaN is not itself, in a legacy header: compare the text, which everything else follows from.
    assert again.header.text == table.header.text
    assert (again.header.algorithm, again.header.version) == (table.header.algorithm, table.header.version)
    assert list(again.bits.items()) == list(table.bits.items())
    assert write(again) == data


lines = st.one_of(
    st.sampled_from([text.encode() for text in FORMS.values()]),
    st.sampled_from([b"TRT-8600-EntropyCalibration2", b"1", b"a: 3c123456", b": ", b"\n", b"\r\n", b"a", b" ", b"0 "]),
    st.binary(max_size=12),
)


@settings(max_examples=100)
@given(st.lists(lines, max_size=8).map(b"".join))
def test_any_bytes_give_a_table_that_writes_them_back_or_an_error(data: bytes) -> None:
    try:
        table = parse(data)
    except ArtifactError:
        pass
    else:
        assert write(table) == data
    try:
        mended, notes = parse_lenient(data)
    except ArtifactError:
        return
    assert (write(mended) == data) == (not notes)


@settings(max_examples=100)
@given(st.sampled_from(list(FORMS.values())), st.data())
def test_a_damaged_table_is_an_error_or_another_table(text: str, draw: st.DataObject) -> None:
    data = bytearray(text.encode())
    place = draw.draw(st.integers(0, len(data) - 1))
    data[place : place + draw.draw(st.integers(0, 3))] = draw.draw(st.binary(max_size=3))
    try:
        table = parse(bytes(data))
    except ArtifactError:
        return
    assert write(table) == bytes(data)


@given(st.floats(min_value=0, max_value=3e38, allow_nan=False))
def test_ranges_survive_within_float32(value: float) -> None:
    scale = to_float(range_bits(value, name="a"))
    assert scale * 127 == pytest.approx(value, rel=2**-23, abs=2e-43)


def test_a_range_survives_to_the_bit() -> None:
    for bits in (0x00000001, 0x007FFFFF, 0x00800000, 0x3C010A14, 0x7E7FFFFF):
        assert range_bits(to_float(bits) * 127, name="a") == bits


def test_a_range_of_minus_zero_is_zero() -> None:
    assert from_ranges({"x": -0.0}, algorithm="entropy2", trt_version=TrtVersion(10, 3, 0)).bits == {"x": 0}
