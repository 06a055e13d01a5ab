"""Profiles: every mistake a person makes in a YAML file, with the file, line and key that edge points at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.config import profiles
from edge.config.profiles import Profile
from edge.errors import ProfileError

BASE = "family: host\nbackend: onnxruntime\nmodel: m.onnx\nlabels: l.txt\n"
PROFILES = Path(__file__).resolve().parents[2] / "profiles"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write("p", text)``: a profile file; without a text the smallest that is right."""

    def make(name: str = "p", text: str | bytes = BASE) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return make


def refused(path: Path) -> ProfileError:
    with pytest.raises(ProfileError) as caught:
        profiles.read_profile(path)
    return caught.value


def said(path: Path) -> str:
    """The message without the folder, which differs in every test."""
    return str(refused(path)).replace(f"{path.parent}/", "")


# what is right


def test_the_smallest_profile_has_every_default(write: Write, tmp_path: Path) -> None:
    loaded = profiles.read_profile(write())
    assert (loaded.name, loaded.family, loaded.backend, loaded.precision) == ("p", "host", "onnxruntime", "int8")
    assert loaded.model == str(tmp_path / "m.onnx")
    assert loaded.labels == str(tmp_path / "l.txt")
    assert (loaded.input, loaded.build) == (profiles.InputConfig(), profiles.BuildConfig())
    assert (loaded.preprocess, loaded.calibration, loaded.run) == (
        profiles.PreprocessConfig(), profiles.CalibrationConfig(), profiles.RunConfig(),
    )  # fmt: skip


@pytest.mark.parametrize("name", [path.stem for path in sorted(PROFILES.glob("*.yaml"))])
def test_every_profile_that_comes_with_edge_loads(name: str) -> None:
    loaded = profiles.read_profile(PROFILES / f"{name}.yaml")
    assert loaded.name == name
    assert Path(loaded.model).is_file()
    assert Path(loaded.labels).is_file()
    assert loaded.preprocess == profiles.read_profile(PROFILES / "host.yaml").preprocess


def test_the_profiles_that_come_with_edge_cover_every_family() -> None:
    families = [profiles.read_profile(path).family for path in sorted(PROFILES.glob("*.yaml"))]
    assert sorted(families) == ["agx-orin", "host", "orin-nano", "orin-nx", "rtx", "thor"]


def test_a_profile_is_frozen(write: Write) -> None:
    with pytest.raises(AttributeError):
        profiles.read_profile(write()).name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [BASE.replace("\n", "\r\n"), "\ufeff" + BASE, BASE.rstrip(), "---\n" + BASE + "...\n", "# a comment\n\n" + BASE],
    ids=["crlf", "bom", "no-final-newline", "document-marks", "comment"],
)
def test_forms_of_one_file(write: Write, text: str) -> None:
    assert profiles.read_profile(write("p", text)) == profiles.read_profile(write("p", BASE))


@pytest.mark.parametrize("text", ["off", "'off'", "unpadded", "all"])
def test_a_shift_is_a_word_with_quotes_or_without(write: Write, text: str) -> None:
    """YAML reads an unquoted off as false."""
    path = write("p", BASE + f"quantization: {{shift: {text}}}\n")
    assert profiles.read_profile(path).shift == text.strip("'")


def test_numbers_may_be_integers_where_floats_are_meant(write: Write) -> None:
    loaded = profiles.read_profile(write("p", BASE + "preprocess: {mean: [1, 2, 3.5], std: [1, 1, 1]}\n"))
    assert loaded.preprocess.mean == (1.0, 2.0, 3.5)


# what is wrong, in one file


