"""Build an engine from profile, model and table with TensorRT's builder: parsed once, built once.

None of this was run on a Jetson. These parts are tested: the whole path against doubles of eight bindings with
exactly their classes, flags and signatures; loggers, monitors and calibrators against the real bindings; parsing and
building against TensorRT for RTX on a CPU (see ``tests/backends/tensorrt``).
"""

from __future__ import annotations

import contextlib
import warnings as python_warnings
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from edge.backends.interface import BuildRequest, Layers
from edge.backends.tensorrt import (
    builder_config,
    calibrator,
    engine_compatibility,
    environment,
    int8_route,
    layer_report,
    log_diagnosis,
    log_watch,
    onnx_variants,
    rtx_plan,
)
from edge.backends.tensorrt.builder_config import Accelerator, Options
from edge.backends.tensorrt.calibrator import Feed, Feeding, Serving
from edge.backends.tensorrt.environment import Caps, binding_module
from edge.backends.tensorrt.int8_route import Decision
from edge.backends.tensorrt.onnx_variants import Form
from edge.backends.tensorrt.timing_cache import CacheInUse, TimingReport
from edge.errors import DeviceError
from edge.events import Listener, Note, ignore_events
from edge.model import Inspection, onnx_model, weighted_layers
from edge.quantization import Table, float_layers_of, float_only_tensors, table_check


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """A built engine and information about its build.

    ``plan`` is the serialized engine; ``timing_cache`` the serialized cache after the build, None where none was used,
    and ``timing`` how it was used; ``inspection`` the inspector's JSON, None where no GPU could load the engine;
    ``described`` what was made of it, and of the graph that went in. ``flags`` are TensorRT's builder flags that were
    set. ``table`` is what one of the device's own calibrators made, None without a feed.
    """

    plan: bytes
    timing_cache: bytes | None
    timing: TimingReport
    inspection: str | None
    described: Inspection
    decision: Decision
    flags: list[str]
    layers: Layers
    notes: list[str]
    info: dict[str, Any]
    table: Table | None = None


def build(
    request: BuildRequest,
    caps: Caps,
    *,
    timing_cache: bytes | None = None,
    feed: Feed | None = None,
    options: Options | None = None,
    listen: Listener = ignore_events,
    should_stop: Callable[[], bool] = lambda: False,
) -> Built | None:
    """Build the engine for ``request``; return None if ``should_stop`` ended it early.

    Args:
        request: profile, model, precision and, for INT8, the checked table.
        caps: capabilities of the binding.
        timing_cache: a serialized timing cache of this TensorRT and device; None starts an empty one.
        feed: images for one of the device's own calibrators, instead of ``request.table``.
        options: settings besides the profile, and the root for this machine's memory information.
        listen: receives the progress in percent, and warnings before the work starts.
        should_stop: checked after every step if TensorRT reports steps (not on 8.6).

    Raises:
        ModelError: the parser refuses the model; all of its reasons are listed.
        ProfileError: the profile requires something that this TensorRT lacks.
        ArtifactError: TensorRT refuses the table.
        DeviceError: the GPU, its memory, a kernel or a requested unit is missing.
    """
    options = options or Options()
    decision = int8_route.decide(request.profile, request.precision, caps)
    form = _form(request, caps, decision)
    watch = log_watch.BuildWatch(listen=listen, should_stop=should_stop)
    binding = binding_module(caps)
    with log_watch.watching(binding, watch) as logger, _quietly():
        job = _Job(request, caps, decision=decision, form=form, watch=watch, options=options)
        job.prepare(logger, feed)
        job.configure(timing_cache, listen)
        plan = job.run()
        if plan is None:
            return None
        built, cache = job.result(plan, logger), job.cache
        # TensorRT logs the use of the timing cache when it and its users are freed.
        del plan, job
        return built if cache is None else msgspec.structs.replace(built, timing=cache.report())


