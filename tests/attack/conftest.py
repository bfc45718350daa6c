"""Small networks, and a plain way from a query to what an attack takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from verifier.frontends.onnx import OnnxModel, load
from verifier.graph import Builder, Graph
from verifier.ops.linear import Linear
from verifier.ops.movement import Concat, reshape
from verifier.specs.normalise import normalise
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
def compile_query() -> Callable[..., Hand]:
    """A query over one or more networks as a `Hand`: all inputs side by side, atoms as one linear layer."""

    def make(query: Query, *models: OnnxModel) -> Hand:
        problem = normalise(query)
        builder = Builder()
        x = builder.input("x", (problem.inputs,))
        parts, start = [x], 0
        for model in models:
            size = int(np.prod(model.input_shapes[0]))
            select = torch.zeros(size, problem.inputs, dtype=torch.float64)
            select[torch.arange(size), torch.arange(start, start + size)] = 1.0
            own = reshape(builder, builder.add(Linear(select), x), model.input_shapes[0])
            (y,) = builder.include(model.graph, {model.graph.inputs[0]: own})
            parts.append(reshape(builder, y, (int(np.prod(builder.shape(y))),)))
            start += size
        everything = builder.add(Concat(0), *parts)
        weight = torch.zeros(problem.atoms, *builder.shape(everything), dtype=torch.float64)
        weight[torch.from_numpy(problem.rows), torch.from_numpy(problem.cols)] = torch.from_numpy(
            problem.values
        )
        margins = builder.add(Linear(weight, torch.from_numpy(problem.constants)), everything)
        forms = [problem.dnf(i, 100_000) for i in range(problem.cases)]
        depth = max(len(f) for f in forms if f is not None)
        width = max((len(c) for f in forms if f is not None for c in f), default=1)
        clauses = torch.full((problem.cases, depth, width), -1, dtype=torch.int64)
        for i, form in enumerate(forms):
            for j, ids in enumerate(form or []):
                clauses[i, j, : len(ids)] = torch.tensor(ids)
        box = torch.from_numpy(problem.lower), torch.from_numpy(problem.upper)
        return Hand(builder.graph(margins), *box, clauses, torch.from_numpy(problem.strict))

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
