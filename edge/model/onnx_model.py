"""An ONNX classifier: load, check, fingerprint, and adapt it to edge's standard form."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.artifacts import sha256_bytes, sha256_file
from edge.config import OutputKind, OutputOptions, Profile
from edge.errors import ModelError, require
from edge.model.adaption import AdaptedModel, adapt

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto


# Initializers with up to this many elements may be shapes, axes or bounds.
_SMALL = 1024


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, type and shape of a network input or output; a dynamic axis is a name or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"


class Model(msgspec.Struct, frozen=True):
    """A classifier with one float32 N×3×H×W input and one float32 N×classes output, adapted if necessary.

    Attributes:
        path: the file.
        sha256: of the file and its external weights.
        opset: version of the default operator set.
        input, output: after adaption (see :mod:`edge.model.adaption`).
        Tensors
            computed from constants alone are not included.
        outputs: what the profile says about the output.
        kind: the meaning of the output values.
        changes: changes made by the adaption, as text.
        raw_pixels: the input takes unscaled pixel values of 0 to 255 (it was uint8).
        grey: the input had one channel.
    """

    path: Path
    sha256: str
    opset: int
    input: TensorSpec
    output: TensorSpec
    activations: list[str]
    outputs: OutputOptions = OutputOptions()
    kind: OutputKind = "logits"
    changes: tuple[str, ...] = ()
    raw_pixels: bool = False
    grey: bool = False

    @property
    def classes(self) -> int:
        """Number of classes."""
        size = self.output.shape[1]
        return size if isinstance(size, int) else 0

    @property
    def fixed_batch(self) -> int | None:
        """The model's fixed batch size, or None if it is dynamic."""
        size = self.input.shape[0]
        return size if isinstance(size, int) else None


def fingerprint(path: Path) -> str:
    """Return the sha256 of the model file and of its external weight files.

    Does not import onnx for a model in one file without external data.

    Raises:
        ModelError: the file does not exist.
    """
    if not path.is_file():
        raise ModelError("the model file does not exist", where=path, hint="check `model:` in the profile")
    own = sha256_file(path)
    outside = external_files(path)
    if not outside:
        return own
    return sha256_bytes("\n".join([own, *(f"{name} {sha256_file(path.parent / name)}" for name in outside)]).encode())


@functools.lru_cache(maxsize=4)
def _read(path: Path, _stamp: tuple[int, int]) -> ModelProto:
    onnx = require("onnx")
    from google.protobuf.message import DecodeError

    try:
        # By path, so that the checker also sees external data and models above the protobuf limit.
        onnx.checker.check_model(str(path))
        proto: ModelProto = onnx.load(str(path))
    except (DecodeError, onnx.checker.ValidationError, ValueError) as exc:
        hint = "edge export --opset 18, or a newer onnx" if "ir_version" in str(exc) else "export it again"
        raise ModelError(f"not a valid ONNX model: {_first_line(exc)}", where=path, hint=hint) from exc
    except OSError as exc:
        raise ModelError(f"cannot read the model: {exc}", where=path) from exc
    return proto


def read_original(path: Path) -> ModelProto:
    """Read the unchanged ONNX protobuf of ``path``, checked by onnx. The result is cached: do not modify it.

    Raises:
        ModelError: the file is missing, truncated, not ONNX, or refused by onnx's checker.
    """
    return _read(path.resolve(), _stamp(path))


def describe_input(proto: ModelProto) -> str:
    """Describe name, type and shape of the image input, as in ``input float32 [N, 3, 224, 224]``."""
    constant = {item.name for item in proto.graph.initializer}
    return str(next(_tensor(value) for value in proto.graph.input if value.name not in constant))


def read(path: Path, outputs: OutputOptions = OutputOptions()) -> ModelProto:  # noqa: B008
    """Read the ONNX protobuf of ``path`` in edge's standard form (see :mod:`edge.model.adaption`).

    The result is cached: do not modify it.

    Raises:
        ModelError: the file is missing, truncated, not ONNX, refused by onnx's checker, or not a classifier.
    """
    return read_adapted(path, outputs).proto


def read_adapted(path: Path, outputs: OutputOptions = OutputOptions()) -> AdaptedModel:  # noqa: B008
    """Read a model like :func:`read`, and return its changes, too.

    Raises:
        ModelError: as :func:`read`.
    """
    return _adapted(path.resolve(), _stamp(path), outputs, str(path))


def _stamp(path: Path) -> tuple[int, int]:
    """Return time and size of a model file, to detect a change."""
    if not path.is_file():
        raise ModelError("the model file does not exist", where=path, hint="check `model:` in the profile")
    status = path.stat()
    if status.st_size == 0:
        raise ModelError("the file is empty", where=path, hint="export it again")
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=4)
def _adapted(path: Path, stamp: tuple[int, int], outputs: OutputOptions, where: str) -> AdaptedModel:
    return adapt(_read(path, stamp), outputs, where=where)