@pytest.mark.parametrize(
    ("more", "text"),
    [
        # roi
        ("preprocess: {roi: [0, 0, 0, 1]}\n",
         ("p.yaml:5: preprocess.roi: "
         "needs x and y of at least 0, and a width and height above 0, got [0, 0, 0, 1]")),
        ("preprocess: {roi: [0.5, 0, 0.6, 1]}\n",
         ("p.yaml:5: preprocess.roi: "
         "[0.5, 0, 0.6, 1] reaches beyond the image: a fraction is at most 1")),
        ("camera: {roi: [0.5, 0, 300, 200]}\n",
         ("p.yaml:5: camera.roi: "
         "[0.5, 0, 300, 200] is neither in pixels (whole numbers) nor in fractions (all from 0 to 1)\n"
         "  try: [0.25, 0, 0.5, 1] is the middle half")),
        ("camera: {roi: [.nan, 0, 1, 1]}\n",
         ("p.yaml:5: camera.roi: "
         "needs x and y of at least 0, and a width and height above 0, got [nan, 0, 1, 1]")),
        ("cameras: {a: {source: 0, roi: [-1, 0, 9, 9]}}\n",
         ("p.yaml:5: cameras.a.roi: "
         "needs x and y of at least 0, and a width and height above 0, got [-1, 0, 9, 9]")),
        ("preprocess: {roi: [0, 0, 1, 1]}\ncamera: {roi: [0, 0, 9, 9]}\n",
         ("p.yaml:5: preprocess.roi: "
         "a camera also has a roi, and the two cannot be combined\n"
         "  try: use camera.roi for camera frames only, or preprocess.roi for every image, also in calibration")),
        # keys
        ("modle: x\n", "p.yaml:5: modle: unknown key (did you mean 'model'?)"),
        ("zzzz: 1\n", "p.yaml:5: zzzz: unknown key"),
        ("input:\n  hight: 3\n", "p.yaml:6: input.hight: unknown key (did you mean 'height'?)"),
        ("input:\n  batch:\n    mx: 3\n", "p.yaml:7: input.batch.mx: unknown key (did you mean 'max'?)"),
        ("input: {batch: {\n  mim: 1}}\n", "p.yaml:6: input.batch.mim: unknown key (did you mean 'min'?)"),
        ("Family: host\n", "p.yaml:5: Family: unknown key (did you mean 'family'?)"),
        ("1: 2\n", "p.yaml:5: 1: unknown key"),
        ("? [a, b]\n: 1\n", "p.yaml:5: a key must be a string"),
        ("x: &x {height: 3}\n", "p.yaml:5: x: unknown key"),
        # given twice
        ("family: host\n", "p.yaml:5: family: duplicate key"),
        ("input: {height: 1,\n  height: 1}\n", "p.yaml:6: input.height: duplicate key"),
        ("run: {topk: 1}\nbuild: {}\nrun: {warmup: 1}\n", "p.yaml:7: run: duplicate key"),
        ("'family': host\n", "p.yaml:5: family: duplicate key"),
        # words
        ("precision: int4\n", "p.yaml:5: precision: 'int4' is not one of fp32, fp16, int8 (did you mean 'int8'?)"),
        ("precision: INT8\n", "p.yaml:5: precision: 'INT8' is not one of fp32, fp16, int8"),
        ("int8_route: qdq\n", "p.yaml:5: int8_route: 'qdq' is not one of auto, implicit, explicit"),
        (
            "preprocess:\n\n  fit: cropp\n",
            "p.yaml:7: preprocess.fit: 'cropp' is not one of crop, letterbox, squash (did you mean 'crop'?)",
        ),
        (
            "preprocess: {interpolation: linear}\n",
            ("p.yaml:5: preprocess.interpolation: 'linear' is not one of nearest, bilinear, bicubic "
            "(did you mean 'bilinear'?)"),
        ),
        # types
        ("input: {height: big}\n", "p.yaml:5: input.height: expected `int`, got `str`"),
        ("input: {height: '224'}\n", "p.yaml:5: input.height: expected `int`, got `str`"),
        ("input: {height: 224.5}\n", "p.yaml:5: input.height: expected `int`, got `float`"),
        ("input: {height: true}\n", "p.yaml:5: input.height: expected `int`, got `bool`"),
        ("input: {height: null}\n", "p.yaml:5: input.height: expected `int`, got `null`"),
        ("input:\n", "p.yaml:5: input: expected `object`, got `null`"),
        ("input: 224\n", "p.yaml:5: input: expected `object`, got `int`"),
        ("input: [224, 224]\n", "p.yaml:5: input: expected `object`, got `array`"),
        ("build: {strict: 1}\n", "p.yaml:5: build.strict: expected `bool`, got `int`"),
        ("build: {strict: 'yes'}\n", "p.yaml:5: build.strict: expected `bool`, got `str`"),
        ("name: 2026-01-02\n", "p.yaml:5: name: expected `str`, got `date`"),
        ("power_mode: 15\n", "p.yaml:5: power_mode: expected `str | null`, got `int`"),
        ("preprocess: {mean: x}\n", "p.yaml:5: preprocess.mean: expected `array`, got `str`"),
        ("preprocess: {mean: [1, 2]}\n", "p.yaml:5: preprocess.mean: expected `array` of length 3, got 2"),
        ("preprocess:\n  mean:\n    - 1\n    - x\n", "p.yaml:6: preprocess.mean: expected `array` of length 3, got 2"),
        ("preprocess:\n  mean: [1, x, 3]\n", "p.yaml:6: preprocess.mean: expected `float`, got `str`"),
        ("calibration: {parameters: {flat: x}}\n", "p.yaml:5: calibration.parameters: expected `float`, got `str`"),
        ("calibration: {images: [a]}\n", "p.yaml:5: calibration.images: expected `str | null`, got `array`"),
        # values
        ("input: {height: 0}\n", "p.yaml:5: input.height: expected `int` >= 1"),
        ("input: {height: -3}\n", "p.yaml:5: input.height: expected `int` >= 1"),
        ("preprocess: {pad: 256}\n", "p.yaml:5: preprocess.pad: expected `int` <= 255"),
        ("build: {min_int8_share: 1.1}\n", "p.yaml:5: build.min_int8_share: expected `float` <= 1.0"),
        ("build: {dla_core: 2}\n", "p.yaml:5: build.dla_core: expected `int` <= 1"),
        ("build: {optimization_level: 6}\n", "p.yaml:5: build.optimization_level: expected `int` <= 5"),
        ("run: {warmup: -1}\n", "p.yaml:5: run.warmup: expected `int` >= 0"),
        ("preprocess: {mean: [1, .nan, 3]}\n", ("p.yaml:5: preprocess.mean: must be finite for every channel, "
         "got [1.0, nan, 3.0]")),
        ("preprocess:\n  std: [1, 2, .inf]\n", ("p.yaml:6: preprocess.std: must be finite for every channel, "
         "got [1.0, 2.0, inf]")),
        ("preprocess: {std: [1, 0, 3]}\n", ("p.yaml:5: preprocess.std: must be above 0 for every channel, "
         "got [1.0, 0.0, 3.0]")),
        ("preprocess: {std: [1, 2, -3]}\n", ("p.yaml:5: preprocess.std: must be above 0 for every channel, "
         "got [1.0, 2.0, -3.0]")),
        ("calibration:\n  parameters:\n    flat: .nan\n", ("p.yaml:7: calibration.parameters.flat: must be finite, "
         "got nan")),
        ("name: ../elsewhere\n", "p.yaml:5: name: '../elsewhere' cannot be used as a folder name"),
        ("name: ''\n", "p.yaml:5: name: '' cannot be used as a folder name"),
        ("name: ..\n", "p.yaml:5: name: '..' cannot be used as a folder name"),
        # together
        ("input:\n  batch: {min: 4, opt: 2, max: 8}\n", "p.yaml:6: input.batch: needs min <= opt <= max, got 4, 2, 8"),
        ("input:\n  batch: {max: 8, opt: 9}\n", "p.yaml:6: input.batch: needs min <= opt <= max, got 1, 9, 8"),
        ("preprocess: {resize: 223}\n", ("p.yaml:5: preprocess.resize: 223 is smaller than the 224x224 crop taken "
         "from it")),
        ("input: {width: 300}\n", "p.yaml:1: preprocess.resize: 256 is smaller than the 224x300 crop taken from it"),
        ("precision: fp16\n", "p.yaml:5: precision: ONNX Runtime on a CPU runs fp32 or int8, not fp16"),
        ("build: {dla_core: 0}\n", "p.yaml:5: build.dla_core: host has no DLA"),
        # YAML
        (
            "a:\n\tb: 1\n",
            (
                "p.yaml:6: not YAML: found character '\\t' that cannot start any token\n"
                "  try: indent with spaces: YAML does not allow tabs"
            ),
        ),
        ("a: 'x\n", "p.yaml:6: not YAML: found unexpected end of stream"),
        ("a: {b: 1\n", "p.yaml:6: not YAML: expected ',' or '}', but got '<stream end>'"),
        ("a: *b\n", "p.yaml:5: not YAML: found undefined alias 'b'"),
        ("---\na: 1\n", "p.yaml:5: not YAML: but found another document"),
        ("input: !!python/object/apply:os.system [x]\n", ("p.yaml:5: input: could not determine a constructor for the "
         "tag 'tag:yaml.org,2002:python/object/apply:os.system'")),
        ("calibration:\n  parameters: [{[a]: 1}]\n", "p.yaml:6: calibration.parameters: found unhashable key"),
        ("run: {warmup: !!int many}\n", "p.yaml:5: run.warmup: invalid literal for int() with base 10: 'many'"),
        ("name: 2026-13-01\n", "p.yaml:5: name: month must be in 1..12"),
        ("input: &i {batch: *i}\n", "p.yaml: an alias refers to the value that contains it"),
        ("a: " + "[" * 1000, "p.yaml: cannot parse YAML: nested too deeply"),
    ],
)  # fmt: skip
def test_a_mistake_is_pointed_at(write: Write, more: str, text: str) -> None:
    assert said(write("p", BASE + more)) == text


