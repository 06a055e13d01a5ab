"""What the double of TensorRT does: a parser, a builder with calibration, and a runtime, on a CPU.

It imitates what was seen of the real ones: the network that the ONNX parser makes, the names that it gives (8.6 leaves
layers unnamed), the order in which a calibrator is asked, when a table is refused, what is logged. ONNX Runtime
computes.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from tests.support.tensorrt import timing_double
from tests.support.tensorrt.double import call_override, create, make

MAGIC = b"double of a plan\n"
_KINDS = {
    "Conv": "CONVOLUTION", "ConvTranspose": "DECONVOLUTION", "Relu": "ACTIVATION", "Clip": "ACTIVATION",
    "Sigmoid": "ACTIVATION", "Add": "ELEMENTWISE", "MaxPool": "POOLING", "AveragePool": "POOLING",
    "GlobalAveragePool": "REDUCE", "Flatten": "SHUFFLE", "Reshape": "SHUFFLE", "Transpose": "SHUFFLE",
    "QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE", "Cast": "CAST", "Concat": "CONCATENATION",
    "BatchNormalization": "SCALE", "Softmax": "SOFTMAX",
}  # fmt: skip
_WORDS = {
    "CONSTANT": "Constant", "MATRIX_MULTIPLY": "Matrix Multiply", "SHUFFLE": "Shuffle", "ELEMENTWISE": "ElementWise",
}  # fmt: skip
_CLASSES = {"CONSTANT": "IConstantLayer", "ELEMENTWISE": "IElementWiseLayer", "ACTIVATION": "IActivationLayer"}
_WEIGHTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_HEADERS = {
    "IInt8EntropyCalibrator2": "EntropyCalibration2", "IInt8MinMaxCalibrator": "MinMaxCalibration",
    "IInt8EntropyCalibrator": "EntropyCalibration",
}  # fmt: skip


class World:
    """The machine that the double pretends to be on, and a diary of what was asked of it.

    ``says``: log lines (severity, text) of the next build. ``fails``: lines of an error; there is no engine then.
    ``no_cuda``: a line; no builder can be made. ``takes``: batches that a calibrator is asked for, None for all.
    ``refuses_table``, ``refuses_cache``, ``prefers_fp32`` (where FP16 is a flag), ``ignores_wishes`` (a layer's own
    precision): as the words say. ``owner``: whose timing caches are its own. ``fuses``: kinds of layers that the engine
    hides in one. ``refuses_by_return``: what it returns says that a timing cache is not used; else only the log does.
    ``hook``: called at every step of a build.
    """

    def __init__(self, version: str, **settings: Any) -> None:
        self.version = version
        self.module: Any = None
        self.dla_cores = 0
        self.fast_fp16 = self.fast_int8 = True
        self.dla_refuses: tuple[str, ...] = ()
        self.fuses: tuple[str, ...] = ()
        self.can_load = True
        self.no_cuda: str | None = None
        self.says: list[tuple[str, str]] = []
        self.fails: list[str] = []
        self.takes: int | None = None
        self.refuses_table = self.refuses_cache = self.prefers_fp32 = self.ignores_wishes = False
        self.owner = version
        self.refuses_by_return = False
        self.parser_flags: list[str] = []
        self.steps = 4
        self.hook: Callable[[str], None] = lambda _phase: None
        self.leaks: list[str] = []
        self.builds: list[Any] = []
        self.deprecations = 0
        for name, value in settings.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.module.__version__.split("."))

    @property
    def names_layers(self) -> bool:
        return self.version == "rtx" or self.numbers[0] >= 10

    @property
    def table_code(self) -> int:
        major, minor, patch = self.numbers[:3]
        return major * (1000 if major < 10 else 10000) + minor * 100 + patch

    def log(self, logger: Any, severity: str, text: str) -> None:
        call_override(logger, "log", getattr(self.module.ILogger, severity), text)


def machine(version: str, **settings: Any) -> Any:
    """The double of ``version`` on a machine with ``settings``; its world is ``module.world``."""
    return make(version, BEHAVIOUR, World(version, **settings))


# builder


def _builder_init(self: Any, logger: Any) -> None:
    world = self._d.world
    if world.no_cuda:
        world.log(logger, "ERROR", world.no_cuda)
        raise TypeError("pybind11::init(): factory function returned nullptr")
    self._d.logger, self._d.network = logger, None
    self._d.properties |= {
        "num_DLA_cores": world.dla_cores,
        "platform_has_fast_fp16": world.fast_fp16,
        "platform_has_fast_int8": world.fast_int8,
    }


def _create_network(self: Any, flags: int = 0) -> Any:
    world = self._d.world
    kinds = world.module.NetworkDefinitionCreationFlag.__members__
    named = {name for name, member in kinds.items() if flags >> int(member) & 1}
    assert flags < 1 << len(kinds), "a creation flag that this version does not have"
    if "EXPLICIT_BATCH" in kinds and world.version == "8.6.1":
        assert "EXPLICIT_BATCH" in named, "TensorRT 8 parses ONNX only into networks with an explicit batch"
    data: dict[str, Any] = {"layers": [], "inputs": [], "outputs": [], "flags": named, "world": world, "proto": None}
    self._d.network = create(world.module, "INetworkDefinition", **data)
    return self._d.network


def _create_config(self: Any) -> Any:
    world = self._d.world
    flags = {"TF32"} & set(world.module.BuilderFlag.__members__)
    config = create(
        world.module, "IBuilderConfig", world=world, flags=flags, pools={}, profiles=[], cache=None, quantization=set(),
        calibration_profile=None, capabilities={}, logger=self._d.logger, network=self._d.network,
    )  # fmt: skip
    config._d.properties |= {"builder_optimization_level": 3, "DLA_core": -1}
    return config


def _create_profile(self: Any) -> Any:
    return create(self._d.world.module, "IOptimizationProfile", shapes={})


def _build(self: Any, *arguments: Any) -> Any:
    network, config = arguments
    world, logger = self._d.world, self._d.logger
    job = _Build(world, logger, network, config)
    world.builds.append(job)
    try:
        return job.run()
    finally:
        job.let_go_of_the_cache()


class _Build:
    """One build: checks, calibration, progress, and a plan."""

    def __init__(self, world: World, logger: Any, network: Any, config: Any) -> None:
        self.world, self.logger, self.network, self.config = world, logger, network, config
        self.flags = set(config._d.flags)
        self.scales: dict[str, float] = {}
        self.asked_batches = 0

    def run(self) -> Any:
        for severity, text in self.world.says:
            self.world.log(self.logger, severity, text)
        problem = self._problem()
        if problem is None and not self._calibrate():
            problem = "Calibration failure occurred with no scaling factors detected."
        if problem is not None:
            self.world.log(self.logger, "ERROR", f"IBuilder::buildSerializedNetwork: Error Code 4: {problem}")
            return None
        if not self._progress():
            text = "IBuilder::buildSerializedNetwork: Error Code 7: BuildCanceled (Build canceled by user)"
            self.world.log(self.logger, "ERROR", text)
            return None
        if self.world.fails:
            for text in self.world.fails:
                self.world.log(self.logger, "ERROR", text)
            return None
        if not self._measured():
            text = "the timing cache has no entry for a tactic, and ERROR_ON_TIMING_CACHE_MISS is set"
            self.world.log(self.logger, "ERROR", f"IBuilder::buildSerializedNetwork: Error Code 10: {text}")
            return None
        shapes = [profile._d.shapes[self.network._d.inputs[0].name] for profile in self.config._d.profiles]
        own_runtime = "VERSION_COMPATIBLE" in self.flags
        head = {
            "version": self.world.version, "layers": self._layers(), "profiles": shapes, "own_runtime": own_runtime,
            "dla_core": self.config.DLA_core,
        }  # fmt: skip
        content = MAGIC + json.dumps(head).encode() + b"\n" + self.network._d.proto
        return _Buffer(self.world, content).made

    def let_go_of_the_cache(self) -> None:
        """The diary keeps the configuration, and must not keep the timing cache alive with it."""
        data = {name: value for name, value in vars(self.config._d).items() if name != "properties"}
        self.cached = data["cache"] is not None
        kept = create(self.world.module, "IBuilderConfig", **{**data, "cache": None})
        kept._d.properties |= self.config._d.properties
        self.config = kept

    def _measured(self) -> bool:
        """Whether every kernel is known or could be measured."""
        cache = self.config._d.cache
        if cache is None:
            return True
        only = "ERROR_ON_TIMING_CACHE_MISS" in self.flags
        names = timing_double.kernel_names(self.network, self.config, self.flags)
        return all(cache._d.kernels.ask(name, only=only) for name in names)

    def _problem(self) -> str | None:
        given = self.network._d.inputs[0]._d.shape
        profiles = self.config._d.profiles
        if -1 in given and not profiles:
            return "Network has dynamic or shape inputs, but no optimization profile has been defined."
        for profile in profiles:
            low, opt, high = profile._d.shapes[self.network._d.inputs[0].name]
            fits = all(
                a <= b <= c and (s in (-1, a) and s in (-1, c))
                for a, b, c, s in zip(low, opt, high, given, strict=True)
            )
            if not fits:
                return "Optimization profile dimensions violate the network's."
        quantized = any(layer._d.kind == "QUANTIZE" for layer in self.network._d.layers)
        calibrator = self.config._d.properties.get("int8_calibrator")
        if "INT8" in self.flags and calibrator is None and not quantized:
            return "Calibrator is missing: INT8 needs one, or Q/DQ layers."
        return None

    def _calibrate(self) -> bool:
        calibrator = self.config._d.properties.get("int8_calibrator")
        if calibrator is None:
            return True
        warn = "Use Implicit batch dimensions support has been removed instead." if self.world.names_layers else None
        size = call_override(calibrator, "get_batch_size", default=-1, deprecated=warn)
        assert isinstance(size, int)
        if self._read_table(calibrator):
            return True
        count = 0
        while self.world.takes is None or count < self.world.takes:
            self.asked_batches += 1
            found = call_override(calibrator, "get_batch", [self.network._d.inputs[0].name])
            if not found:
                break
            assert isinstance(found, list)
            assert all(isinstance(item, int) for item in found)
            self._measure(found[0], size)
            count += 1
        if count:
            call_override(calibrator, "write_calibration_cache", memoryview(self._table(calibrator)))
        return bool(count)

    def _read_table(self, calibrator: Any) -> bool:
        content = call_override(calibrator, "read_calibration_cache")
        if content is None:
            return False
        header, *lines = bytes(content).decode().splitlines()
        kind = next(name for name in _HEADERS if isinstance(calibrator, getattr(self.world.module, name)))
        if self.world.refuses_table or header != f"TRT-{self.world.table_code}-{_HEADERS[kind]}":
            self.world.log(self.logger, "ERROR", "Calibration table does not match calibrator algorithm type.")
            return False
        for line in lines:
            name, _, digits = line.rpartition(": ")
            self.scales[name] = float(np.frombuffer(bytes.fromhex(digits), ">f4")[0])
        return True

    def _measure(self, address: int, batch: int) -> None:
        """Largest magnitude of every tensor, by ONNX Runtime."""
        shape = (batch, *self.config._d.calibration_profile._d.shapes[self.network._d.inputs[0].name][1][1:])
        array = _view(address, shape)
        for name, value in _all_tensors(self.network._d.proto, array).items():
            self.scales[name] = max(self.scales.get(name, 0.0), float(np.abs(value).max()) / 127)

    def _table(self, calibrator: Any) -> bytes:
        kind = next((name for name in _HEADERS if isinstance(calibrator, getattr(self.world.module, name))), None)
        header = f"TRT-{self.world.table_code}-{_HEADERS[kind]}" if kind else self._legacy_header(calibrator)
        lines = [f"{name}: {np.array(scale, '>f4').tobytes().hex()}" for name, scale in self.scales.items()]
        return "".join(f"{line}\n" for line in [header, *lines]).encode()

    def _legacy_header(self, calibrator: Any) -> str:
        numbers = [call_override(calibrator, name) for name in ("get_regression_cutoff", "get_quantile")]
        return "0 " + " ".join(np.array(number, ">f8").tobytes().hex() for number in numbers)

    def _progress(self) -> bool:
        monitor = self.config._d.properties.get("progress_monitor")
        phase, inner, steps = "Building engine", "Timing tactics", self.world.steps
        if monitor is None:
            for _ in range(steps):
                self.world.hook(inner)
                self.world.log(self.logger, "VERBOSE", "a tactic was timed")
            return True
        call_override(monitor, "phase_start", phase, None, 2)
        call_override(monitor, "phase_start", inner, phase, steps)
        going = True
        for step in range(steps):
            self.world.hook(inner)
            answer = call_override(monitor, "step_complete", inner, step, default=False)
            assert isinstance(answer, bool)
            if not answer:
                going = False
                break
        call_override(monitor, "phase_finish", inner)
        call_override(monitor, "phase_finish", phase)
        return going

    def _layers(self) -> list[dict[str, Any]]:
        """Inspector JSON per layer; a weighted layer is INT8 where TensorRT would find it possible."""
        dequantized = {
            t.name for layer in self.network._d.layers if layer._d.kind == "DEQUANTIZE" for t in layer._d.outputs
        }
        found: list[dict[str, Any]] = []
        hidden = False
        for layer in self.network._d.layers:
            kind = layer._d.kind
            if kind == "CONSTANT":
                continue
            if kind in self.world.fuses or (self._on_dla() and _runs_on_dla(self.config, layer)):
                hidden = True
                continue
            tensors = [t.name for t in (*layer._d.inputs, *layer._d.outputs) if t._d.dtype == "FLOAT"]
            implicit = "INT8" in self.flags and bool(self.scales) and all(self.scales.get(n, 0) > 0 for n in tensors)
            explicit = all(t.name in dequantized for t in layer._d.inputs[:1])
            wish = getattr(layer._d.properties.get("precision"), "name", None)
            obeys = wish == "HALF" and "PREFER_PRECISION_CONSTRAINTS" in self.flags and not self.world.ignores_wishes
            runs_int8 = kind in _WEIGHTED and (implicit or explicit) and not obeys
            if "INT8" in self.flags and kind in _WEIGHTED and self.scales and not (implicit or explicit):
                lost = next((n for n in tensors if self.scales.get(n, 0) <= 0), tensors[0])
                text = f"Missing scale and zero-point for tensor {lost}, expect fall back to non-int8 implementation"
                self.world.log(self.logger, "WARNING", text)
            half = ("FP16" in self.flags and not self.world.prefers_fp32) or layer._d.inputs[0]._d.dtype == "HALF"
            datatype = "Int8" if runs_int8 else ("Half" if half else "Float")
            item: dict[str, Any] = {"Name": layer._d.name, "LayerType": f"Cask{kind.title()}"}
            if kind in _WEIGHTED:
                item |= {"LayerType": "CaskConvolution", "ParameterType": "Convolution", "Weights": {"Type": datatype}}
            old = not self.world.version.startswith("11")
            key = "Format/Datatype" if old else "Datatype"
            item["Inputs"] = [{"Name": t.name, key: datatype} for t in layer._d.inputs]
            found.append(item)
        if hidden:
            found.append({"Name": "{ForeignNode[first...last]}", "LayerType": "DLA" if self._on_dla() else "Myelin"})
        return found

    def _on_dla(self) -> bool:
        return getattr(self.config._d.properties.get("default_device_type"), "name", "GPU") == "DLA"


# network and parser


def _parse_file(self: Any, path: str) -> bool:
    proto = onnx.load(path)
    return _parsed(self, proto)


def _parse(self: Any, content: bytes, path: str | None = None) -> bool:
    return _parsed(self, onnx.load_model_from_string(bytes(content)))


def _parser_init(self: Any, network: Any, logger: Any) -> None:
    self._d.network, self._d.logger, self._d.errors = network, logger, []


def _parsed(self: Any, proto: Any) -> bool:
    world, network = self._d.world, self._d.network
    network._d.proto = proto.SerializeToString()
    reader = _Reader(world, network, proto)
    for number, node in enumerate(proto.graph.node):
        if node.op_type in _KINDS or node.op_type in {"Gemm", "Constant", "MatMul"}:
            reader.node(node)
        else:
            self._d.errors.append((number, node.name, node.op_type))
            world.log(self._d.logger, "ERROR", f"ModelImporter.cpp:771: While parsing node number {number}")
    network._d.outputs = [reader.tensors[value.name] for value in proto.graph.output if value.name in reader.tensors]
    return not self._d.errors


class _Reader:
    """Builds the network node by node, as the parser of this version would."""

    def __init__(self, world: World, network: Any, proto: Any) -> None:
        self.world, self.network = world, network
        graph = proto.graph
        self.constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
        self.tensors: dict[str, Any] = {}
        self.types = _types(proto)
        for value in graph.input:
            if value.name not in self.constants:
                dims = value.type.tensor_type.shape.dim
                shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)
                network._d.inputs.append(self._tensor(value.name, shape))

    def node(self, node: Any) -> None:
        if node.op_type == "Constant":
            self.constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type in {"Gemm", "MatMul"}:
            self._gemm(node)
        else:
            operation = {"Relu": "RELU", "Clip": "CLIP", "Sigmoid": "SIGMOID", "Add": "SUM"}.get(node.op_type)
            inputs = [self.tensors[name] for name in node.input if name in self.tensors]
            if _KINDS[node.op_type] == "DEQUANTIZE" and not inputs:
                inputs = [self._constant(node.input[0])]
            self._layer(node.name or node.op_type, _KINDS[node.op_type], inputs, [node.output[0]], operation)

    def _gemm(self, node: Any) -> None:
        weight = self.tensors.get(node.input[1]) or self._constant(node.input[1])
        product = node.output[0] if len(node.input) < 3 else None
        made = self._layer(node.name, "MATRIX_MULTIPLY", [self.tensors[node.input[0]], weight], [product], None)
        if len(node.input) == 3:
            bias = self._constant(node.input[2])
            moved = self._layer("ONNXTRT_Broadcast", "SHUFFLE", [bias], [None], None)
            self._layer(f"{node.name}_1", "ELEMENTWISE", [made[0], moved[0]], [node.output[0]], "SUM")

    def _constant(self, name: str) -> Any:
        return self._layer(name, "CONSTANT", [], [None], None, weights=self.constants[name])[0]

    def _layer(
        self, name: str, kind: str, inputs: list[Any], outputs: list[str | None], operation: str | None, **data: Any
    ) -> list[Any]:
        number = len(self.network._d.layers)
        word = _WORDS.get(kind, kind.title())
        label = name if self.world.names_layers or outputs[0] is not None else f"(Unnamed Layer* {number}) [{word}]"
        made = []
        for output in outputs:
            text = output or f"{label}_output"
            dtype = "INT64" if data.get("weights") is not None and data["weights"].dtype.kind == "i" else None
            made.append(self._tensor(text, (), dtype))
        layer = create(
            self.world.module, "ILayer", world=self.world, name=label, kind=kind, inputs=inputs, outputs=made,
            operation=operation, **data,
        )  # fmt: skip
        self.network._d.layers.append(layer)
        return made

    def _tensor(self, name: str, shape: tuple[int, ...], dtype: str | None = None) -> Any:
        found = create(self.world.module, "ITensor", shape=shape, dtype=dtype or self.types.get(name, "FLOAT"))
        found._d.properties["name"] = name
        self.tensors[name] = found
        return found


def _types(proto: Any) -> dict[str, str]:
    words = {1: "FLOAT", 10: "HALF", 3: "INT8", 7: "INT64", 6: "INT32", 2: "UINT8"}
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {value.name: words.get(value.type.tensor_type.elem_type, "FLOAT") for value in values}


def _error(self: Any, index: int) -> Any:
    number, name, operator = self._d.errors[index]
    world = self._d.world
    return create(world.module, "ParserError", number=number, name=name, operator=operator, world=world)


def _layer_type(self: Any) -> Any:
    module = self._d.world.module
    if type(self).__name__ == "IActivationLayer":
        return getattr(module.ActivationType, self._d.operation)
    return getattr(module.LayerType, self._d.kind)


def _can_run_on_dla(self: Any, layer: Any) -> bool:
    """Ask only with the optimization profile on the config: without it the sizes are wildcards, which no DLA takes."""
    given = layer._d.inputs[0]._d.shape if layer._d.inputs else ()
    assert self._d.profiles or -1 not in given, "no optimization profile yet"
    assert layer._d.kind != "CONSTANT", "a constant is no layer of its own"
    # The real one works with the sizes of the profile; a wildcard without one is refused.
    is_dynamic = any(-1 in given._d.shape for given in self._d.network._d.inputs)
    assert self._d.profiles or not is_dynamic, "asked before the optimization profile was added"
    can = _runs_on_dla(self, layer)
    if not can and getattr(self._d, "logger", None) is not None:
        text = f"{layer._d.name}: {layer._d.kind} is not supported on DLA."
        self._d.world.log(self._d.logger, "WARNING", text)
    return can


def _runs_on_dla(self: Any, layer: Any) -> bool:
    return layer._d.name not in self._d.world.dla_refuses and layer._d.kind != "SOFTMAX"


# config


def _set_flag(self: Any, flag: Any) -> None:
    self._d.flags.add(flag.name)


def _clear_flag(self: Any, flag: Any) -> None:
    self._d.flags.discard(flag.name)


class _Buffer:
    """An IHostMemory over bytes: ``bytes(memory)`` and ``memory.nbytes`` work."""

    def __init__(self, world: World, content: bytes) -> None:
        self.made = create(world.module, "IHostMemory", content=content, world=world)
        type(self.made).__bytes__ = lambda item: item._d.content
        self.made._d.properties["nbytes"] = len(content)


# runtime


def _deserialize(self: Any, *arguments: Any) -> Any:
    (content,) = arguments
    content, world = bytes(content), self._d.world
    if not content.startswith(MAGIC) or not world.can_load:
        text = "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magicTag assertion failed)"
        world.log(self._d.logger, "ERROR", text)
        return None
    listed, _, proto = content.removeprefix(MAGIC).partition(b"\n")
    head = json.loads(listed)
    if head["version"] != world.version:
        text = f"The engine plan file is not compatible with this version of TensorRT, expecting {world.version}"
        world.log(self._d.logger, "ERROR", f"IRuntime::deserializeCudaEngine: Error Code 6: {text}")
        return None
    assert head["dla_core"] in {-1, self.DLA_core}, "the engine would run on another DLA core"
    if head["own_runtime"] and not self.engine_host_code_allowed:
        text = "Cannot deserialize an engine that contains host code: IRuntime::setEngineHostCodeAllowed is not set"
        world.log(self._d.logger, "ERROR", f"IRuntime::deserializeCudaEngine: Error Code 3: {text}")
        return None
    graph = onnx.load_model_from_string(proto).graph
    constants = {item.name for item in graph.initializer}
    names = [value.name for value in graph.input if value.name not in constants]
    engine = create(
        world.module, "ICudaEngine", world=world, layers=head["layers"], profiles=head["profiles"], proto=proto,
        inputs=names,
        outputs=[value.name for value in graph.output], graph=graph,
    )  # fmt: skip
    engine._d.properties["num_io_tensors"] = len(names) + len(graph.output)
    return engine


def _information(self: Any, form: Any) -> str:
    assert form.name == "JSON"
    return json.dumps({"Layers": self._d.engine._d.layers})


def _shape(self: Any, name: str) -> tuple[int, ...]:
    for value in (*self._d.graph.input, *self._d.graph.output):
        if value.name == name:
            dims = value.type.tensor_type.shape.dim
            return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)
    raise AssertionError(name)


def _create_context(self: Any, *_: Any) -> Any:
    world = self._d.world
    return create(world.module, "IExecutionContext", engine=self, world=world, shapes={}, addresses={})


def _execute(self: Any, _stream: int) -> bool:
    """ONNX Runtime between the addresses that were set; the double's device memory is host memory."""
    engine, shapes = self._d.engine, self._d.shapes
    (name,) = engine._d.inputs
    array = _view(self._d.addresses[name], tuple(shapes.get(name) or _shape(engine, name)))
    results = _all_tensors(engine._d.proto, array)
    for output in engine._d.outputs:
        value = np.ascontiguousarray(results[output], np.float32)
        ctypes.memmove(self._d.addresses[output], value.ctypes.data, value.nbytes)
    return True