class _Job:
    """One build, from parser to plan. It owns TensorRT's objects, in the order of their dependencies."""

    def __init__(
        self,
        request: BuildRequest,
        caps: Caps,
        *,
        decision: Decision,
        form: Form,
        watch: log_watch.BuildWatch,
        options: Options,
    ) -> None:
        self.request = request
        self.caps = caps
        self.decision = decision
        self.form = form
        self.watch = watch
        self.options = options
        self.binding = binding_module(caps)
        self.where = str(request.model)
        self.notes = list(form.notes)
        self.info: dict[str, Any] = {}
        self.builder: Any = None
        self.network: Any = None
        self.parser: Any = None
        self.config: Any = None
        self.source: Serving | Feeding | None = None
        self.calibrator: Any = None
        self.monitor: Any = None
        self.cache: CacheInUse | None = None
        self.unscaled: list[str] = []
        self.float_layers: dict[str, str] = {}
        self.unscaled_by_recipe: set[str] = set()
        self.before_fusion = False
        self.accelerator = Accelerator()
        self.inspected = False

    def prepare(self, logger: Any, feed: Feed | None) -> None:  # noqa: ANN401
        """Make the builder, the parsed network, and the calibrator for it."""
        self.builder = self._made(self.binding.Builder, logger)
        builder_config.check_units(self.builder, self.request, self.caps)
        self.network = self.builder.create_network(builder_config.creation_flags(self.binding, self.caps))
        self._parse(logger)
        if feed is not None:
            self.source = Feeding(feed, self.caps)
            self.calibrator = calibrator.make(self.source, feed.algorithm, self.caps)
            self.before_fusion = feed.algorithm in {"entropy", "legacy"}
            self.info["calibrator"] = feed.algorithm
        elif self.decision.route == "implicit":
            self.source = self._serving()
            self.calibrator = calibrator.make(self.source, self.source.table.header.algorithm, self.caps)

    def configure(self, timing_cache: bytes | None, listen: Listener) -> None:
        """Make the builder's configuration, and warn if there is probably not enough memory."""
        build = self.request.profile.build
        here = environment.read(self.options.root)
        shared = self.options.shared_memory
        limits = environment.limits(here, workspace_mib=build.workspace_mib, shared=shared)
        for text in environment.warnings(here, limits, model_bytes=self._model_bytes(), shared=shared):
            self.notes.append(text)
            listen(Note(text, "warning"))
        self.config = self.builder.create_builder_config()
        setup = builder_config.BuilderSetup(
            binding=self.binding, caps=self.caps, request=self.request, decision=self.decision,
            builder=self.builder, network=self.network, config=self.config, options=self.options,
            scaled=self._scaled(), float_layers=self.float_layers,
            calibration_batch=self.source.batch if isinstance(self.source, Feeding) else None, watch=self.watch,
        )  # fmt: skip
        self.accelerator = builder_config.apply(
            setup, limits=limits, calibrator=self.calibrator, before_fusion=self.before_fusion
        )
        self.notes += self.accelerator.notes
        if self.accelerator.layers:
            self.info["dla_layers"] = msgspec.to_builtins(self.accelerator.layers)
        self.info |= {"workspace_mib": limits.workspace_mib, "tactic_dram_mib": limits.tactic_mib}
        if self.caps.progress_monitor:
            self.monitor = log_watch.progress_monitor(self.binding, self.watch)
            self.config.progress_monitor = self.monitor
        if self.request.timing.only:
            builder_config.refuse_misses(setup)
        if self._wants_cache() and self.caps.timing_cache:
            self.cache = CacheInUse(self.config, timing_cache, caps=self.caps, watch=self.watch)

    def run(self) -> Any:  # noqa: ANN401
        """Build and return the plan, or None if stopped.

        Raises:
            EdgeError: the build failed; an exception in a callback has precedence, because it is the cause.
        """
        plan = None
        failure: Exception | None = None
        try:
            plan = self.builder.build_serialized_network(self.network, self.config)
        except (RuntimeError, TypeError, ValueError, MemoryError) as exc:
            failure = exc
        self.watch.raise_kept()
        if self.source is not None:
            self.source.raise_kept()
        if plan is not None:
            return plan
        if self.watch.stopped:
            return None
        if log_diagnosis.cancelled(self.watch.errors):
            raise DeviceError("the build was cancelled", where=self.where)
        raise log_diagnosis.as_error(self.watch.errors, self.watch.recent, where=self.where) from failure

    def result(self, plan: Any, logger: Any) -> Built:  # noqa: ANN401
        """Return the result of the build with its layer counts."""
        content = bytes(plan)
        inspection = self._inspect(content, logger)
        described = self._describe(inspection, content)
        counted = self._layers(described)
        table = self.source.table() if isinstance(self.source, Feeding) else None
        flags = builder_config.set_flags(self.config, self.binding)
        return Built(
            plan=content,
            timing_cache=None if self.cache is None else self.cache.finish(),
            timing=TimingReport(use="off" if self.caps.timing_cache else "no effect"),
            inspection=inspection,
            described=described,
            decision=self.decision,
            flags=flags,
            layers=counted,
            notes=self.notes + log_diagnosis.notes(self.watch.warnings, expected=self.unscaled_by_recipe),
            info=self.info,
            table=table,
        )

    def _wants_cache(self) -> bool:
        return self.request.profile.build.timing_cache and self.request.timing.ask

    def _parse(self, logger: Any) -> None:  # noqa: ANN401
        self.parser = self._made(self.binding.OnnxParser, self.network, logger)
        if self.request.profile.build.dla_core is not None and self.caps.dla_parsing:
            self.parser.set_flag(self.binding.OnnxParserFlag.ADJUST_FOR_DLA)
        if self.form.data is None:
            parsed = self.parser.parse_from_file(self.where)
        else:
            # The path lets the parser find weights that still are outside.
            parsed = self.parser.parse(self.form.data, self.where)
        self.watch.raise_kept()
        if not parsed:
            found = log_diagnosis.problems(
                self.parser, self.caps, lambda: onnx_variants.nodes(self.form.path, self.form.outputs)
            )
            raise log_diagnosis.parser_error(found, where=self.where)

    def _serving(self) -> Serving:
        if self.request.table is None:
            raise DeviceError("INT8 needs a calibration table", hint="edge calibrate")
        dla = self.request.profile.build.dla_core is not None
        table = calibrator.served(self.request.table, self.caps, dla=dla)
        proto = onnx_model.read(self.request.model, self.request.profile.outputs)
        floats = float_layers_of(proto)
        if floats:
            self.float_layers = {layer.name: layer.output for layer in weighted_layers(proto) if layer.name in floats}
            self.unscaled_by_recipe = float_only_tensors(proto, floats)
        completed = calibrator.complete(table, calibrator.read(self.network, self.caps))
        self.info |= {
            "table_header": self.request.table.header.text,
            "served_header": table.header.text,
            "scales_added": len(completed.added),
        }
        if completed.unresolved:
            some = ", ".join(completed.unresolved[:3])
            self.unscaled = completed.unresolved
            text = f"{len(completed.unresolved)} tensors of the parsed network have no scale: {some}"
            self.notes.append(f"{text}; layers at them stay in float")
        bits = {name: bits for name, bits in completed.table.bits.items() if name not in self.unscaled_by_recipe}
        return Serving(Table(table.header, bits), self.caps, batch=self.request.profile.input.batch.opt)

    def _made(self, factory: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
        """Call a factory of the binding; it raises TypeError over a null pointer when CUDA cannot be initialized."""
        try:
            made = factory(*arguments)
        except (TypeError, RuntimeError) as exc:
            self.watch.raise_kept()
            raise log_diagnosis.as_error(self.watch.errors, self.watch.recent, where=self.where) from exc
        return made

    def _inspect(self, plan: bytes, logger: Any) -> str | None:  # noqa: ANN401
        """Return the inspector's JSON. It needs the loaded engine, so a GPU that can run it."""
        reported = len(self.watch.errors)
        engine = None
        runtime = engine_compatibility.start_runtime(self.binding, logger, self.watch)
        if runtime is not None:
            build = self.request.profile.build
            if build.dla_core is not None:
                runtime.DLA_core = build.dla_core
            if build.version_compatible:
                # Such an engine brings its own runtime, which is not run unasked.
                runtime.engine_host_code_allowed = True
            with contextlib.suppress(TypeError, RuntimeError):
                engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            why = log_diagnosis.as_error(self.watch.errors[reported:]).what
            self.notes.append(f"the engine was built, but could not be loaded here for inspection: {why}")
            return None
        kind = self.binding.LayerInformationFormat.JSON
        return str(engine.create_engine_inspector().get_engine_information(kind))

    def _describe(self, inspection: str | None, plan: bytes) -> Inspection:
        """Describe the ONNX graph and, as far as the engine shows them, its layers."""
        nodes = self.form.nodes()
        source = self.caps.title
        lost = {*self.unscaled, *log_diagnosis.unscaled(self.watch.warnings)}
        self.inspected = inspection is not None
        if inspection is None and self.caps.rtx:
            found = rtx_plan.read(plan, source=f"plan of {source}", nodes=nodes)
            self._note_rtx_int8(found)
            return found
        if inspection is None:
            why = "the engine could not be loaded on this machine, so it was not inspected"
            return layer_report.absent(why, source=source, nodes=nodes)
        listed = layer_report.read(inspection, source=f"engine inspector of {source}", nodes=nodes, unscaled=lost)
        return listed or layer_report.absent("the inspector lists no layers", source=source, nodes=nodes)

    def _note_rtx_int8(self, found: Inspection) -> None:
        """Note that INT8 costs kernels on TensorRT for RTX, with the figures of this plan."""
        generated = rtx_plan.generated_kernels(found)
        products = sum(layer.role == "weighted" for layer in found.layers)
        if self.request.precision != "int8" or 2 * generated < products:
            return
        between = found.activation_bytes()
        moved = f", and {between / 1e6:.1f} MB of tensors between layers" if between else ""
        self.notes.append(
            f"INT8 on {self.caps.title}: {generated} generated kernels quantize around {products} convolutions and "
            f"matrix products{moved}. FP16 has bias and activation inside them and is likely faster: edge build "
            "--precision fp16, edge engine diff int8 fp16, edge bench --precision fp16"
        )

    def _layers(self, described: Inspection) -> Layers:
        """Layers by precision: from the engine where it says so, else from the graph where that decides it."""
        counts = described.counts()
        if described.absent and self.decision.route == "implicit":
            raise DeviceError(
                "the engine was built, but its layers cannot be counted, so it is unknown whether it runs in INT8",
                where=self.where,
                hint="build on the device that the engine is for",
            )
        if not described.absent and self.inspected:
            self.info |= {"opaque_layers": counts.opaque, "reformat_layers": counts.reformats}
        is_hidden = counts.opaque or counts.weighted.get("?", 0)
        if described.absent or not self.inspected or (is_hidden and self._is_typed()):
            return self._layers_of_graph()
        precision, on_dla = self.request.precision, self.accelerator.weighted
        found = layer_report.count_layers(described, precision, weighted=self.form.weighted, on_dla=on_dla)
        if found.hidden:
            text = f"{found.hidden} weighted layers are hidden in fused ones and not counted as {precision.upper()}"
            self.notes.append(text)
        return found.layers

    def _layers_of_graph(self) -> Layers:
        """Count the layers of the graph; their precision is known only for a typed network."""
        if self.request.precision != "fp32":
            self.notes.append("layers were counted in the graph, not in the engine, which does not show them all")
        return Layers(
            weighted=self.form.weighted,
            weighted_int8=self.form.quantized,
            weighted_fp16=self.form.weighted - self.form.quantized if self.form.half else 0,
            weighted_unknown=0 if self._is_typed() else self.form.weighted,
            by_type=calibrator.read(self.network, self.caps).by_kind(),
        )

    def _is_typed(self) -> bool:
        """Return True if the graph itself sets the precision of every layer."""
        return self.decision.route == "explicit" or self.form.half or self.request.precision == "fp32"

    def _scaled(self) -> frozenset[str]:
        if not isinstance(self.source, Serving):
            return frozenset()
        bits = self.source.table.bits
        return frozenset(name for name, pattern in bits.items() if table_check.value_code(pattern) is None)

    def _model_bytes(self) -> int:
        return len(self.form.data) if self.form.data is not None else self.form.path.stat().st_size


def _form(request: BuildRequest, caps: Caps, decision: Decision) -> Form:
    outputs = request.profile.outputs
    if decision.route == "explicit":
        if request.table is None:
            raise DeviceError("INT8 needs a calibration table", hint="edge calibrate")
        return onnx_variants.quantized(request.model, request.table, outputs, half_rest=caps.strongly_typed_only)
    if request.precision == "fp16" and caps.strongly_typed_only:
        return onnx_variants.half(request.model, outputs)
    return onnx_variants.plain(request.model, outputs)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppress warnings of TensorRT 10 about features removed in 11; the capabilities already decide what is used."""
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore", DeprecationWarning)
        yield
