# SPDX-License-Identifier: Apache-2.0
"""The rules of TensorRT's ONNX parser: every exported kind keeps them, and breaking one is seen."""

from __future__ import annotations

import sys

import fake_tensorrt
import onnx
import onnx.parser
import pytest
from exported_models import IN_PLACE, exported
from onnx import TensorProto, helper

from treespec.export.tensorrt_rules import violations
from treespec.export.to_tensorrt import engine_spec, network_graph

_ROWS = "the rows of past_cache must be a fixed number"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """``network(name)``: the graph that TensorRT is given of an export, without its extra marks."""
    known: dict[str, onnx.ModelProto] = {}

    def make(name: str) -> onnx.ModelProto:
        if name not in known:
            folder = exported(name, tmp_path_factory)
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(sys.modules, "tensorrt", fake_tensorrt.FakeTensorRT())
                spec = engine_spec(folder, gpu=fake_tensorrt.GPU)
            known[name] = network_graph(folder, spec)
        copy = onnx.ModelProto()
        copy.CopyFrom(known[name])
        return copy

    return make


def nodes(model, kind):
    return [node for node in model.graph.node if node.op_type == kind]


# --- what we export ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (" in " in n)) for n in IN_PLACE]
)
def test_an_export_breaks_no_rule_once_its_capacity_is_fixed(name, network, tmp_path_factory):
    folder = exported(name, tmp_path_factory)
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    found = violations(graph)
    assert len(found) == len(nodes(graph, "TensorScatter")) > 0
    assert {text.split(": ")[1] for text in found} == {_ROWS}
    fixed = network(name)
    assert violations(fixed) == []
    assert [a.name for n in nodes(fixed, "Attention") for a in n.attribute].count(
        "TRT_decomposable"
    ) == len(nodes(fixed, "Attention"))


def test_the_rules_do_not_change_the_model(network):
    model = network("target")
    before = model.SerializeToString()
    violations(model)
    assert model.SerializeToString() == before


# --- a control for every rule ------------------------------------------------------------------


def set_attribute(kind, name, value):
    def mutate(model):
        node = nodes(model, kind)[0]
        for one in [a for a in node.attribute if a.name == name]:
            node.attribute.remove(one)
        node.attribute.append(helper.make_attribute(name, value))

    return mutate


def past_key(model):
    node = nodes(model, "Attention")[0]
    node.input.extend([node.input[1], node.input[2]])


def lengths_of_keys(model):
    node = nodes(model, "Attention")[0]
    node.input.extend(["", "", "write_index"])


def present_key(model):
    nodes(model, "Attention")[0].output.extend(["present_key"])


def mask_of_integers(model):
    retype(model, "attention_mask", TensorProto.INT64)


def mask_of_another_precision(model):
    retype(model, "attention_mask", TensorProto.FLOAT16)


def mask_of_three_dimensions(model):
    (mask,) = [v for v in model.graph.input if v.name == "attention_mask"]
    del mask.type.tensor_type.shape.dim[1]


def retype(model, name, type):
    (value,) = [v for v in model.graph.input if v.name == name]
    value.type.tensor_type.elem_type = type


def values_wider_than_keys(model):
    for value in (*model.graph.input, *model.graph.output):
        if value.name in ("cache_values_0", "present_values_0"):
            value.type.tensor_type.shape.dim[3].dim_value = 12
    known = [v for v in model.graph.value_info if v.name == "present_values_0"]
    assert not known


def cache_from_inside(model):
    node = nodes(model, "TensorScatter")[0]
    extra = helper.make_node("Identity", [node.input[0]], ["copied"], name="copy")
    node.input[0] = "copied"
    model.graph.node.insert(0, extra)


def result_inside_only(model):
    name = nodes(model, "TensorScatter")[0].output[0]
    (value,) = [v for v in model.graph.output if v.name == name]
    model.graph.output.remove(value)


def float_index(model):
    retype(model, "write_index", TensorProto.FLOAT)


def no_index(model):
    nodes(model, "TensorScatter")[0].input.pop()


def dynamic_rows(model):
    (value,) = [v for v in model.graph.input if v.name == "cache_keys_0"]
    value.type.tensor_type.shape.dim[2].dim_param = "rows"


def flat_cache(model):
    (value,) = [v for v in model.graph.input if v.name == "cache_keys_0"]
    del value.type.tensor_type.shape.dim[3]


def opset_25(model):
    model.opset_import[0].version = 25


def other_domain(model):
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def local_function(model):
    model.functions.append(
        helper.make_function("local", "F", ["x"], ["y"], [], [helper.make_opsetid("", 24)])
    )


def double_input(model):
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.DOUBLE, [1]))


def unknown_rank(model):
    (value,) = [v for v in model.graph.output if v.name == "logits"]
    value.type.tensor_type.ClearField("shape")
    for one in [v for v in model.graph.node if "logits" in v.output]:
        one.op_type, one.domain = "Unheard", "com.example"
    other_domain(model)


