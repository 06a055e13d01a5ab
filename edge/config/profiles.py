"""YAML device profiles: read, merged along ``extends``, checked, and frozen.

A profile that is wrong gives ``file:line: key.path: what is wrong``. Paths in a profile are relative to its file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge.artifacts import Secret, canonical_digest, decode_secret, encode_masked
from edge.config.yaml_source import Document, Kind, did_you_mean
from edge.errors import ProfileError

Family = Literal["host", "agx-orin", "orin-nx", "orin-nano", "thor", "rtx"]
BackendName = Literal["onnxruntime", "tensorrt", "fake"]
Precision = Literal["fp32", "fp16", "int8"]
Int8Route = Literal["auto", "implicit", "explicit"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
Triple = tuple[float, float, float]


class _ConfigSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: frozen, keyword-only, unknown keys are errors."""


class BatchRange(_ConfigSection, frozen=True):
    """Batch sizes that the engine must take, and the one that it is optimized for."""

    min: Positive = 1
    opt: Positive = 1
    max: Positive = 1


class InputConfig(_ConfigSection, frozen=True):
    """Input of the network: height and width in pixels, and batch sizes."""

    height: Positive = 224
    width: Positive = 224
    batch: BatchRange = BatchRange()


class PreprocessConfig(_ConfigSection, frozen=True):
    """From a picture to the network's float input (:mod:`edge.model.preprocessing`); ``exif`` turns pictures upright.

    ``mean`` and ``std`` are per channel in the order of ``color``, in units of 8-bit pixel values (0 to 255).
    """

    fit: Literal["crop", "letterbox", "squash"] = "crop"
    resize: Positive = 256
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    color: Literal["rgb", "bgr"] = "rgb"
    mean: Triple = (123.675, 116.28, 103.53)
    std: Triple = (58.395, 57.12, 57.375)
    pad: Annotated[int, msgspec.Meta(ge=0, le=255)] = 114
    exif: bool = True


class CalibrationConfig(_ConfigSection, frozen=True):
    """Calibration: algorithm, pictures, and whether edge or the device's own TensorRT makes the table (``engine``)."""

    algorithm: str = "auto"
    parameters: dict[str, float] = {}
    images: str | None = None
    batch: Positive = 8
    engine: Literal["edge", "tensorrt"] = "edge"


class QuantizationConfig(_ConfigSection, frozen=True):
    """Preparation of the network for INT8, and the layers that stay in float.

    ``recipe``: auto lets `edge calibrate` measure which steps help and `edge tune` add to it; none leaves the network
    as it is; else a recipe file. ``exclude`` and ``include`` are names of layers, patterns (``*``, ``?``) or operator
    types of the model; included ones are quantized although an exclusion or the recipe says otherwise. ``attention``
    is about products of two activations, ``residual`` about which sums are quantized, and ``shift`` about one-sided
    activations; null is ``all`` on the host and with TensorRT for RTX, and ``off`` with other TensorRTs, where its
    price is not measured.
    """

    recipe: str = "auto"
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    attention: Literal["float", "int8"] = "float"
    residual: Literal["conv", "all", "none"] = "conv"
    shift: Literal["off", "unpadded", "all"] | None = None


class BuildConfig(_ConfigSection, frozen=True):
    """Build settings; a backend ignores those that it has no use for, and its manifest lists them.

    ``min_int8_share`` is the share of convolution and matrix-product layers that must really run in INT8.
    ``version_compatible`` and ``hardware_compatibility`` (AMPERE_PLUS …) make a TensorRT engine that more machines
    load, at some cost in speed. ``compute_capabilities`` (SM86 …) are what TensorRT for RTX builds for, all that it
    knows where there are none.
    """

    workspace_mib: Positive | None = None
    timing_cache: bool = True
    optimization_level: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    dla_core: Annotated[int, msgspec.Meta(ge=0, le=1)] | None = None
    gpu_fallback: bool = True
    strict: bool = True
    min_int8_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.9
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    compute_capabilities: tuple[Annotated[str, msgspec.Meta(pattern=r"^SM\d{2,3}$")], ...] = ()


