# SPDX-License-Identifier: Apache-2.0
"""What TensorRT reads of an ONNX graph, as a function that lists what it would refuse.

TensorRT itself is not needed, so a graph can be checked where it is exported.

Source: the operator table of TensorRT's ONNX parser for 10.15, and the operator pages Attention and
KVCacheUpdate of the TensorRT documentation. Later versions read more; these rules hold for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

MIN_OPSET, MAX_OPSET = 9, 24

# TensorRT's limits: dimensions of a tensor; K of a ranking.
_MAX_RANK, _MAX_TOP_K = 8, 3839

_FLOAT = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
_INTEGER = {TensorProto.INT32, TensorProto.INT64}
_BOOL = {TensorProto.BOOL}
_INTERFACE = _FLOAT | _INTEGER | _BOOL | {TensorProto.UINT8}

_FLOAT_OPERATORS = """
    Attention BatchNormalization Ceil Clip Conv ConvTranspose Cos Cosh CumSum Einsum Elu Erf Exp
    Floor Gemm GroupNormalization HardSigmoid HardSwish Hardmax IsInf LayerNormalization LeakyRelu
    Log LogSoftmax LpNormalization MatMul PRelu Reciprocal RMSNormalization RotaryEmbedding Round
    Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh TensorScatter ThresholdedRelu
"""
_NUMBER_OPERATORS = """
    Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual
    Max Mean Min Mod Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND
    Shrink Sign SpaceToDepth Sub Sum TopK
"""
_ANY_OPERATORS = """
    Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity
    OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze
    Where
"""
_TYPES: Mapping[str, set[int]] = {
    **dict.fromkeys(_FLOAT_OPERATORS.split(), _FLOAT),
    **dict.fromkeys(_NUMBER_OPERATORS.split(), _FLOAT | _INTEGER),
    **dict.fromkeys(_ANY_OPERATORS.split(), _FLOAT | _INTEGER | _BOOL),
    **dict.fromkeys(("And", "Not", "Or", "Xor"), _BOOL),
    **dict.fromkeys(("Cast", "CastLike"), _INTERFACE),
}

# Inputs that hold data, where the first alone would say too little; the rest are indices.
_DATA_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Attention": (0, 1, 2),
    "OneHot": (2,),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "TensorScatter": (0, 1),
    "Where": (1, 2),
}

# Inputs that must be known when the engine is built.
_CONSTANT_INPUTS: Mapping[str, Mapping[int, str]] = {
    "CumSum": {1: "axis"},
    "OneHot": {1: "depth"},
    "Squeeze": {1: "axes"},
    "Unsqueeze": {1: "axes"},
    **{name: {1: "axes"} for name in _NUMBER_OPERATORS.split() if name.startswith("Reduce")},
}


@dataclass(frozen=True)
class _Value:
    """A tensor of the graph: element type, and dimensions (None: dynamic), or no shape at all."""

    type: int
    shape: tuple[int | None, ...] | None


class _Graph:
    """A model, and what is known of its values."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = shape_inference.infer_shapes(model).graph
        self.nodes: Sequence[onnx.NodeProto] = graph.node
        self.inputs = {value.name for value in graph.input}
        self.outputs = {value.name for value in graph.output}
        self.values = {
            value.name: _value(value.type.tensor_type)
            for value in (*graph.input, *graph.output, *graph.value_info)
        }
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        for name, tensor in self.constants.items():
            self.values[name] = _Value(tensor.data_type, tuple(tensor.dims))

    def value(self, name: str) -> _Value:
        return self.values.get(name, _Value(TensorProto.UNDEFINED, None))

    def input(self, node: onnx.NodeProto, index: int) -> _Value | None:
        """An input of a node; None if it is left out."""
        name = node.input[index] if index < len(node.input) else ""
        return self.value(name) if name else None