@pytest.mark.parametrize("key", ["family", "backend", "model", "labels"])
def test_a_key_that_is_missing(write: Write, key: str) -> None:
    lines = [line for line in BASE.splitlines() if not line.startswith(key)]
    assert said(write("p", "\n".join(lines))) == f"p.yaml:1: {key}: is missing"


def test_a_word_of_a_family_is_suggested(write: Write) -> None:
    assert said(write("p", BASE.replace("host", "agx_orin"))) == (
        "p.yaml:1: family: 'agx_orin' is not one of host, agx-orin, orin-nx, orin-nano, thor, rtx "
        "(did you mean 'agx-orin'?)"
    )


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "p.yaml: the file is empty"),
        (b"# nothing\n", "p.yaml: the file is empty"),
        (b"just text\n", "p.yaml:1: must be a mapping of keys to values"),
        (b"- a\n- b\n", "p.yaml:1: must be a mapping of keys to values"),
        (b"\n\nfamily: host\n", "p.yaml:3: backend: is missing"),
        (b"null\n", "p.yaml:1: must be a mapping of keys to values"),
    ],
    ids=["empty", "comment", "text", "list", "little", "null"],
)
def test_a_file_that_is_no_profile(write: Write, data: bytes, text: str) -> None:
    assert said(write("p", data)) == text


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfef\0a\0", "naïve: ü\n".encode("latin-1"), b"a: \x01\n", b"a: \xed\xa0\x80\n", b"\0\0\0\0"],
    ids=["utf-16", "latin-1", "control", "surrogate", "zeros"],
)
def test_bytes_that_are_no_text(write: Write, data: bytes) -> None:
    path = write("p", data)
    exc = refused(path)
    assert exc.where in {str(path), f"{path}:1"}
    assert exc.what.startswith(("cannot read: 'utf-8' codec", "not YAML: "))