class RunConfig(_ConfigSection, frozen=True):
    """Settings of the run loop. ``threads`` is for the CPU backend; None means all cores.

    ``workers`` is how many sessions infer at the same time, and ``prepare`` how many threads read, decode and
    preprocess; None leaves the choice to the run. ``preprocess_on``: the GPU where the backend can and its kernel
    compiles (auto), the GPU or an error (device), or OpenCV (cpu).

    ``batch`` is the number of pictures from files per inference. Frames of several cameras share an inference when they
    are there at the same time: one waits until it is ``batch_wait_ms`` old for those of the others. ``replay_speed``:
    recorded frames at their own times, the newest one only (real), or every frame as soon as possible (fast).
    """

    warmup: Annotated[int, msgspec.Meta(ge=0)] = 10
    topk: Positive = 5
    threads: Positive | None = None
    workers: Positive | None = None
    prepare: Positive | None = None
    preprocess_on: Literal["auto", "cpu", "device"] = "auto"
    batch: Positive = 1
    batch_wait_ms: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 5.0
    replay_speed: Literal["real", "fast"] = "real"


class DecisionSettings(_ConfigSection, frozen=True):
    """Settings that turn guesses into a decision: smoothed over the last ``window_s`` seconds of a camera, or not.

    Below ``min_confidence`` (0 to 1) the decision is ``unknown``.
    """

    smoothing: Literal["none", "exponential", "majority"] = "none"
    window_s: PositiveFloat = 0.5
    min_confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class NotifyRule(_ConfigSection, frozen=True):
    """A label to report, and where to.

    ``to`` has the addresses (``http://…``, ``mqtt://…``, ``exec:COMMAND``, or ``@FILE`` with one in it); without any,
    the rule is for ``--notify``. ``labels`` are names or class numbers, all where there are none. A label
    must be seen ``for`` that long with ``min_confidence``, is reported once until it changes (``on_change``), and no
    more often than ``every``. Times are seconds, or texts such as 0.5s and 2m.
    """

    to: tuple[Secret, ...] = ()
    labels: tuple[int | str, ...] = ()
    min_confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    hold: float | str = msgspec.field(default=0.0, name="for")
    every: float | str = 0.0
    on_change: bool = True

    @property
    def for_s(self) -> float:
        """Seconds that a label must be seen."""
        return parse_duration(self.hold)

    @property
    def every_s(self) -> float:
        """Seconds between two reports of one camera at least."""
        return parse_duration(self.every)


_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: float | str) -> float:
    """Seconds of a duration: a number, or a text such as 10s, 1.5m, 2h, 7d.

    Raises:
        ValueError: It is none.
    """
    if isinstance(text, str):
        number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
        unit = text[len(number) :]
        if unit not in _UNITS:
            raise ValueError(f"invalid duration {text!r}")
        seconds = float(number) * _UNITS[unit]
    else:
        seconds = float(text)
    if not 0.0 <= seconds < 1e9:
        raise ValueError(f"invalid duration {text!r}")
    return seconds


class ReconnectConfig(_ConfigSection, frozen=True):
    """Times after which a lost camera is tried again: after ``first_s``, then after twice as long, up to ``max_s``.

    ``give_up_s`` ends the run after that time without a frame; None tries for ever.
    """

    first_s: PositiveFloat = 0.5
    max_s: PositiveFloat = 30.0
    give_up_s: PositiveFloat | None = None


class CameraConfig(_ConfigSection, frozen=True):
    """Settings that a camera is opened with, and the time after which it counts as lost.

    Width, height in pixels and fps are asked for; what the camera gives is in the record. ``format`` and ``decoder``
    are for USB cameras, ``flip`` (0 to 7, nvvidconv's flip-method) for CSI, ``transport`` for RTSP. ``pipeline`` is a
    GStreamer pipeline for any of them; ``{device}`` in it stands for node, sensor number or URL. ``timeout_s`` is the
    longest time without a frame, and ``freeze_s`` the longest with the same frame over and over; null where a picture
    may stand still.
    """

    width: Positive = 1280
    height: Positive = 720
    fps: PositiveFloat = 30.0
    format: Literal["mjpg", "yuyv", "any"] = "mjpg"
    decoder: Literal["software", "hardware"] = "software"
    flip: Annotated[int, msgspec.Meta(ge=0, le=7)] = 0
    transport: Literal["tcp", "udp"] = "tcp"
    pipeline: Secret | None = None
    timeout_s: PositiveFloat = 5.0
    freeze_s: PositiveFloat | None = 10.0
    reconnect: ReconnectConfig = ReconnectConfig()


class NamedCameraConfig(CameraConfig, frozen=True, kw_only=True):
    """One camera of several: where it is, and what is different from the section ``camera``."""

    source: Secret