def _context_shape(self: Any, name: str) -> tuple[int, ...]:
    engine = self._d.engine
    given = self._d.shapes.get(engine._d.inputs[0])
    shape = _shape(engine, name)
    return tuple(given[0] if size < 0 and given else size for size in shape)


def _remember(place: str) -> Callable[..., bool]:
    def keep(self: Any, name: str, value: Any) -> bool:
        getattr(self._d, place)[name] = value
        return True

    return keep


def _view(address: int, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    return np.frombuffer((ctypes.c_float * size).from_address(address), np.float32).reshape(shape).copy()


def _all_tensors(proto: bytes, array: np.ndarray) -> dict[str, np.ndarray]:
    import onnxruntime as ort

    model = onnx.load_model_from_string(proto)
    produced = [name for node in model.graph.node for name in node.output]
    types = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    outputs = {value.name for value in model.graph.output}
    wanted = [name for name in produced if name in outputs or name in types]
    model.graph.output.extend(types[name] for name in wanted if name not in outputs)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name
    values = session.run(wanted, {given: array})
    return {given: array, **dict(zip(wanted, values, strict=True))}


class _Named:
    """A value with a name, for a data type that the version's enumeration may lack."""

    def __init__(self, name: str) -> None:
        self.name = name


BEHAVIOUR: dict[str, Callable[..., Any]] = {
    "Builder.__init__": _builder_init,
    "Builder.create_network": _create_network,
    "Builder.create_builder_config": _create_config,
    "Builder.create_optimization_profile": _create_profile,
    "Builder.build_serialized_network": _build,
    "INetworkDefinition.get_layer": lambda self, index: self._d.layers[index],
    "INetworkDefinition.get_input": lambda self, index: self._d.inputs[index],
    "INetworkDefinition.get_output": lambda self, index: self._d.outputs[index],
    "INetworkDefinition.num_layers": lambda self: len(self._d.layers),
    "INetworkDefinition.num_inputs": lambda self: len(self._d.inputs),
    "INetworkDefinition.num_outputs": lambda self: len(self._d.outputs),
    "ILayer.get_input": lambda self, index: self._d.inputs[index],
    "ILayer.get_output": lambda self, index: self._d.outputs[index],
    "ILayer.num_inputs": lambda self: len(self._d.inputs),
    "ILayer.num_outputs": lambda self: len(self._d.outputs),
    "ILayer.name": lambda self: self._d.name,
    "ILayer.type": _layer_type,
    "IConstantLayer.weights": lambda self: self._d.weights.reshape(-1),
    "IElementWiseLayer.op": lambda self: getattr(self._d.world.module.ElementWiseOperation, self._d.operation),
    "ITensor.dtype": lambda self: _Named(self._d.dtype),
    "ITensor.shape": lambda self: self._d.shape,
    "ITensor.is_shape_tensor": lambda self: False,
    "OnnxParser.__init__": _parser_init,
    "OnnxParser.parse": _parse,
    "OnnxParser.parse_from_file": _parse_file,
    "OnnxParser.set_flag": lambda self, flag: self._d.world.parser_flags.append(flag.name),
    "OnnxParser.num_errors": lambda self: len(self._d.errors),
    "OnnxParser.get_error": _error,
    "ParserError.code": lambda self: self._d.world.module.ErrorCode.UNSUPPORTED_NODE,
    "ParserError.desc": lambda self: "No importer registered for op: " + self._d.operator,
    "ParserError.node": lambda self: self._d.number,
    "ParserError.node_name": lambda self: self._d.name,
    "ParserError.node_operator": lambda self: self._d.operator,
    "IOptimizationProfile.set_shape": lambda self, name, *shapes: self._d.shapes.update({name: shapes}),
    "IBuilderConfig.set_flag": _set_flag,
    "IBuilderConfig.clear_flag": _clear_flag,
    "IBuilderConfig.get_flag": lambda self, flag: flag.name in self._d.flags,
    "IBuilderConfig.set_quantization_flag": lambda self, flag: self._d.quantization.add(flag.name),
    "IBuilderConfig.set_memory_pool_limit": lambda self, pool, size: self._d.pools.update({pool.name: size}),
    "IBuilderConfig.add_optimization_profile": lambda self, item: self._d.profiles.append(item) or 0,
    "IBuilderConfig.set_calibration_profile": lambda self, item: setattr(self._d, "calibration_profile", item) or True,
    "IBuilderConfig.can_run_on_DLA": _can_run_on_dla,
    **timing_double.BEHAVIOUR,
    "IBuilderConfig.set_compute_capability": lambda self, item, index: (
        self._d.capabilities.update({index: item.name}) or True
    ),
    "ITimingCache.serialize": lambda self: _Buffer(self._d.kernels.world, timing_double.serialize(self)).made,
    "Runtime.__init__": lambda self, logger: setattr(self._d, "logger", logger),
    "Runtime.deserialize_cuda_engine": _deserialize,
    "Runtime.engine_header_size": lambda self: 64,
    "Runtime.get_engine_validity": lambda self, content: (self._d.world.module.EngineValidity.VALID, 0),
    "ICudaEngine.create_engine_inspector": lambda self: create(
        self._d.world.module, "EngineInspector", engine=self, world=self._d.world
    ),
    "EngineInspector.get_engine_information": _information,
    "ICudaEngine.get_tensor_name": lambda self, index: [*self._d.inputs, *self._d.outputs][index],
    "ICudaEngine.get_tensor_mode": lambda self, name: getattr(
        self._d.world.module.TensorIOMode, "INPUT" if name in self._d.inputs else "OUTPUT"
    ),
    "ICudaEngine.get_tensor_shape": _shape,
    "ICudaEngine.get_tensor_profile_shape": lambda self, name, index: self._d.profiles[index],
    "ICudaEngine.get_tensor_dtype": lambda self, _name: self._d.world.module.DataType.FLOAT,
    "ICudaEngine.create_execution_context": _create_context,
    "IExecutionContext.set_input_shape": _remember("shapes"),
    "IExecutionContext.get_tensor_shape": _context_shape,
    "IExecutionContext.set_tensor_address": _remember("addresses"),
    "IExecutionContext.execute_async_v3": _execute,
}