def test_no_such_file(tmp_path: Path) -> None:
    exc = refused(tmp_path / "p.yaml")
    assert (exc.what, exc.where, exc.hint) == (
        "there is no such profile", str(tmp_path / "p.yaml"), "edge profile list",
    )  # fmt: skip


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").mkdir()
    assert "cannot read" in refused(tmp_path / "p.yaml").what


# extends


def test_a_profile_changes_what_it_says_and_keeps_the_rest(write: Write) -> None:
    write("host", BASE + "input: {height: 32, width: 48, batch: {max: 8}}\nrun: {warmup: 3}\npower_mode: MAXN\n")
    loaded = profiles.read_profile(
        write("p", "extends: host\ninput:\n  batch: {opt: 2}\npower_mode: null\nprecision: fp32\n")
    )
    assert loaded.name == "p"
    assert loaded.input == profiles.InputConfig(height=32, width=48, batch=profiles.BatchRange(min=1, opt=2, max=8))
    assert (loaded.run.warmup, loaded.power_mode, loaded.precision) == (3, None, "fp32")


def test_a_list_is_replaced_and_not_merged(write: Write) -> None:
    write("host", BASE + "preprocess: {mean: [1, 2, 3], std: [4, 5, 6]}\n")
    loaded = profiles.read_profile(write("p", "extends: host\npreprocess: {mean: [7, 8, 9]}\n"))
    assert (loaded.preprocess.mean, loaded.preprocess.std) == ((7, 8, 9), (4, 5, 6))