class RecordConfig(_ConfigSection, frozen=True):
    """Settings of the record while the run goes.

    It is written every ``flush_s`` seconds, by default 10 for ``.jsonl`` and 60 for ``.json``. A ``.jsonl`` record has
    a line per frame with ``every_frame``, begins a new file at ``size_mib``, and keeps ``files`` of them.
    """

    every_frame: bool = False
    flush_s: Annotated[float, msgspec.Meta(ge=0.1, le=1e6)] | None = None
    size_mib: Positive = 64
    files: Positive = 5


class WebConfig(_ConfigSection, frozen=True):
    """Access to a run: ``token_file`` holds the token for ``--web`` and ``--metrics``."""

    token_file: str | None = None


class TelemetryConfig(_ConfigSection, frozen=True):
    """Power measurement: source (``auto`` tries what there is), rate, and idle time before a run.

    ``idle_s`` is the baseline for net energy; 0 means none. ``log`` is a file that keeps every reading.
    ``set_power_mode`` switches to the profile's ``power_mode`` for the length of a run, which needs root.
    """

    source: str = "auto"
    rate_hz: Annotated[float, msgspec.Meta(gt=0, le=100)] = 10.0
    idle_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0
    log: str | None = None
    set_power_mode: bool = False


OutputKind = Literal["logits", "probabilities"]


class OutputOptions(msgspec.Struct, frozen=True):
    """Settings of the model's output.

    Attributes:
        name: which of several outputs holds the classes; None where there is one.
        kind: what its numbers are; None: edge looks at the model.
    """

    name: str | None = None
    kind: OutputKind | None = None


class QualityConfig(_ConfigSection, frozen=True):
    """Limits that INT8 must keep; each that is missed is exit code 1.

    ``min_top1`` and ``min_agreement`` in percent, ``max_drop`` of top-1 against FP32 in points, ``min_sqnr`` of the
    logits in dB. ``collapse: allow`` accepts an engine whose accuracy has collapsed (:mod:`edge.calibration.quality`).
    """

    collapse: Literal["error", "allow"] = "error"
    min_top1: Percent | None = None
    min_agreement: Percent | None = None
    max_drop: Annotated[float, msgspec.Meta(ge=0)] | None = None
    min_sqnr: float | None = None


class Profile(_ConfigSection, frozen=True):
    """Everything about one device, resolved: ``extends`` merged, paths absolute.

    ``output`` says what the network's numbers are where edge cannot see it (null: it looks), and ``output_name`` which
    of several outputs is the classes'.
    """

    name: str
    family: Family
    backend: BackendName
    model: str
    labels: str
    output: OutputKind | None = None
    output_name: str | None = None
    input: InputConfig = InputConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    precision: Precision = "int8"
    int8_route: Int8Route = "auto"
    calibration: CalibrationConfig = CalibrationConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    build: BuildConfig = BuildConfig()
    power_mode: str | None = None
    run: RunConfig = RunConfig()
    camera: CameraConfig = CameraConfig()
    cameras: dict[str, NamedCameraConfig] = {}
    record: RecordConfig = RecordConfig()
    web: WebConfig = WebConfig()
    decision: DecisionSettings = DecisionSettings()
    notify: tuple[NotifyRule, ...] = ()
    telemetry: TelemetryConfig = TelemetryConfig()
    quality: QualityConfig = QualityConfig()

    @property
    def outputs(self) -> OutputOptions:
        """``output_name`` and ``output`` together."""
        return OutputOptions(self.output_name, self.output)

    @property
    def shift(self) -> Literal["off", "unpadded", "all"]:
        """One-sided activations that are moved around zero: as the profile says, or by backend and family."""
        if self.quantization.shift is not None:
            return self.quantization.shift
        return "all" if self.backend == "onnxruntime" or self.family == "rtx" else "off"

    @property
    def digest(self) -> str:
        """Sha256 of the settings that an engine depends on; paths and run settings are not among them."""
        content = msgspec.to_builtins(self, enc_hook=encode_masked)
        for name in (
            "name",
            "model",
            "labels",
            "run",
            "camera",
            "cameras",
            "record",
            "web",
            "decision",
            "notify",
            "telemetry",
            "power_mode",
            "calibration",
            "quantization",
            "quality",
        ):
            del content[name]
        for name in ("output", "output_name"):
            # Newer than the first engines: only what is set counts, so that those stay valid.
            if content[name] is None:
                del content[name]
        return canonical_digest(content)