def violations(model: onnx.ModelProto) -> list[str]:
    """What TensorRT's ONNX parser would refuse, one sentence each; empty if it reads the graph.

    Parameters
    ----------
    model
        With or without its weights loaded; not changed.

    Examples
    --------
    >>> from onnx import helper
    >>> x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2]) for n in "xy")
    >>> node = helper.make_node("Det", ["x"], ["y"], name="d")
    >>> graph = helper.make_graph([node], "g", [x], [y])
    >>> violations(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)]))
    ["Det 'd': the operator must be one that TensorRT reads"]
    """
    found = list(_model_violations(model))
    graph = _Graph(model)
    for name in sorted(graph.inputs | graph.outputs):
        found += [f"tensor {name!r}: {text}" for text in _interface_violations(graph.value(name))]
    for node in graph.nodes:
        found += [f"{node.op_type} {node.name!r}: {text}" for text in _violations(graph, node)]
    return found


def _model_violations(model: onnx.ModelProto) -> Iterator[str]:
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            yield f"model: operators must be of the ONNX domain, got {opset.domain!r}"
        elif not MIN_OPSET <= opset.version <= MAX_OPSET:
            yield f"model: opset must be in [{MIN_OPSET}, {MAX_OPSET}], got {opset.version}"
    if model.functions:
        yield f"model: functions must be inlined, got {model.functions[0].name!r}"


def _interface_violations(value: _Value) -> Iterator[str]:
    if value.type not in _INTERFACE:
        yield f"the type must be one of {_names(_INTERFACE)}, got {_name(value.type)}"
    if value.shape is None or len(value.shape) > _MAX_RANK:
        yield f"the shape must be known, of at most {_MAX_RANK} dimensions, got {value.shape}"


def _violations(graph: _Graph, node: onnx.NodeProto) -> Iterator[str]:
    if node.op_type not in _TYPES:
        yield "the operator must be one that TensorRT reads"
        return
    yield from _type_violations(graph, node)
    for index, name in _CONSTANT_INPUTS.get(node.op_type, {}).items():
        if index < len(node.input) and node.input[index] and not _constant(graph, node, index):
            yield f"{name} must be constant"
    if node.op_type in _RULES:
        yield from _RULES[node.op_type](graph, node)


def _type_violations(graph: _Graph, node: onnx.NodeProto) -> Iterator[str]:
    allowed = _TYPES[node.op_type]
    names = [node.input[i] for i in _DATA_INPUTS.get(node.op_type, (0,)) if i < len(node.input)]
    if node.op_type in ("Constant", "ConstantOfShape", "Cast", "Range"):
        names = [*names[: node.op_type == "Cast"], node.output[0]]
    for name in names:
        if graph.value(name).type not in allowed:
            yield f"the type must be one of {_names(allowed)}, got {_name(graph.value(name).type)}"


def _attention(graph: _Graph, node: onnx.NodeProto) -> Iterator[str]:
    names = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
    given = dict(zip(names, node.input, strict=False))
    for name in names[4:]:
        if given.get(name):
            yield f"{name} must be left out"
    if any(node.output[1:]):
        yield "only the first output must be used"
    attributes = _attributes(node)
    for name in ("softcap", "qk_matmul_output_mode"):
        if attributes.get(name):
            yield f"{name} must be absent, got {attributes[name]}"
    tensors = {name: graph.value(given[name]) for name in names[:4] if given.get(name)}
    for name, tensor in tensors.items():
        if tensor.shape is None or len(tensor.shape) != 4:
            yield f"{name} must have 4 dimensions, got {tensor.shape}"
    widths = [t.shape[-1] for n, t in tensors.items() if t.shape and n != "attn_mask"]
    if len({width for width in widths if width is not None}) > 1:
        yield f"heads of Q, K and V must have one width, got {widths}"
    if "attn_mask" in tensors:
        mask, query = tensors["attn_mask"].type, tensors["Q"].type
        if mask not in (TensorProto.BOOL, query):
            yield f"attn_mask must be BOOL or of Q's type, got {_name(mask)}"
        if attributes.get("is_causal"):
            yield "is_causal must be 0 beside a mask, got 1"