def test_the_name_is_not_inherited_from_the_file_that_is_extended(write: Write) -> None:
    write("host")
    assert profiles.read_profile(write("p", "extends: host\n")).name == "p"
    assert profiles.read_profile(write("q", "extends: host\nname: other\n")).name == "other"


def test_a_chain(write: Write) -> None:
    write("a", BASE + "run: {warmup: 1, topk: 1, threads: 1}\n")
    write("b", "extends: a\nrun: {warmup: 2, topk: 2}\n")
    loaded = profiles.read_profile(write("c", "extends: b\nrun: {warmup: 3}\n"))
    assert loaded.run == profiles.RunConfig(warmup=3, topk=2, threads=1)


@pytest.mark.parametrize("name", ["host", "host.yaml", "../profiles/host", "sub/../host.yaml"])
def test_ways_to_name_the_other_file(write: Write, tmp_path: Path, name: str) -> None:
    (tmp_path / "profiles" / "sub").mkdir(parents=True)
    write("profiles/host")
    assert profiles.read_profile(write("profiles/p", f"extends: {name}\n")).family == "host"


def test_paths_are_relative_to_the_file_that_names_them(write: Write, tmp_path: Path, monkeypatch) -> None:
    write("one/base", BASE.replace("m.onnx", "../models/m.onnx") + "calibration: {images: pictures}\n")
    path = write("two/p", "extends: ../one/base\nlabels: own.txt\n")
    monkeypatch.chdir("/")
    loaded = profiles.read_profile(path)
    assert loaded.model == str(tmp_path / "models" / "m.onnx")
    assert loaded.calibration.images == str(tmp_path / "one" / "pictures")
    assert loaded.labels == str(tmp_path / "two" / "own.txt")


def test_relative_profile_paths_give_absolute_paths_too(write: Write, tmp_path: Path) -> None:
    write("sub/p")
    assert profiles.read_profile(Path("sub/p.yaml")).model == str(tmp_path / "sub" / "m.onnx")


def test_the_home_folder_is_known(write: Write, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert profiles.read_profile(write("p", BASE.replace("m.onnx", "~/m.onnx"))).model == str(
        tmp_path / "home" / "m.onnx"
    )


@pytest.mark.parametrize("path", ["~nobody-of-this-name/m.onnx", '"a\\0b"'], ids=["home", "nul"])
def test_a_path_that_cannot_be(write: Write, path: str) -> None:
    exc = refused(write("p", BASE.replace("m.onnx", path)))
    assert exc.what.startswith("model: ")
    assert str(exc.where).endswith("p.yaml:3")


def test_a_mistake_in_the_extended_file_is_pointed_at_there(write: Write) -> None:
    write("host", BASE + "input:\n  height: big\n")
    assert said(write("p", "extends: host\nrun: {topk: 3}\n")) == (
        "host.yaml:6: input.height: expected `int`, got `str`"
    )


def test_a_mistake_is_pointed_at_in_the_file_that_has_the_last_word(write: Write) -> None:
    write("host", BASE + "preprocess: {resize: 256}\n")
    assert said(write("p", "extends: host\n\npreprocess: {resize: 100}\n")).startswith("p.yaml:3: preprocess.resize: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: hots\n", "p.yaml:1: extends: there is no hots.yaml (did you mean 'host'?)"),
        ("run: {}\nextends: ../host\n", "p.yaml:2: extends: there is no host.yaml (did you mean 'host'?)"),
        ("extends: 3\n", "p.yaml:1: extends: must be the name of another profile"),
        ("extends: [host]\n", "p.yaml:1: extends: must be the name of another profile"),
        ("extends: p\n", "p.yaml:1: extends: extends itself in a cycle: p.yaml -> p.yaml"),
        ("extends: q\n", "q.yaml:2: extends: extends itself in a cycle: p.yaml -> q.yaml -> p.yaml"),
        ("extends: r\n", "q.yaml:2: extends: extends itself in a cycle: p.yaml -> r.yaml -> q.yaml -> p.yaml"),
        ("extends: deep9\n", "deep2.yaml:1: extends: more than 8 profiles deep"),
        ("extends: wrong\n", "wrong.yaml:1: must be a mapping of keys to values"),
    ],
    ids=["misspelt", "elsewhere", "number", "list", "itself", "circle", "longer-circle", "deep", "no-profile"],
)
def test_a_wrong_extends(write: Write, text: str, message: str) -> None:
    write("host")
    write("q", "run: {}\nextends: p\n")
    write("r", "extends: q\n")
    write("wrong", "- a\n")
    for depth in range(10):
        write(f"deep{depth}", f"extends: deep{depth - 1}\n" if depth else BASE)
    assert said(write("p", text)) == message