def folded(path: Path, outputs: OutputOptions = OutputOptions()) -> ModelProto:  # noqa: B008
    """Return the network of ``path`` folded for quantization (:func:`edge.model.fold`). Cached: do not modify it.

    Raises:
        ModelError: as for :func:`read`; or its opset cannot be converted, or a layer's weights contain NaN or infinity.
    """
    read_adapted(path, outputs)
    status = path.stat()
    return _folded(path.resolve(), (status.st_mtime_ns, status.st_size), outputs, str(path))


@functools.lru_cache(maxsize=2)
def _folded(path: Path, stamp: tuple[int, int], outputs: OutputOptions, where: str) -> ModelProto:
    # NumPy comes with them, and `edge --help` must not import it.
    import numpy as np

    from edge.model.folding import fold
    from edge.model.graph import GraphIndex, weighted_layers

    try:
        made = fold(_adapted(path, stamp, outputs, where).proto)
        graph = GraphIndex(made)
        weights = {layer.name: layer.weight for layer in weighted_layers(made) if layer.weight in graph.constants}
        broken = [name for name, item in weights.items() if not np.isfinite(graph.array(item).astype(np.float32)).all()]
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError) as exc:
        # Errors that onnx's checker does not find: data shorter than its dimensions, attributes of another type.
        raise ModelError(f"not a valid ONNX model: {_first_line(exc)}", where=where, hint="export it again") from exc
    except ModelError as exc:
        raise ModelError(exc.what, where=where, hint=exc.hint) from exc
    if broken:
        raise ModelError(
            f"the weights {weights[broken[0]]!r} of layer {broken[0]!r} contain NaN or infinity",
            where=where,
            hint="export the model again from a checkpoint whose weights are finite",
        )
    return made


def load(path: Path, outputs: OutputOptions = OutputOptions()) -> Model:  # noqa: B008
    """Read ``path`` and check that it is a classifier that edge supports.

    Raises:
        ModelError: the file is not ONNX, or has no image input or no class output.
    """
    adapted = read_adapted(path, outputs)
    graph = adapted.proto.graph
    constant = {item.name for item in graph.initializer}
    taken = next(_tensor(value) for value in graph.input if value.name not in constant)
    given = _tensor(graph.output[0])
    _check_output(given, path)
    opset = max((item.version for item in adapted.proto.opset_import if item.domain in {"", "ai.onnx"}), default=0)
    newest = int(require("onnx").defs.onnx_opset_version())
    if opset > newest:
        # A parser may accept it, but interpret an operator with its older meaning.
        raise ModelError(
            f"opset {opset}, but the installed onnx only supports up to {newest}",
            where=path,
            hint="export with opset 17, or install a newer onnx",
        )
    return Model(
        path=path,
        sha256=fingerprint(path),
        opset=opset,
        input=taken,
        output=given,
        activations=activations_of(folded(path, outputs), taken.name, path),
        outputs=outputs,
        kind=adapted.kind,
        changes=adapted.changes,
        raw_pixels=adapted.raw_pixels,
        grey=adapted.grey,
    )


def check_fits(model: Model, profile: Profile) -> None:
    """Check that input size, batch range and preprocessing of the profile fit the model.

    Raises:
        ModelError: they differ; the message has both values.
    """
    height, width = model.input.shape[2], model.input.shape[3]
    wanted = (profile.input.height, profile.input.width)
    for name, has, asked in (("height", height, wanted[0]), ("width", width, wanted[1])):
        if isinstance(has, int) and has != asked:
            raise ModelError(
                f"takes images of {name} {has}, but the profile says {asked}",
                where=model.path,
                hint=f"set input.{name}: {has} in the profile",
            )
    _check_preprocess(model, profile)
    fixed, batch = model.fixed_batch, profile.input.batch
    if fixed is not None and (batch.min, batch.max) != (fixed, fixed):
        raise ModelError(
            f"takes batches of exactly {fixed}, but the profile requests {batch.min} to {batch.max}",
            where=model.path,
            hint=f"set input.batch to {{min: {fixed}, opt: {fixed}, max: {fixed}}}, "
            "or export the model with a dynamic batch axis",
        )


def without_weights(proto: ModelProto) -> ModelProto:
    """Turn the large initializers of a model into inputs, because shape inference copies its whole input."""
    onnx = require("onnx")
    graph = proto.graph
    light: ModelProto = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    light.functions.extend(proto.functions)
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, field).extend(getattr(graph, field))
    light.graph.name = graph.name
    known = {value.name for value in graph.input}
    for item in graph.initializer:
        # Small ones may be shapes or axes, whose values inference needs.
        if math.prod(item.dims) <= _SMALL:
            light.graph.initializer.append(item)
        elif item.name not in known:
            light.graph.input.append(onnx.helper.make_tensor_value_info(item.name, item.data_type, list(item.dims)))
    return light


