"""Small networks and queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from verifier.frontends.onnx import OnnxModel, load
from verifier.graph import Graph
from verifier.specs.query import Query


@dataclass(frozen=True, eq=False)
class Hand:
    """What an attack needs of a compiled query."""

    graph: Graph
    lower: Tensor
    upper: Tensor
    clauses: Tensor
    strict: Tensor


@pytest.fixture(scope="session")
def compiled() -> Callable[..., Hand]:
    """Make a `Hand` from a graph, boxes [N, n], and clauses as nested lists; no atom is strict unless said."""

    def make(
        graph: Graph, lower, upper, clauses: list[list[list[int]]], strict: list[bool] | None = None
    ) -> Hand:
        atoms = graph.nodes[graph.outputs[0]].numel
        depth = max(len(case) for case in clauses)
        width = max(len(d) for case in clauses for d in case)
        table = torch.full((len(clauses), depth, width), -1, dtype=torch.int64)
        for n, case in enumerate(clauses):
            for d, ids in enumerate(case):
                table[n, d, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        low, high = (torch.as_tensor(x, dtype=torch.float64) for x in (lower, upper))
        return Hand(graph, low, high, table, torch.tensor(strict or [False] * atoms))

    return make


@pytest.fixture(scope="session")
def onnx_mlp() -> Callable[..., OnnxModel]:
    """An ONNX model of Gemm layers with Relu between them, from (weight [out, in], bias [out]) in float32."""

    def make(*layers: tuple[np.ndarray, np.ndarray]) -> OnnxModel:
        from onnx import TensorProto, helper, numpy_helper

        nodes, stored, value = [], [], "x"
        for i, (weight, bias) in enumerate(layers):
            stored += [numpy_helper.from_array(np.asarray(weight, np.float32), f"w{i}")]
            stored += [numpy_helper.from_array(np.asarray(bias, np.float32), f"b{i}")]
            nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"z{i}"], transB=1))
            value = f"z{i}"
            if i + 1 < len(layers):
                nodes.append(helper.make_node("Relu", [value], [f"h{i}"]))
                value = f"h{i}"
        shapes = (1, np.shape(layers[0][0])[1]), (1, np.shape(layers[-1][0])[0])
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes[0])]
        outputs = [helper.make_tensor_value_info(value, TensorProto.FLOAT, shapes[1])]
        graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        return load(model.SerializeToString())

    return make


@pytest.fixture(scope="session")
def spec() -> Callable[..., Query]:
    """A VNN-LIB 1 query from its assertions."""
    from verifier.specs.vnnlib1 import parse

    def make(inputs: int, outputs: int, *assertions: str) -> Query:
        lines = [f"(declare-const X_{i} Real)" for i in range(inputs)]
        lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
        return parse("\n".join([*lines, *(f"(assert {a})" for a in assertions)]), "spec")

    return make