def _tensor_scatter(graph: _Graph, node: onnx.NodeProto) -> Iterator[str]:
    attributes = _attributes(node)
    if attributes.get("axis", -2) != -2:
        yield f"axis must be -2, got {attributes['axis']}"
    if attributes.get("mode", b"linear") != b"linear":
        yield f"mode must be linear, got {attributes['mode'].decode()}"
    for name, tensor in (("past_cache", graph.input(node, 0)), ("update", graph.input(node, 1))):
        if tensor is None or tensor.shape is None or len(tensor.shape) != 4:
            yield f"{name} must have 4 dimensions, got {tensor and tensor.shape}"
    if node.input[0] not in graph.inputs:
        yield "past_cache must be an input of the graph"
    if node.output[0] not in graph.outputs:
        yield "the result must be an output of the graph"
    shape = graph.value(node.input[0]).shape
    if shape is not None and len(shape) == 4 and shape[2] is None:
        yield "the rows of past_cache must be a fixed number"
    index = graph.input(node, 2)
    if index is None or index.type not in _INTEGER:
        yield f"write_indices must be {_names(_INTEGER)}, got {_name(index.type if index else 0)}"


def _top_k(graph: _Graph, node: onnx.NodeProto) -> Iterator[str]:
    if _attributes(node).get("sorted", 1) != 1:
        yield "sorted must be 1, got 0"
    count = _constant(graph, node, 1)
    if count is None:
        yield f"K must be constant, for it to be known that it is at most {_MAX_TOP_K}"
    elif (value := int(numpy_helper.to_array(count).reshape(-1)[0])) > _MAX_TOP_K:
        yield f"K must be at most {_MAX_TOP_K}, got {value}"


def _pow(graph: _Graph, node: onnx.NodeProto) -> Iterator[str]:
    base, exponent = (graph.value(name).type for name in node.input)
    if base != exponent:  # one type for both sides in a strongly typed network
        yield f"base and exponent must have one type, got {_name(base)} and {_name(exponent)}"


def _layer_normalization(graph: _Graph, node: onnx.NodeProto) -> Iterator[str]:
    if any(node.output[1:]):
        yield "only the first output must be used"


def _scatter_nd(graph: _Graph, node: onnx.NodeProto) -> Iterator[str]:
    if (reduction := _attributes(node).get("reduction", b"none")) != b"none":
        yield f"reduction must be none, got {reduction.decode()}"


def _rotary_embedding(graph: _Graph, node: onnx.NodeProto) -> Iterator[str]:
    positions = graph.input(node, 3)
    if positions is not None and positions.type != TensorProto.INT64:
        yield f"position_ids must be INT64, got {_name(positions.type)}"


def _eye_like(graph: _Graph, node: onnx.NodeProto) -> Iterator[str]:
    shape = graph.value(node.input[0]).shape
    if shape is None or None in shape:
        yield f"the shape must be fixed, got {shape}"


_RULES: Mapping[str, Callable[[_Graph, onnx.NodeProto], Iterator[str]]] = {
    "Attention": _attention,
    "EyeLike": _eye_like,
    "LayerNormalization": _layer_normalization,
    "Pow": _pow,
    "RotaryEmbedding": _rotary_embedding,
    "ScatterND": _scatter_nd,
    "TensorScatter": _tensor_scatter,
    "TopK": _top_k,
}


def _value(tensor: onnx.TypeProto.Tensor) -> _Value:
    if not tensor.HasField("shape"):
        return _Value(tensor.elem_type, None)
    return _Value(
        tensor.elem_type,
        tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim),
    )


def _constant(graph: _Graph, node: onnx.NodeProto, index: int) -> onnx.TensorProto | None:
    return graph.constants.get(node.input[index]) if index < len(node.input) else None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _name(type: int) -> str:
    return str(TensorProto.DataType.Name(type))


def _names(types: set[int]) -> str:
    return ", ".join(map(_name, sorted(types)))