def read_profile(path: Path) -> Profile:
    """Read the profile at ``path`` and everything that it extends.

    Raises:
        ProfileError: with ``file:line: key.path`` and, for a misspelt name, the nearest right one.
    """
    document = Document.read(path, _KIND)
    document.reject_unknown(Profile, document.tree)
    _merge_cameras(document)
    try:
        profile = msgspec.convert(document.tree, Profile, dec_hook=decode_secret)
    except msgspec.ValidationError as exc:
        raise document.error_from(exc, Profile) from exc
    _check_together(profile, document)
    return profile


def find_profile(name: str, folders: list[Path]) -> Path:
    """Path of the profile called ``name``: itself a path to a YAML file, or a file in one of ``folders``.

    Raises:
        ProfileError: there is none; the nearest name is suggested.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        return Path(name)
    known = {path.stem: path for path in available_profiles(folders)}
    if name in known:
        return known[name]
    raise ProfileError(
        f"there is no profile {name!r}{did_you_mean(name, known)}",
        where=", ".join(str(folder) for folder in folders) or None,
        hint="edge profile list"
        if known
        else "run edge inside a checkout or in a folder with profiles/, or give --profile FILE",
    )


def available_profiles(folders: list[Path]) -> list[Path]:
    """Profile files in ``folders``, by name; the first folder wins where two hold the same name."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return [found[name] for name in sorted(found)]


def _check_together(profile: Profile, document: Document) -> None:
    """Checks that need more than one key."""
    _check_preprocess(profile, document)
    _check_backend(profile, document)
    for name, value in profile.calibration.parameters.items():
        if not math.isfinite(value):
            raise document.error(("calibration", "parameters", name), f"must be finite, got {value}")
    # The name becomes a folder of engines.
    if profile.name in {"", ".", ".."} or any(sign in profile.name for sign in "/\\\0"):
        raise document.error(("name",), f"{profile.name!r} cannot be the name of a folder")
    _check_camera(profile.camera, document, ("camera",))
    for name, camera in profile.cameras.items():
        if not is_camera_name(name):
            raise document.error(("cameras", name), "a name has letters, digits, - and _ only, 32 at most")
        _check_camera(camera, document, ("cameras", name))
    for index, rule in enumerate(profile.notify):
        _check_rule(rule, document, ("notify", str(index)))


def _check_preprocess(profile: Profile, document: Document) -> None:
    batch, pre = profile.input.batch, profile.preprocess
    if not batch.min <= batch.opt <= batch.max:
        raise document.error(("input", "batch"), f"needs min <= opt <= max, got {batch.min}, {batch.opt}, {batch.max}")
    if pre.fit == "crop" and pre.resize < max(profile.input.height, profile.input.width):
        size = f"{profile.input.height}x{profile.input.width}"
        raise document.error(("preprocess", "resize"), f"{pre.resize} is smaller than the {size} crop taken from it")
    for name, values in (("mean", pre.mean), ("std", pre.std)):
        if not all(math.isfinite(value) for value in values):
            raise document.error(("preprocess", name), f"must be finite for every channel, got {list(values)}")
    if min(pre.std) <= 0:
        raise document.error(("preprocess", "std"), f"must be above 0 for every channel, got {list(pre.std)}")
    _check_units(pre, document)


def _check_backend(profile: Profile, document: Document) -> None:
    if profile.build.dla_core is not None and profile.family not in {"agx-orin", "orin-nx"}:
        raise document.error(("build", "dla_core"), f"{profile.family} has no DLA")
    if profile.build.dla_core is not None and profile.backend != "tensorrt":
        raise document.error(("build", "dla_core"), f"backend {profile.backend} has no DLA")
    if profile.backend == "onnxruntime" and profile.precision == "fp16":
        raise document.error(("precision",), "ONNX Runtime on a CPU runs fp32 or int8, not fp16")


def _check_rule(rule: NotifyRule, document: Document, key: tuple[str, ...]) -> None:
    for name, duration in (("for", rule.hold), ("every", rule.every)):
        try:
            parse_duration(duration)
        except ValueError:  # noqa: PERF203 - two values
            raise document.error((*key, name), f"invalid duration {duration!r} (examples: 0.5, 0.5s, 2m)") from None


def _check_units(pre: PreprocessConfig, document: Document) -> None:
    """Refuse mean and std in units of 0 to 1, which torchvision and timm use.

    0 and 1 are kept: a network that takes pixel values as they are has them.
    """
    is_small = max(map(abs, pre.mean)) <= 1 and max(pre.std) <= 1
    if is_small and (pre.mean, pre.std) != ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)):
        mean, std = (_pasted(value * 255 for value in values) for values in (pre.mean, pre.std))
        raise document.error(
            ("preprocess", "mean"),
            f"mean {_pasted(pre.mean)} and std {_pasted(pre.std)} are in units of 0 to 1 (torchvision), and pixel "
            "values here are 0 to 255",
            hint=f"mean: {mean}, std: {std}; or add scale: 1/255 next to them",
        )


