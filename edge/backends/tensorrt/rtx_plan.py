"""The kernels of a plan of TensorRT for RTX, read from the plan itself: no GPU and no runtime needed.

A plan that was built with profiling verbosity DETAILED holds a text listing of its program. The form has no
specification; what is known was seen in plans of 1.7.1.116 (FP32, FP16 and INT8 of convolutional networks and a ViT)::

    descriptors {
      tensor={ … dims={ "batch" 32 112 112 } … name="x" … type=half }        sub_tensor={ base="x" … name="x^deref" … }
    }
    main {
      corrltn={ name="/conv/Conv" output={"y" } input={"x" "weights" … } … layers="[ONNX Layer: /conv/Conv]\\x1f[…]" }
      function={ name=__myl_MulAddRoun … input_args={ … } output_args={ … } … layers="…" }
      fully_connected={ … }      runtime_fusion={ name=__myl_FcAdd … layers="…" backbone=gemm }
    }

``corrltn`` is a convolution, ``function`` a kernel that the compiler has generated (pointwise, quantization, moves),
``runtime_fusion`` a matrix product with what follows it; its parts are programs of their own behind ``main``. The rest
(``copy``, ``memset``, ``eq``, …) works out sizes on the host. A listing that does not look like this is not guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from edge.model import Inspection, Layer, LayerTensor, Node, Role, inspection

KNOWN = "1.7"
MAGIC = b"vtrt"

_MAIN = re.compile(rb"\nmain \{\n(.*?)\n\}\n", re.DOTALL)
_OBJECT = re.compile(r'^\s*(\w+)=\{ name="?([^"\s]*)"?([^\n]*)$', re.MULTILINE)
_TENSOR = re.compile(r"^\s*(?:sub_)?tensor=\{([^\n]*)$", re.MULTILINE)
_FIELD = {
    name: re.compile(rf'\b{name}="?([^"\s]*)"?') for name in ("name", "type", "backbone")
}  # fmt: skip
_DIMS = re.compile(r"\bdims=\{ ([^}]*)\}")
_LAYERS = re.compile(r'\blayers="([^"]*)"')
_ONNX = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f_]|\[ONNX Layer: |$)")
_INPUTS = re.compile(r"\binput(?:_args)?=\{([^}]*)\}")
_OUTPUTS = re.compile(r"\boutput(?:_args)?=\{([^}]*)\}")
_KINDS = {
    "corrltn": "convolution", "fully_connected": "fully connected", "function": "generated kernel",
    "runtime_fusion": "fusion", "pooling": "pooling", "softmax": "softmax",
}  # fmt: skip
# Names of generated kernels that only move data: __myl_Move, __myl_ReplConc, __myl_CastTran.
_MOVING = re.compile(r"^__my\w_(?:Move|Cast|Tran|Resh|Repl|Conc)+$")
_TYPES = {"float": "fp32", "half": "fp16", "bfloat16": "bf16", "int64": "int64", "int32": "int32", "bool": "bool"}


def is_plan(content: bytes) -> bool:
    """Return True for a plan of TensorRT for RTX, according to its first bytes."""
    return content.startswith(MAGIC)


def read(plan: bytes, *, source: str = "plan of TensorRT for RTX", nodes: Sequence[Node] = ()) -> Inspection:
    """Describe the kernels of a plan.

    Args:
        plan: the bytes of the engine file.
        source: who made it: product and version.
        nodes: the ONNX nodes that went in; empty where they are not known.

    Returns:
        Its layers; or none, with the reason in ``absent``, where the listing is not there or not understood.
    """
    main = _MAIN.search(plan)
    if main is None:
        return _absent(
            f"the plan has no listing that this edge understands (known: TensorRT for RTX {KNOWN})", source, nodes
        )
    tensors = _tensors(plan[: main.start()].decode("latin-1"))
    layers = [
        _layer(kind, name, rest, tensors, {node.name: node for node in nodes})
        for kind, name, rest in _OBJECT.findall(main[1].decode("latin-1"))
        if kind in _KINDS
    ]
    if not layers or not tensors or not any(layer.nodes for layer in layers):
        return _absent(f"the listing of the plan is not understood (known: TensorRT for RTX {KNOWN})", source, nodes)
    return Inspection(
        format=inspection.FORMAT,
        source=f"listing in the {source}",
        nodes=list(nodes),
        layers=layers,
        ports=[],
        notes=[_summary(layers)],
    )


def generated_kernels(found: Inspection) -> int:
    """The number of kernels that the compiler has generated besides convolutions and matrix products."""
    return sum(layer.kind == "generated kernel" for layer in found.layers)


def _absent(why: str, source: str, nodes: Sequence[Node]) -> Inspection:
    return Inspection(format=inspection.FORMAT, source=source, nodes=list(nodes), layers=[], ports=[], absent=why)


def _tensors(text: str) -> dict[str, LayerTensor]:
    """Tensors of the listing by name, with type and dimensions; a dimension that is open is called N."""
    found = {}
    # Only the part in front of the program: weights before it may hold any bytes.
    for match in _TENSOR.finditer(text, max(text.rfind("\ndescriptors {"), 0)):
        fields = match[1]
        name, kind, dims = _FIELD["name"].search(fields), _FIELD["type"].search(fields), _DIMS.search(fields)
        if name is None:
            continue
        word = kind[1] if kind else ""
        shape = tuple(int(item) if item.isdigit() else "N" for item in dims[1].split()) if dims else None
        found[name[1]] = LayerTensor(name=name[1], precision=_TYPES.get(word, word) or None, shape=shape)
    return found


def _layer(kind: str, name: str, rest: str, tensors: dict[str, LayerTensor], known: dict[str, Node]) -> Layer:
    covered = _LAYERS.search(rest)
    fused = list(dict.fromkeys(_ONNX.findall(covered[1]))) if covered else []
    inputs, outputs = (_listed(pattern, rest, tensors) for pattern in (_INPUTS, _OUTPUTS))
    backbone = _FIELD["backbone"].search(rest)
    is_product = kind in {"corrltn", "fully_connected"} or (kind == "runtime_fusion" and backbone is not None)
    role: Role = "weighted" if is_product else "reformat" if _MOVING.match(name) else "other"
    precisions = [tensor.precision for tensor in inputs if tensor.precision is not None]
    return Layer(
        name=name,
        kind=_KINDS[kind] + (f" ({backbone[1]})" if backbone else ""),
        role=role,
        precision=None if role == "reformat" or not precisions else precisions[0],
        inputs=inputs,
        outputs=outputs,
        nodes=[item for item in fused if not known or item in known],
    )


def _listed(pattern: re.Pattern[str], rest: str, tensors: dict[str, LayerTensor]) -> list[LayerTensor]:
    """The tensors of a list of arguments that hold activations: those that the listing describes in device memory."""
    found = pattern.search(rest)
    names = re.findall(r'"([^"]*)"', found[1]) if found else []
    return [tensors[name] for name in names if name in tensors and tensors[name].shape]


def _summary(layers: Sequence[Layer]) -> str:
    products = sum(layer.role == "weighted" for layer in layers)
    others = len(layers) - products
    return f"{len(layers)} kernels: {products} convolutions and matrix products, {others} generated by the compiler"