def test_a_chain_may_be_eight_deep(write: Write) -> None:
    write("deep0")
    for depth in range(1, 8):
        write(f"deep{depth}", f"extends: deep{depth - 1}\n")
    assert profiles.read_profile(write("p", "extends: deep7\n")).family == "host"


def test_one_base_may_be_reached_through_a_link(write: Write, tmp_path: Path) -> None:
    """A circle is one of files, not of names."""
    write("a", "extends: b\n" + BASE)
    (tmp_path / "b.yaml").symlink_to("a.yaml")
    assert "extends itself in a cycle" in refused(tmp_path / "a.yaml").what


# finding


def test_find_and_available(write: Write, tmp_path: Path) -> None:
    for name in ("one/a", "one/b", "two/b", "two/c"):
        write(name)
    folders = [tmp_path / "one", tmp_path / "two"]
    assert [path.stem for path in profiles.available_profiles(folders)] == ["a", "b", "c"]
    assert profiles.find_profile("b", folders) == tmp_path / "one" / "b.yaml"
    assert profiles.find_profile("c", folders) == tmp_path / "two" / "c.yaml"
    assert profiles.find_profile("sub/x.yaml", folders) == Path("sub/x.yaml")
    assert profiles.find_profile("x.yml", folders) == Path("x.yml")
    assert profiles.available_profiles([tmp_path / "none"]) == []


def test_find_suggests_the_nearest(write: Write, tmp_path: Path) -> None:
    write("orin-nano")
    with pytest.raises(ProfileError) as caught:
        profiles.find_profile("orinnano", [tmp_path])
    assert caught.value.what == "there is no profile 'orinnano' (did you mean 'orin-nano'?)"
    assert (caught.value.where, caught.value.hint) == (str(tmp_path), "edge profile list")


# the digest


@pytest.mark.parametrize(
    "more",
    [
        "name: other\n",
        "power_mode: MAXN\n",
        "run: {warmup: 99, topk: 1, threads: 3}\n",
        "calibration: {algorithm: minmax, images: elsewhere, batch: 3}\n",
    ],
    ids=lambda more: more.split(":")[0],
)
def test_the_digest_leaves_out_what_no_engine_depends_on(write: Write, more: str) -> None:
    assert profiles.read_profile(write("p", BASE + more)).digest == profiles.read_profile(write("q")).digest


def test_the_digest_does_not_depend_on_where_things_are(write: Write) -> None:
    assert (
        profiles.read_profile(write("elsewhere/p", BASE.replace("m.onnx", "x/m.onnx"))).digest
        == profiles.read_profile(write()).digest
    )


