"""Export networks of torchvision, timm or a Python file to ONNX. Only this module imports these libraries.

The preprocessing is in the weights' own metadata (torchvision's ``weights.transforms()``, timm's data config); it is
written into the ONNX file, where ``edge init`` finds it. torch loads the weights from the network if the library knows
an address, or from a file with ``weights_only=True`` (no code in the file is run). A Python file is code, and is run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.config import did_you_mean
from edge.errors import DataError, ModelError, UsageError, require
from edge.model.model_facts import PREPROCESS_KEY, USUAL_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto

# Opset 18 is the oldest that torch's current exporter writes itself; TensorRT 10 and later read it.
CURRENT_OPSET = 18
# The opset that TensorRT 8.6 (JetPack 6.0) reads; torch's former exporter writes it.
OLD_OPSET = 17
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


class TorchSource(msgspec.Struct, frozen=True):
    """A network by name: ``torchvision:NAME``, ``timm:NAME``, or ``FILE.py:FUNCTION``."""

    library: str
    name: str

    @classmethod
    def parse(cls, text: str) -> TorchSource:
        """Parse ``LIBRARY:NAME``.

        Raises:
            UsageError: ``text`` has none of the three forms.
        """
        library, colon, name = text.rpartition(":")
        if not colon or not name or not (library in {"torchvision", "timm"} or library.endswith(".py")):
            raise UsageError(
                f"cannot export {text!r}",
                hint="use torchvision:resnet50, timm:mobilenetv3_small_050 or FILE.py:FUNCTION",
            )
        return cls(library, name)


class TorchModel(msgspec.Struct, frozen=True, kw_only=True):
    """A network in eval mode, with the preprocessing and classes from its weights' metadata."""

    module: Any
    height: int
    width: int
    preprocess: dict[str, Any] | None
    names: list[str] | None


class ExportedModel(msgspec.Struct, frozen=True, kw_only=True):
    """An ONNX model, and an input (float32 2×3×H×W) with torch's output (float32 2×classes) to check it."""

    proto: ModelProto
    example: NDArray[np.float32]
    answer: NDArray[np.float32]


def load(source: TorchSource, *, weights: str, classes: int | None, size: int | None) -> TorchModel:
    """Make the network in eval mode.

    Args:
        source: which network.
        weights: ``default`` for the library's own, ``none`` for random ones, or a file with a state dict.
        classes: number of classes, None for the library's own.
        size: height and width of the input, None for that of the weights.

    Raises:
        UsageError: there is no such network. DataError: the weights cannot be loaded, or do not match.
        MissingDependencyError: torch or the library is not installed.
    """
    torch = require("torch")
    with _quiet():
        if source.library == "torchvision":
            found = _torchvision(source.name, weights, classes, size)
        elif source.library == "timm":
            found = _timm(source.name, weights, classes, size)
        else:
            found = _file(Path(source.library), source.name, size)
        if weights not in {"default", "none"}:
            _load_state(torch, found.module, Path(weights))
        found.module.eval()
    return found


def export(found: TorchModel, *, opset: int, source: str) -> ExportedModel:
    """Export the network as ONNX with a dynamic batch axis, and run torch once for a check.

    Raises:
        ModelError: torch cannot export it.
    """
    torch = require("torch")
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, 3, found.height, found.width, generator=generator)
    with _quiet(), torch.no_grad():
        try:
            answer = found.module(example)
        except Exception as exc:  # whatever the network raises on its own input size
            raise ModelError(
                f"the network fails on an input of 3×{found.height}×{found.width}: {_first_line(exc)}", where=source,
                hint="--size N",
            ) from exc  # fmt: skip
        if not torch.is_tensor(answer) or answer.dim() != 2:
            raise ModelError(
                "the network's output is not an N×classes tensor", where=source,
                hint="export a function that returns the classifier alone: FILE.py:FUNCTION",
            )  # fmt: skip
        try:
            proto = _current(torch, found.module, example, opset) if opset >= CURRENT_OPSET else None
            proto = proto or _former(torch, found.module, example, opset)
        except Exception as exc:  # torch's exporter passes any exception on
            raise ModelError(f"torch cannot export it: {_first_line(exc)}", where=source) from exc
    proto = _simplified(proto)
    _add_metadata(proto, found, source)
    return ExportedModel(proto=proto, example=example.numpy(), answer=answer.numpy().astype("float32"))


def _torchvision(name: str, weights: str, classes: int | None, size: int | None) -> TorchModel:
    models = require("torchvision").models
    try:
        choices = models.get_model_weights(name)
    except ValueError as exc:
        raise UsageError(f"torchvision has no {name!r}{did_you_mean(name, models.list_models())}") from exc
    default: Any = getattr(choices, "DEFAULT", None) or next(iter(choices))
    transforms = default.transforms()
    options = {} if classes is None else {"num_classes": classes}
    if weights == "default" and classes is not None:
        raise UsageError(
            "torchvision's weights have their own classes", hint="use --weights none or FILE together with --classes"
        )
    module = _fetched(
        lambda: models.get_model(name, weights=default if weights == "default" else None, **options), name
    )
    side = size or int(transforms.crop_size[0])
    resize = round(int(transforms.resize_size[0]) * side / int(transforms.crop_size[0]))
    spec = _spec(transforms.mean, transforms.std, resize, transforms.interpolation.value, "crop")
    names = [str(one) for one in default.meta["categories"]] if classes is None else None
    return TorchModel(module=module, height=side, width=side, preprocess=spec, names=names)


