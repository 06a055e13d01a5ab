"""Adapt a classifier to edge's standard form: float32 N×3×H×W in, float32 N×classes out.

The changes are made in the graph, so that calibration, every backend and both INT8 routes get the same network:

* an NHWC input gets a Transpose, which cancels with the model's own if there is one;
* a uint8 input becomes float32: the model's first Cast then has no effect. A float64 input gets a Cast;
* FP16 and BF16 tensors become float32: the engine decides about the precision of a layer;
* local functions (of the newer exporter of PyTorch) are replaced by their nodes, whose weights then count;
* a one-channel input gets the luma of an RGB image (ITU-R BT.601, as Pillow's mode L), folded into the first
  convolution where that is possible;
* of several outputs one is kept;
* a Softmax at the end is removed, so that the output is logits, and confidences are computed once, from them;
* N×C×1×1 and other shapes with one class axis are flattened, and the output becomes float32.

Everything here is a function of the graph: nothing is run and no file is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from edge.config import OutputKind, OutputOptions, did_you_mean
from edge.errors import ModelError, require

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

# From this version of the file format on, initializers need not be inputs as well.
MIN_IR = 4
# ITU-R BT.601 luma of red, green and blue.
_LUMA = (0.299, 0.587, 0.114)
# Operators that move values and do not change them: a Softmax in front of them may go.
_MOVES = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout"})
# Operators that accept uint8 and float32 and only move values.
_RETYPED = _MOVES | {"Transpose", "Slice"}
_TO_NCHW = [0, 3, 1, 2]
_TO_NHWC = [0, 2, 3, 1]


class AdaptedModel(msgspec.Struct, frozen=True):
    """A model in edge's standard form.

    ``changes`` describes the changes as text, if any; ``kind`` is the meaning of the output
    values; ``raw_pixels`` is true if the input takes unscaled pixel values (it was uint8), and ``grey`` if it
    had one channel.
    """

    proto: ModelProto
    changes: tuple[str, ...]
    kind: OutputKind
    raw_pixels: bool = False
    grey: bool = False


def adapt(proto: ModelProto, options: OutputOptions = OutputOptions(), *, where: str) -> AdaptedModel:  # noqa: B008
    """Adapt ``proto`` to edge's form; it is copied if something changes.

    Args:
        proto: any classifier with one image input; only its graph is read.
        options: what the profile says about the output.
        where: the model's path, for messages.

    Raises:
        ModelError: the model has no image input, several outputs without a selection, or no class axis.
    """
    onnx = require("onnx")
    copy: ModelProto = onnx.ModelProto()
    copy.CopyFrom(_inlined(proto, where) if proto.functions else proto)
    work = _Work(copy, where)
    if proto.functions:
        work.changes.append("local functions are replaced by their nodes")
    work.choose_output(options.name)
    kind: OutputKind = work.remove_softmax(options.kind)
    work.widen()
    raw_pixels = work.fix_input_type()
    work.fix_layout()
    grey = work.fix_channels()
    work.fix_dimensions()
    work.fix_output()
    if not work.changes:
        return AdaptedModel(proto, (), kind, raw_pixels, grey)
    copy.ir_version = max(copy.ir_version, MIN_IR)
    return AdaptedModel(copy, tuple(work.changes), kind, raw_pixels, grey)


def _inlined(proto: ModelProto, where: str) -> ModelProto:
    """Replace the calls of local functions by their nodes."""
    import onnx.inliner

    try:
        made: ModelProto = onnx.inliner.inline_local_functions(proto)
    except Exception as exc:  # it is C++ and raises several kinds
        first = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise ModelError(f"not a valid ONNX model: {first}", where=where, hint="export it again") from exc
    return made


class _Work:
    """A model during its adaption. Each step leaves a valid graph."""

    def __init__(self, proto: ModelProto, where: str) -> None:
        self._onnx = require("onnx")
        self._types = self._onnx.TensorProto
        self.proto = proto
        self.graph: GraphProto = proto.graph
        self.where = where
        self.changes: list[str] = []
        constant = {item.name for item in self.graph.initializer}
        self._inputs = [value for value in self.graph.input if value.name not in constant]
        if len(self._inputs) != 1:
            names = ", ".join(value.name for value in self._inputs) or "none"
            raise ModelError(
                f"a classifier must have one input, but this model has {len(self._inputs)} ({names})",
                where=where,
                hint="export only the image input and the class output",
            )
        self.input: ValueInfoProto = self._inputs[0]
        self._taken = {name for node in self.graph.node for name in (*node.input, *node.output)} | constant

    # ---- output --------------------------------------------------------------------------------------------------

    def choose_output(self, name: str | None) -> None:
        """Keep one output and the nodes that it depends on."""
        outputs = list(self.graph.output)
        names = [value.name for value in outputs]
        if not outputs:
            raise ModelError("the model has no output", where=self.where, hint="export it again")
        if name is not None:
            if name not in names:
                raise ModelError(
                    f"there is no output {name!r}{did_you_mean(name, names)}",
                    where=self.where,
                    hint=f"set output_name in the profile to one of {', '.join(names)}",
                )
            chosen = outputs[names.index(name)]
        elif len(outputs) == 1:
            return
        else:
            found = self._logits_beside_softmax(outputs)
            if found is None:
                raise ModelError(
                    f"the model has {len(outputs)} outputs: {', '.join(names)}",
                    where=self.where,
                    hint=f"output_name: {names[0]} in the profile, or edge init --output-name {names[0]}",
                )
            chosen = found
        if len(outputs) > 1:
            kept = self._onnx.ValueInfoProto()
            kept.CopyFrom(chosen)
            del self.graph.output[:]
            self.graph.output.append(kept)
            self._drop_dead_nodes()
            self.changes.append(f"{kept.name} is selected from {len(outputs)} outputs")

    def _logits_beside_softmax(self, outputs: list[ValueInfoProto]) -> ValueInfoProto | None:
        """Return the logits if the other one of two outputs is their Softmax."""
        if len(outputs) != 2:
            return None
        producers = self._producers()
        for one, other in (outputs, outputs[::-1]):
            node = producers.get(other.name)
            if node is not None and node.op_type == "Softmax" and node.input[0] == one.name:
                return one
        return None

    def remove_softmax(self, kind: OutputKind | None) -> OutputKind:
        """Remove a Softmax at the end; return the kind of the output values."""
        producers = self._producers()
        users = self._users()
        output = self.graph.output[0]
        path: list[NodeProto] = []
        node = producers.get(output.name)
        while node is not None and node.op_type in {*_MOVES, "Cast"} and len(users[node.input[0]]) == 1:
            path.append(node)
            node = producers.get(node.input[0])
        if node is None or kind == "logits":
            return "logits"
        if node.op_type in {"Sigmoid", "HardSigmoid"}:
            # One probability per class, which cannot come from a Softmax.
            return "probabilities"
        logits = self._logits_of(node, producers)
        if logits is None or (path and len(users[node.output[0]]) > 1):
            return kind or "logits"
        if path:
            last = path[-1]
            last.input[0] = logits
        else:
            output.name = logits
        self._drop_dead_nodes()
        self.changes.append("the Softmax at the end is removed: confidences are computed from the logits")
        return "logits"

    def _logits_of(self, node: NodeProto, producers: dict[str, NodeProto]) -> str | None:
        """Return the name of the tensor whose Softmax ``node`` computes, as one node or as Exp, ReduceSum and Div."""
        if node.op_type == "Softmax":
            axis = _attribute(node, "axis")
            default = -1 if self._opset() >= 13 else 1
            return node.input[0] if (default if axis is None else axis.i) in {-1, 1} else None
        if node.op_type != "Div":
            return None
        exp, total = producers.get(node.input[0]), producers.get(node.input[1])
        is_softmax = (
            exp is not None and exp.op_type == "Exp"
            and total is not None and total.op_type == "ReduceSum" and total.input[0] == exp.output[0]
        )  # fmt: skip
        return exp.input[0] if is_softmax and exp is not None else None

    def fix_output(self) -> None:
        """Make the output float32 N×classes."""
        output = self.graph.output[0]
        kind = output.type.tensor_type
        shape = [_dimension(d) for d in kind.shape.dim] if kind.HasField("shape") else []
        if len(shape) != 2 or not isinstance(shape[1], int):
            shape = self._inferred_shape(output.name) or shape
        if len(shape) > 2 and sum(size != 1 for size in shape[1:]) <= 1:
            name = self._new_name(f"{output.name}_flat")
            self._append("Flatten", output.name, name, axis=1)
            classes = [size for size in shape[1:] if size != 1] or [1]
            self.changes.append(f"the output {output.name} is flattened to N×{classes[0]}")
            shape = [shape[0], classes[0]]
            output.name = name
        is_float = kind.elem_type == self._types.FLOAT
        if not is_float and kind.elem_type in {self._types.DOUBLE, self._types.FLOAT16, self._types.BFLOAT16}:
            name = self._new_name(f"{output.name}_float")
            self._append("Cast", output.name, name, to=self._types.FLOAT)
            self.changes.append(f"the output {output.name} is cast to float32")
            output.name = name
            kind.elem_type = self._types.FLOAT
        if len(shape) == 2:
            before = [_dimension(d) for d in kind.shape.dim] if kind.HasField("shape") else None
            if before != shape:
                _set_shape(output, shape)
                if not any("output" in change for change in self.changes):
                    self.changes.append(f"the output is N×{shape[1]}")

    def _inferred_shape(self, name: str) -> list[int | str | None] | None:
        """Return a tensor's shape for a batch of one, by ONNX's shape inference; the batch axis is left open."""
        from edge.model.onnx_model import without_weights

        light = without_weights(self.proto)
        value = next(value for value in light.graph.input if value.name == self.input.name)
        sizes = [_dimension(d) for d in value.type.tensor_type.shape.dim]
        _set_shape(value, [1, *(size if isinstance(size, int) else 224 for size in sizes[1:])])
        for output in light.graph.output:
            output.type.tensor_type.ClearField("shape")
        try:
            graph = self._onnx.shape_inference.infer_shapes(light, data_prop=True).graph
        except (self._onnx.shape_inference.InferenceError, ValueError):
            return None
        for found in (*graph.output, *graph.value_info):
            if found.name == name and found.type.tensor_type.HasField("shape"):
                shape = [_dimension(d) for d in found.type.tensor_type.shape.dim]
                return ["N", *shape[1:]] if shape else None
        return None

    # ---- input ---------------------------------------------------------------------------------------------------

    def widen(self) -> None:
        """Turn FP16 and BF16 tensors into float32, weights and casts included."""
        half = {self._types.FLOAT16, self._types.BFLOAT16}
        changed = sum(self._widen_graph(graph, half) for graph in _graphs(self.graph))
        for function in self.proto.functions:
            changed += sum(self._widen_node(node, half) for node in function.node)
        if changed:
            self.changes.append("FP16 tensors become float32: the engine decides about the precision of a layer")

    def _widen_graph(self, graph: GraphProto, half: set[int]) -> int:
        changed = sum(self._widen_tensor(item, half) for item in graph.initializer)
        changed += sum(self._widen_node(node, half) for node in graph.node)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type in half:
                value.type.tensor_type.elem_type = self._types.FLOAT
                changed += 1
        return changed

    def _widen_node(self, node: NodeProto, half: set[int]) -> int:
        changed = 0
        for attribute in node.attribute:
            if attribute.name in {"to", "dtype", "output_dtype"} and attribute.i in half:
                attribute.i = self._types.FLOAT
                changed += 1
            if attribute.HasField("t"):
                changed += self._widen_tensor(attribute.t, half)
            changed += sum(self._widen_tensor(item, half) for item in attribute.tensors)
        return changed

    def _widen_tensor(self, tensor: TensorProto, half: set[int]) -> int:
        if tensor.data_type not in half:
            return 0
        values = self._onnx.numpy_helper.to_array(tensor).astype("float32")
        tensor.CopyFrom(self._onnx.numpy_helper.from_array(values, tensor.name))
        return 1

    def fix_input_type(self) -> bool:
        """Make the input float32; return True if it takes unscaled pixel values."""
        kind = self.input.type.tensor_type
        was = kind.elem_type
        if was == self._types.FLOAT:
            return False
        if was == self._types.UINT8 and self._retype(self.input.name):
            kind.elem_type = self._types.FLOAT
            self.changes.append(f"the input {self.input.name} takes float32 instead of uint8 pixel values")
            return True
        if was not in {self._types.UINT8, self._types.DOUBLE}:
            name = self._types.DataType.Name(was).lower() if was else "of no type"
            raise ModelError(
                f"the input {self.input.name} is {name}", where=self.where,
                hint="export with a float32, float16 or uint8 input",
            )  # fmt: skip
        cast = self._new_name(f"{self.input.name}_cast")
        self._replace_uses(self.input.name, cast)
        self._prepend("Cast", self.input.name, cast, to=was)
        kind.elem_type = self._types.FLOAT
        self.changes.append(f"the input {self.input.name} is cast from float32")
        return bool(was == self._types.UINT8)

    def _retype(self, name: str) -> bool:
        """Propagate float32 from the uint8 input to the casts that follow it; return False if a node needs uint8."""
        users = self._users()
        waiting, casts = [name], []
        seen: set[str] = set()
        while waiting:
            tensor = waiting.pop()
            seen.add(tensor)
            if any(value.name == tensor for value in self.graph.output):
                return False
            for node in users[tensor]:
                if node.op_type == "Cast":
                    casts.append(node)
                elif node.op_type in _RETYPED and node.input[0] == tensor:
                    waiting += [output for output in node.output if output]
                else:
                    return False
        for value in self.graph.value_info:
            if value.name in seen:
                value.type.tensor_type.elem_type = self._types.FLOAT
        for node in casts:
            to = _attribute(node, "to")
            if to is not None and to.i == self._types.FLOAT and not self._is_output(node.output[0]):
                self._replace_uses(node.output[0], node.input[0])
                self.graph.node.remove(node)
        return True

    def fix_layout(self) -> None:
        """Make the input N×C×H×W."""
        shape = self._input_shape()
        if shape[1] in {1, 3} or shape[3] not in {1, 3}:
            return
        name = self.input.name
        inner = self._new_name(f"{name}_nhwc")
        self._replace_uses(name, inner)
        _set_shape(self.input, [shape[0], shape[3], shape[1], shape[2]])
        for node in list(self._users()[inner]):
            perm = _attribute(node, "perm")
            if node.op_type == "Transpose" and perm is not None and list(perm.ints) == _TO_NCHW:
                if self._is_output(node.output[0]):
                    continue
                self._replace_uses(node.output[0], name)
                self.graph.node.remove(node)
        if self._users()[inner]:
            self._prepend("Transpose", name, inner, perm=_TO_NHWC)
        self.changes.append("the input is N×3×H×W instead of N×H×W×3" if shape[3] == 3 else "the input is N×1×H×W")

    def fix_channels(self) -> bool:
        """Give a one-channel input three channels; return True if it had one."""
        shape = self._input_shape()
        if shape[1] == 3:
            return False
        if shape[1] != 1:
            if not isinstance(shape[1], int) and self._first_channels() == 3:
                _set_shape(self.input, [shape[0], 3, *shape[2:]])
                self.changes.append("the input has 3 channels")
                return False
            raise ModelError(
                f"the input {self.input.name} is {_shown(shape)}, but images have 3 channels or 1",
                where=self.where,
                hint="export it as N×3×H×W, N×1×H×W, or with the channels last",
            )
        _set_shape(self.input, [shape[0], 3, *shape[2:]])
        users = self._users()[self.input.name]
        weights = {item.name: item for item in self.graph.initializer}
        if len(users) == 1 and users[0].op_type == "Conv" and users[0].input[1] in weights:
            self._fold_luma(users[0], weights[users[0].input[1]])
        else:
            self._insert_luma()
        self.changes.append("the one-channel input is the luma of an RGB image")
        return True

    def _fold_luma(self, node: NodeProto, weight: TensorProto) -> None:
        import numpy as np

        # Exact: the channels are padded with zeros, and the weights of the luma sum to one.
        values = self._onnx.numpy_helper.to_array(weight)
        wide = values * np.asarray(_LUMA, values.dtype).reshape(1, 3, *(1,) * (values.ndim - 2))
        name = self._new_name(f"{weight.name}_luma")
        self.graph.initializer.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(wide), name))
        node.input[1] = name
        if not any(weight.name in other.input for other in self.graph.node):
            self.graph.initializer.remove(weight)

    def _insert_luma(self) -> None:
        import numpy as np

        name = self.input.name
        factors, scaled, luma = (self._new_name(f"{name}_{part}") for part in ("factors", "scaled", "luma"))
        axes = self._new_name(f"{name}_axes")
        helper = self._onnx.numpy_helper
        self.graph.initializer.append(helper.from_array(np.asarray(_LUMA, "float32").reshape(1, 3, 1, 1), factors))
        self._replace_uses(name, luma)
        if self._opset() >= 13:
            self.graph.initializer.append(helper.from_array(np.asarray([1], "int64"), axes))
            total = self._onnx.helper.make_node("ReduceSum", [scaled, axes], [luma], name=luma, keepdims=1)
        else:
            total = self._onnx.helper.make_node("ReduceSum", [scaled], [luma], name=luma, keepdims=1, axes=[1])
        self.graph.node.insert(0, total)
        self.graph.node.insert(0, self._onnx.helper.make_node("Mul", [name, factors], [scaled], name=scaled))

    def _first_channels(self) -> int | None:
        """Return the input channels of the convolution that reads the input."""
        weights = {item.name: item for item in self.graph.initializer}
        for node in self._users()[self.input.name]:
            if node.op_type == "Conv" and node.input[1] in weights:
                return int(weights[node.input[1]].dims[1])
        return None

    def fix_dimensions(self) -> None:
        """Replace -1 and other invalid sizes by a dynamic axis."""
        for value in (self.input, *self.graph.output):
            shape = [_dimension(d) for d in value.type.tensor_type.shape.dim]
            fixed = [("N" if at == 0 else None) if isinstance(d, int) and d < 1 else d for at, d in enumerate(shape)]
            if fixed != shape:
                _set_shape(value, fixed)
                self.changes.append(f"{value.name} is {_shown(fixed)} instead of {_shown(shape)}")

    # ---- the graph -----------------------------------------------------------------------------------------------

    def _opset(self) -> int:
        return max((item.version for item in self.proto.opset_import if item.domain in {"", "ai.onnx"}), default=1)

    def _input_shape(self) -> list[int | str | None]:
        shape = [_dimension(d) for d in self.input.type.tensor_type.shape.dim]
        if len(shape) != 4:
            what = "has no batch axis" if len(shape) == 3 else "is not a batch of images"
            raise ModelError(
                f"the input {self.input.name} {_shown(shape)} {what}", where=self.where, hint="export it as N×3×H×W"
            )
        return shape

    def _producers(self) -> dict[str, NodeProto]:
        return {name: node for node in self.graph.node for name in node.output if name}

    def _users(self) -> defaultdict[str, list[NodeProto]]:
        users: defaultdict[str, list[NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                users[name].append(node)
            for name in _outer_names(node):
                users[name].append(node)
        return users

    def _is_output(self, name: str) -> bool:
        return any(value.name == name for value in self.graph.output)

    def _replace_uses(self, old: str, new: str) -> None:
        for graph in _graphs(self.graph):
            for node in graph.node:
                for at, name in enumerate(node.input):
                    if name == old:
                        node.input[at] = new

    def _new_name(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def _prepend(self, kind: str, source: str, target: str, **attributes: Any) -> None:  # noqa: ANN401
        self.graph.node.insert(0, self._onnx.helper.make_node(kind, [source], [target], name=target, **attributes))

    def _append(self, kind: str, source: str, target: str, **attributes: Any) -> None:  # noqa: ANN401
        self.graph.node.append(self._onnx.helper.make_node(kind, [source], [target], name=target, **attributes))

    def _drop_dead_nodes(self) -> None:
        """Remove nodes and initializers that no output needs."""
        needed = {value.name for value in self.graph.output}
        kept: list[NodeProto] = []
        for node in reversed(self.graph.node):
            if needed & set(node.output):
                kept.append(node)
                needed.update(node.input)
                needed.update(_outer_names(node))
        if len(kept) < len(self.graph.node):
            copies = [self._onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
            del self.graph.node[:]
            self.graph.node.extend(copies)
        dead = [item for item in self.graph.initializer if item.name not in needed]
        for item in dead:
            self.graph.initializer.remove(item)


def _graphs(graph: GraphProto) -> Iterable[GraphProto]:
    """Yield the graph and the subgraphs of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _outer_names(node: NodeProto) -> set[str]:
    """Return the names that a node's subgraphs use; some of them may be defined inside."""
    inner = (graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs) if graph.node)
    return {name for graph in inner for part in _graphs(graph) for one in part.node for name in one.input if name}


def _attribute(node: NodeProto, name: str) -> AttributeProto | None:
    return next((item for item in node.attribute if item.name == name), None)


def _dimension(dimension: Any) -> int | str | None:  # noqa: ANN401
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value)
    return str(dimension.dim_param) or None


def _set_shape(value: ValueInfoProto, shape: Iterable[int | str | None]) -> None:
    target = value.type.tensor_type.shape
    target.ClearField("dim")
    for size in shape:
        dimension = target.dim.add()
        if isinstance(size, int):
            dimension.dim_value = size
        elif size is not None:
            dimension.dim_param = size


def _shown(shape: Iterable[int | str | None]) -> str:
    return "×".join("?" if size is None else str(size) for size in shape) or "of unknown shape"