@pytest.mark.parametrize(
    "more",
    [
        "input: {height: 200}\n",
        "input: {width: 200}\n",
        "input: {batch: {max: 2}}\n",
        "preprocess: {resize: 257}\n",
        "preprocess: {fit: squash}\n",
        "preprocess: {color: bgr}\n",
        "preprocess: {mean: [1, 2, 3]}\n",
        "preprocess: {std: [1, 2, 3]}\n",
        "preprocess: {pad: 0}\n",
        "preprocess: {interpolation: bicubic}\n",
        "precision: fp32\n",
        "int8_route: explicit\n",
        "build: {workspace_mib: 64}\n",
        "build: {strict: false}\n",
        "build: {gpu_fallback: false}\n",
        "build: {optimization_level: 2}\n",
    ],
)
def test_the_digest_covers_what_an_engine_depends_on(write: Write, more: str) -> None:
    assert profiles.read_profile(write("p", BASE + more)).digest != profiles.read_profile(write("q")).digest


def test_the_digest_covers_the_dla_core(write: Write) -> None:
    orin = BASE.replace("host", "agx-orin").replace("onnxruntime", "tensorrt")
    digests = [
        profiles.read_profile(write("p", orin + f"build: {{dla_core: {core}}}\n")).digest for core in ("null", 0, 1)
    ]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("key", ["family", "backend"])
def test_the_digest_covers_the_device(write: Write, key: str) -> None:
    loaded = profiles.read_profile(write())
    other = msgspec.structs.replace(loaded, **{key: {"family": "thor", "backend": "tensorrt"}[key]})
    assert isinstance(other, Profile)
    assert other.digest != loaded.digest


def test_a_default_written_out_is_the_same_profile(write: Write) -> None:
    spelt = profiles.read_profile(write("p", BASE + "input: {height: 224, batch: {min: 1}}\nprecision: int8\n"))
    assert spelt.digest == profiles.read_profile(write("q")).digest
    assert spelt == msgspec.structs.replace(profiles.read_profile(write("q")), name="p")


@pytest.mark.parametrize(
    ("camera", "words"),
    [
        ({"fps": 0}, "camera.fps: expected `float` > 0.0"),
        ({"fps": ".inf"}, "camera.fps: "),
        ({"timeout_s": float("inf")}, "camera.timeout_s: must be finite"),
        ({"format": "h264"}, "camera.format: 'h264' is not one of mjpg, yuyv, any"),
        ({"reconnect": {"first_s": 9.0, "max_s": 1.0}}, "camera.reconnect: needs first_s <= max_s, got 9.0, 1.0"),
        ({"pipeline": "v4l2src ! fakesink"}, "camera.pipeline: must end in appsink"),
        ({"timeout": 3}, "camera.timeout: unknown key (did you mean 'timeout_s'?)"),
    ],
)
def test_what_a_camera_cannot_be(camera: dict[str, Any], words: str, tmp_path: Path, tiny_profile: Any) -> None:
    with pytest.raises(ProfileError) as caught:
        profiles.read_profile(tiny_profile(tmp_path, camera=camera))
    assert words in str(caught.value)


def test_a_camera_is_no_part_of_the_digest(tmp_path: Path, tiny_profile: Any) -> None:
    plain, with_camera = (
        profiles.read_profile(tiny_profile(tmp_path / name, camera=camera))
        for name, camera in (("a", {}), ("b", {"fps": 60}))
    )
    assert with_camera.camera.fps == 60.0
    assert plain.digest == with_camera.digest


# units of mean and std


UNITS = "mean: [0.485, 0.456, 0.406]\n  std: [0.229, 0.224, 0.225]\n"


def test_mean_and_std_of_torchvision_are_refused_with_the_converted_values(write: Write) -> None:
    assert said(write("p", f"{BASE}preprocess:\n  {UNITS}")) == (
        "p.yaml:6: preprocess.mean: mean [0.485, 0.456, 0.406] and std [0.229, 0.224, 0.225] are in units of 0 to 1 "
        "(torchvision), but pixel values here are 0 to 255\n"
        "  try: use these two lines, or add scale: 1/255 to yours\n"
        "  mean: [123.675, 116.28, 103.53]\n  std: [58.395, 57.12, 57.375]"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "{mean: [123.675, 116.28, 103.53], std: [0.229, 0.224, 0.225]}",
            "units of 0 to 1, and the other in units of 0 to 255\n  try: std: [58.395, 57.12, 57.375]",
        ),
        ("{mean: 0.5, std: 127.5}", "  try: mean: [127.5, 127.5, 127.5]"),
        (
            "{mean: 127.5, std: 127.5, scale: 1/255}",
            "is outside of the pixel values 0 to 255\n  try: scale: 1/255 is for",
        ),
    ],
)
def test_units_that_do_not_go_together(text: str, words: str, write: Write) -> None:
    assert words in said(write("p", f"{BASE}preprocess: {text}\n"))