def _timm(name: str, weights: str, classes: int | None, size: int | None) -> TorchModel:
    timm = require("timm")
    if not timm.is_model(name):
        raise UsageError(f"timm has no {name!r}{did_you_mean(name, timm.list_models())}")
    options = {} if classes is None else {"num_classes": classes}
    module = _fetched(lambda: timm.create_model(name, pretrained=weights == "default", **options), name)
    config = timm.data.resolve_data_config({} if size is None else {"input_size": (3, size, size)}, model=module)
    _, height, width = config["input_size"]
    fit = {"squash": "squash", "border": "letterbox"}.get(config.get("crop_mode", "center"), "crop")
    resize = math.floor(max(height, width) / config["crop_pct"])
    spec = _spec(config["mean"], config["std"], resize, config["interpolation"], fit)
    names = None
    if classes is None and getattr(module, "num_classes", 0) == 1000:
        with contextlib.suppress(AttributeError, KeyError, OSError):
            info = timm.data.ImageNetInfo()
            names = [info.index_to_description(index) for index in range(1000)]
    return TorchModel(module=module, height=height, width=width, preprocess=spec, names=names)


def _file(path: Path, function: str, size: int | None) -> TorchModel:
    if not path.is_file():
        raise UsageError("this file does not exist", where=path)
    described = importlib.util.spec_from_file_location(path.stem, path)
    if described is None or described.loader is None:
        raise UsageError("this is not a Python file", where=path)
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    maker = getattr(module, function, None)
    if not callable(maker):
        raise UsageError(f"{path.name} has no function {function!r}", where=path)
    network = maker()
    if not hasattr(network, "eval"):
        raise UsageError(f"{function} does not return a torch module", where=path)
    side = size or USUAL_SIZE
    return TorchModel(module=network, height=side, width=side, preprocess=None, names=None)


def _spec(mean: Any, std: Any, resize: int, interpolation: str, fit: str) -> dict[str, Any]:  # noqa: ANN401
    return {
        "fit": fit,
        "resize": resize,
        "interpolation": interpolation if interpolation in _INTERPOLATIONS else "bicubic",
        "color": "rgb",
        "mean": [round(255 * float(value), 6) for value in mean],
        "std": [round(255 * float(value), 6) for value in std],
    }


def _fetched(make: Any, name: str) -> Any:  # noqa: ANN401
    try:
        return make()
    except (OSError, RuntimeError) as exc:
        raise DataError(
            f"cannot get the weights of {name}: {_first_line(exc)}",
            hint="use --weights FILE with a state dict, or --weights none for random weights",
        ) from exc


def _load_state(torch: Any, module: Any, path: Path) -> None:  # noqa: ANN401
    if not path.is_file():
        raise DataError("this file of weights does not exist", where=path, hint="use --weights default, none or a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model", "model_state_dict"):
            state = state.get(key, state) if isinstance(state, dict) else state
        module.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    except Exception as exc:  # unpickling and load_state_dict raise many kinds
        raise DataError(
            f"these weights do not match the network: {_first_line(exc)}", where=path,
            hint="use --classes N if the weights have another number of classes",
        ) from exc  # fmt: skip


def _current(torch: Any, module: Any, example: Any, opset: int) -> Any:  # noqa: ANN401
    program = torch.onnx.export(
        module, (example,), dynamo=True, opset_version=opset, input_names=["input"], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},), verbose=False,
    )  # fmt: skip
    return program.model_proto


def _former(torch: Any, module: Any, example: Any, opset: int) -> Any:  # noqa: ANN401
    buffer = io.BytesIO()
    torch.onnx.export(
        module, (example,), buffer, dynamo=False, opset_version=opset, input_names=["input"], output_names=["logits"],
        dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
    )  # fmt: skip
    return require("onnx").load_model_from_string(buffer.getvalue())


def _simplified(proto: Any) -> Any:  # noqa: ANN401
    """Return the model with constants folded by onnxslim, if it is installed."""
    if importlib.util.find_spec("onnxslim") is None:
        return proto
    with _quiet():
        slim = require("onnxslim").slim(proto)
    return proto if slim is None else slim


def _add_metadata(proto: Any, found: TorchModel, source: str) -> None:  # noqa: ANN401
    values = {"edge.source": source}
    if found.preprocess is not None:
        values[PREPROCESS_KEY] = json.dumps(found.preprocess)
    if found.names is not None:
        values["names"] = json.dumps(found.names)
    kept = {item.key: item.value for item in proto.metadata_props if not item.key.startswith("pkg.torch")}
    del proto.metadata_props[:]
    require("onnx").helper.set_model_props(proto, {**kept, **values})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's warnings and log lines: failures raise exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