def _pasted(values: Iterable[float]) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def _convert_values(document: Document) -> None:
    """Bring ``preprocess.mean`` and ``std`` of one file to three values in units of 0 to 255, a bare off to text.

    One address of a notification becomes a list of one.
    """
    for rule in rules if isinstance(rules := document.tree.get("notify"), list) else []:
        if isinstance(rule, dict) and isinstance(rule.get("to"), str):
            rule["to"] = [rule["to"]]
    quantization = document.tree.get("quantization")
    if isinstance(quantization, dict) and quantization.get("shift") is False:
        quantization["shift"] = "off"  # YAML 1.1 reads off as false
    section = document.tree.get("preprocess")
    if not isinstance(section, dict):
        return
    for name in ("mean", "std"):
        if _is_number(section.get(name)):
            section[name] = [section[name]] * 3
    if "scale" not in section:
        return
    scale = _scale(section.pop("scale"), document)
    for name in ("mean", "std"):
        if name not in section:
            raise document.error(
                ("preprocess", "scale"), f"needs {name} next to it, in the same file",
                hint="for an input of 0 to 1: scale: 1/255, mean: 0, std: 1",
            )  # fmt: skip
        values = section[name]
        if isinstance(values, list) and all(map(_is_number, values)):
            section[name] = [value / scale for value in values]


def _scale(value: object, document: Document) -> float:
    """The value of ``preprocess.scale``: a number, or a fraction such as 1/255."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*/\s*([0-9.]+)\s*", value)
        try:
            number = float(match[1]) / float(match[2]) if match else math.nan
        except (ValueError, ZeroDivisionError):
            number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise document.error(
            ("preprocess", "scale"), f"must be a number or fraction above 0, got {value!r}", hint="1/255"
        )
    return number


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Keys of a profile that name files, and words that are allowed instead of a file.
PROFILE_PATHS: frozenset[tuple[str, ...]] = frozenset(
    {
        ("model",),
        ("labels",),
        ("calibration", "images"),
        ("web", "token_file"),
        ("telemetry", "log"),
        ("quantization", "recipe"),
    }
)
PROFILE_PATH_WORDS = frozenset({"auto", "none"})
_KIND = Kind(
    name="profile", hint="edge profile list", paths=PROFILE_PATHS, words=PROFILE_PATH_WORDS, convert=_convert_values
)


def is_camera_name(name: str) -> bool:
    """True when ``name`` can name a camera: it becomes part of messages, file names and metrics."""
    return re.fullmatch(r"[A-Za-z0-9_-]{1,32}", name) is not None


def _merge_cameras(document: Document) -> None:
    """Give each of ``cameras`` what the section ``camera`` says; a plain value is its source."""
    tree = document.tree
    named, base = tree.get("cameras"), tree.get("camera")
    if not isinstance(named, dict):
        return
    fields = {field.encode_name for field in msgspec.structs.fields(NamedCameraConfig)}
    for name, value in named.items():
        own = value if isinstance(value, dict) else {"source": value}
        for key in own:
            if key not in fields:
                raise document.error(("cameras", name, key), f"unknown key{did_you_mean(key, fields)}")
        if isinstance(own.get("source"), int):
            own = {**own, "source": str(own["source"])}
        named[name] = {**(base if isinstance(base, dict) else {}), **own}


def _check_camera(camera: CameraConfig, document: Document, at: tuple[str, ...]) -> None:
    again = camera.reconnect
    for key, value in (
        (("fps",), camera.fps),
        (("timeout_s",), camera.timeout_s),
        (("freeze_s",), camera.freeze_s),
        (("reconnect", "first_s"), again.first_s),
        (("reconnect", "max_s"), again.max_s),
        (("reconnect", "give_up_s"), again.give_up_s),
    ):
        if value is not None and not math.isfinite(value):
            raise document.error((*at, *key), f"must be finite, got {value}")
    if again.first_s > again.max_s:
        raise document.error((*at, "reconnect"), f"needs first_s <= max_s, got {again.first_s}, {again.max_s}")
    if camera.pipeline is not None and "appsink" not in camera.pipeline.reveal():
        raise document.error((*at, "pipeline"), "must end in appsink, as in edge's own (docs/running.md)")