@pytest.mark.parametrize(
    "cure", ["mean: [123.675, 116.28, 103.53]\n  std: [58.395, 57.12, 57.375]\n", f"{UNITS}  scale: 1/255\n"]
)
def test_each_cure_of_the_units_works(cure: str, write: Write) -> None:
    loaded = profiles.read_profile(write("p", f"{BASE}preprocess:\n  {cure}"))
    assert loaded.preprocess.mean == pytest.approx((123.675, 116.28, 103.53))
    assert loaded.preprocess.std == pytest.approx((58.395, 57.12, 57.375))


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("{mean: 0, std: 1}", 0, 1),
        ("{mean: 127.5, std: 127.5}", 127.5, 127.5),
        ("{mean: 0, std: 1, scale: 1/255}", 0, 255),
        ("{mean: 0.5, std: 0.5, scale: 0.00392156862745098}", 127.5, 127.5),
        ("{mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], scale: 1 / 255}", 127.5, 127.5),
    ],
)
def test_one_number_for_all_channels_and_a_scale(text: str, mean: float, std: float, write: Write) -> None:
    loaded = profiles.read_profile(write("p", f"{BASE}preprocess: {text}\n")).preprocess
    assert (loaded.mean, loaded.std) == (pytest.approx((mean,) * 3), pytest.approx((std,) * 3))


def test_a_scale_holds_for_its_own_file_alone(write: Write) -> None:
    write("base", f"{BASE}preprocess: {{mean: 0.5, std: 0.5, scale: 1/255}}\n")
    assert profiles.read_profile(write("p", "extends: base\npreprocess: {mean: 100}\n")).preprocess.mean == (
        100,
        100,
        100,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{scale: 1/255}", "preprocess.scale: requires mean in the same file"),
        ("{scale: 1/0, mean: 0, std: 1}", "preprocess.scale: must be a number or fraction above 0, got '1/0'"),
        ("{scale: true, mean: 0, std: 1}", "preprocess.scale: must be a number or fraction above 0, got True"),
        ("{scale: -1, mean: 0, std: 1}", "preprocess.scale: must be a number or fraction above 0, got -1"),
    ],
)
def test_a_scale_that_cannot_be_used(text: str, words: str, write: Write) -> None:
    assert words in said(write("p", f"{BASE}preprocess: {text}\n"))


def test_windows_line_ends_anchors_and_merge_keys_are_read(write: Write) -> None:
    text = f"{BASE}input: &size {{height: 32, width: 48}}\nbuild: &b {{strict: false}}\nrun: {{warmup: 1}}\n"
    loaded = profiles.read_profile(write("p", text.replace("\n", "\r\n")))
    assert (loaded.input.height, loaded.build.strict) == (32, False)
    merged = f"{BASE}input:\n  batch: &one {{min: 1, opt: 2, max: 4}}\n  <<: {{height: 32}}\n  width: 16\n"
    loaded = profiles.read_profile(write("p", merged))
    assert (loaded.input.height, loaded.input.width, loaded.input.batch.opt) == (32, 16, 2)


def test_what_the_output_is_may_be_said(write: Write) -> None:
    loaded = profiles.read_profile(write("p", f"{BASE}output: probabilities\noutput_name: scores\n"))
    assert (loaded.output, loaded.output_name) == ("probabilities", "scores")
    assert loaded.digest != profiles.read_profile(write("q", BASE)).digest
    assert "did you mean 'logits'" in said(write("p", f"{BASE}output: logit\n"))