def activations_of(proto: ModelProto, input_name: str, path: Path) -> list[str]:
    """Return the names of the float tensors that depend on the input, in graph order, the input first.

    Raises:
        ModelError: shape inference refuses the model of ``path``.
    """
    onnx = require("onnx")
    try:
        # Not the graph alone: what an operator means depends on the opset.
        inferred = onnx.shape_inference.infer_shapes(without_weights(proto)).graph
    except (onnx.shape_inference.InferenceError, ValueError) as exc:
        raise ModelError(f"not a valid ONNX model: {_first_line(exc)}", where=path, hint="export it again") from exc
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    live = {input_name}
    names = [input_name]
    for node in proto.graph.node:
        if any(name in live for name in node.input):
            live.update(node.output)
            # A tensor that shape inference could not type is included: a missing entry costs more than an extra one.
            names += [name for name in node.output if name and types.get(name, onnx.TensorProto.FLOAT) in floats]
    return names


def _check_preprocess(model: Model, profile: Profile) -> None:
    """Check that pixels are normalized once, and that a one-channel input gets equal channels."""
    spec = profile.preprocess
    if model.raw_pixels and (spec.mean, spec.std) != ((0.0,) * 3, (1.0,) * 3):
        raise ModelError(
            f"takes unscaled uint8 pixel values, but the profile says mean {list(spec.mean)}, std {list(spec.std)}",
            where=model.path,
            hint="preprocess: {mean: 0, std: 1}; the network normalizes by itself",
        )
    if not model.grey:
        return
    if spec.color != "rgb":
        raise ModelError(
            "takes one channel, the luma of an RGB image, but the profile says color: bgr", where=model.path,
            hint="color: rgb",
        )  # fmt: skip
    if len(set(spec.mean)) > 1 or len(set(spec.std)) > 1:
        raise ModelError(
            "takes one channel, but the profile has different mean or std for red, green and blue", where=model.path,
            hint=f"mean: {sum(spec.mean) / 3:.6g}, std: {sum(spec.std) / 3:.6g}, or those of the training",
        )  # fmt: skip


def _check_output(tensor: TensorSpec, path: Path) -> None:
    if tensor.dtype != "float32" or len(tensor.shape) != 2 or not isinstance(tensor.shape[1], int):
        raise ModelError(
            f"the output must be float32 N×classes, but it is {tensor}", where=path, hint="export the logits, flattened"
        )
    if tensor.shape[1] < 1:
        raise ModelError(f"the model has no classes: its output is {tensor}", where=path, hint="export it again")


def _tensor(value: object) -> TensorSpec:
    onnx = require("onnx")
    kind = value.type.tensor_type  # type: ignore[attr-defined]
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except (KeyError, ValueError):
        dtype = "unknown"
    # Some exporters write a dynamic axis as the number -1.
    dims = [
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None) for d in kind.shape.dim
    ]
    return TensorSpec(value.name, dtype, tuple(dims))  # type: ignore[attr-defined]


def external_files(path: Path) -> list[str]:
    """Return the names of the external weight files of a model, relative to its folder, sorted; empty if it has none.

    Raises:
        ModelError: the file is not ONNX, or a weight file is missing.
    """
    # The field name is in the protobuf as plain text, so most models need no parsing.
    if not _mentions(path, b"location"):
        return []
    names = external_locations(path.read_bytes(), where=path)
    for name in names:
        if not (path.parent / name).is_file():
            raise ModelError(f"its weight file {name} is missing", where=path, hint="copy it next to the model")
    return sorted(names)


def external_locations(data: bytes, *, where: Path | str) -> set[str]:
    """Return the locations of the external weight files exactly as the ONNX model names them.

    Raises:
        ModelError: it is not ONNX.
        MissingDependencyError: onnx is not installed.
    """
    onnx = require("onnx")
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as exc:  # onnx raises many kinds for one cause: not ONNX
        raise ModelError(f"not a valid ONNX model: {exc}", where=where, hint="export it again") from exc
    trained = [graph for info in proto.training_info for graph in (info.initialization, info.algorithm)]
    graphs = [proto.graph, *proto.functions, *trained]
    return {
        entry.value for graph in graphs for item in _tensors(graph) for entry in item.external_data
        if entry.key == "location"
    }  # fmt: skip


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield every constant tensor: initializers, and attributes of nodes, also in subgraphs."""
    yield from getattr(graph, "initializer", ())  # functions have none
    for item in getattr(graph, "sparse_initializer", ()):
        yield from (item.values, item.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _mentions(path: Path, word: bytes) -> bool:
    with path.open("rb") as file:
        tail = b""
        while piece := file.read(1 << 22):
            if word in tail + piece:
                return True
            tail = piece[-len(word) :]
    return False


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