_MUTATIONS = {
    past_key: "past_key must be left out",
    lengths_of_keys: "nonpad_kv_seqlen must be left out",
    present_key: "only the first output must be used",
    set_attribute("Attention", "softcap", 30.0): "softcap must be absent, got 30.0",
    set_attribute("Attention", "qk_matmul_output_mode", 1): "qk_matmul_output_mode must be absent",
    set_attribute("Attention", "is_causal", 1): "is_causal must be 0 beside a mask, got 1",
    mask_of_integers: "attn_mask must be BOOL or of Q's type, got INT64",
    mask_of_another_precision: "attn_mask must be BOOL or of Q's type, got FLOAT16",
    mask_of_three_dimensions: "attn_mask must have 4 dimensions",
    values_wider_than_keys: "heads of Q, K and V must have one width, got [8, 8, 12]",
    set_attribute("TensorScatter", "axis", -3): "axis must be -2, got -3",
    set_attribute("TensorScatter", "mode", "circular"): "mode must be linear, got circular",
    cache_from_inside: "past_cache must be an input of the graph",
    result_inside_only: "the result must be an output of the graph",
    float_index: "write_indices must be INT32, INT64, got FLOAT",
    no_index: "write_indices must be INT32, INT64, got UNDEFINED",
    dynamic_rows: _ROWS,
    flat_cache: "past_cache must have 4 dimensions",
    opset_25: "opset must be in [9, 24], got 25",
    other_domain: "operators must be of the ONNX domain, got 'com.example'",
    local_function: "functions must be inlined, got 'F'",
    double_input: "tensor 'more': the type must be one of",
    unknown_rank: "tensor 'logits': the shape must be known",
}


@pytest.mark.parametrize(
    "mutate, message", _MUTATIONS.items(), ids=[m[:40] for m in _MUTATIONS.values()]
)
def test_a_broken_rule_is_named(mutate, message, network):
    model = network("target")
    mutate(model)
    assert any(message in text for text in violations(model)), violations(model)


# Graphs of a single operator; those with an empty message are the same, within the rules.
_OPERATORS = [
    ("float[2] x", "float[2] y", "y = Det(x)", "must be one that TensorRT reads"),
    ("double[2] x", "double[2] y", "y = Sin(x)", "must be one of FLOAT, FLOAT16, BFLOAT16"),
    ("float[2] x", "float[2] y", "y = Sin(x)", ""),
    ("int64[2] x", "int64[2] y", "y = Neg(x)", ""),
    ("bool[2] x", "bool[2] y", "y = Not(x)", ""),
    ("int64[2] x", "double[2] y", "y = Cast<to=11>(x)", "got DOUBLE"),
    ("int64[2] x", "float[2] y", "y = Cast<to=1>(x)", ""),
    ("float[2] x, int64[2] e", "float[2] y", "y = Pow(x, e)", "base and exponent must have one"),
    ("float[2] x, float[2] e", "float[2] y", "y = Pow(x, e)", ""),
    (
        "float[5000] x",
        "float[k] v, int64[k] i",
        "k = Constant<value=int64[1]{4000}>() v, i = TopK(x, k)",
        "K must be at most 3839, got 4000",
    ),
    (
        "float[5000] x",
        "float[k] v, int64[k] i",
        "k = Constant<value=int64[1]{9}>() v, i = TopK<sorted=0>(x, k)",
        "sorted must be 1",
    ),
    (
        "float[5000] x",
        "float[k] v, int64[k] i",
        "k = Constant<value=int64[1]{9}>() v, i = TopK(x, k)",
        "",
    ),
    ("float[9] x, int64[1] k", "float[k] v, int64[k] i", "v, i = TopK(x, k)", "K must be constant"),
    ("float[2, 3] x, int64[1] a", "float[1, 3] y", "y = ReduceSum(x, a)", "axes must be constant"),
    (
        "float[2, 3] x",
        "float[1, 3] y",
        "a = Constant<value=int64[1]{0}>() y = ReduceSum(x, a)",
        "",
    ),
    ("float[2] x, int64[1] a", "float[1, 2] y", "y = Unsqueeze(x, a)", "axes must be constant"),
    ("float[1, 2] x, int64[1] a", "float[2] y", "y = Squeeze(x, a)", "axes must be constant"),
    ("float[2] x, int64 a", "float[2] y", "y = CumSum(x, a)", "axis must be constant"),
    ("int64[2] x, int64 d, float[2] v", "float[2, d] y", "y = OneHot(x, d, v)", "depth must be"),
    (
        "float[2] x, float[2] s",
        "float[2] y, float[1] m",
        "y, m = LayerNormalization(x, s)",
        "only the first output must be used",
    ),
    (
        "float[2] x, int64[1, 1] i, float[1] u",
        "float[2] y",
        'y = ScatterND<reduction="add">(x, i, u)',
        "reduction must be none, got add",
    ),
    ("float[n, 2] x", "float[n, 2] y", "y = EyeLike(x)", "the shape must be fixed"),
    (
        "float[1, 2, 3, 8] x, float[9, 4] c, float[9, 4] s, int32[1, 3] p",
        "float[1, 2, 3, 8] y",
        "y = RotaryEmbedding(x, c, s, p)",
        "position_ids must be INT64, got INT32",
    ),
    ("float[1,1,1,1,1,1,1,1,1] x", "float[1,1,1,1,1,1,1,1,1] y", "y = Sin(x)", "at most 8"),
    (
        "bool[1] c, double[2] x",
        "double[2] y",
        "y = Where(c, x, x)",
        "Where '': the type must be one of",
    ),
]


@pytest.mark.parametrize("inputs, outputs, body, message", _OPERATORS)
def test_an_operator_is_read_or_refused_with_the_rule(inputs, outputs, body, message):
    text = f'<ir_version: 10, opset_import: ["": 24]> g ({inputs}) => ({outputs}) {{ {body} }}'
    found = violations(onnx.parser.parse_model(text))
    if message:
        assert any(message in one for one in found), found
    else:
        assert found == []
