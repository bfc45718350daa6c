"""The Jacobian of a network as a network of its own: a graph, and an ONNX file that properties can speak of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from verifier.errors import ModelError, UnsupportedError
from verifier.frontends import onnx as onnx_frontend
from verifier.frontends import replay
from verifier.frontends.agreement import disagreements
from verifier.frontends.onnx_write import write
from verifier.graph import Builder, Graph, Value
from verifier.jacobian.jumps import may_jump
from verifier.jacobian.objective import repeated
from verifier.ops.arithmetic import add, scale_shift
from verifier.ops.linear import Linear
from verifier.ops.movement import permute, reshape, take
from verifier.ops.select import concat
from verifier.transforms.composites import write_out
from verifier.transforms.differentiate import differentiate, push_forward

OUTPUT = "jacobian"
DESCRIPTION = (
    "Derivatives of a network as a network. At a kink each slope is that of its left side, as in automatic "
    "differentiation: one of the generalised derivatives that the chain rule gives."
)
SAMPLES = 8
"""Points at which a file is held against automatic differentiation."""


@dataclass(frozen=True, eq=False)
class Exported:
    """`data` is an ONNX file with the network's own inputs and one output "jacobian" [rows, columns]: the derivative of
    `rows[r]` in `columns[c]`, in words, is its element r * columns + c. `exact` where float32 holds all numbers that
    the derivatives are made from; otherwise these are rounded there, and the file is the Jacobian of about the
    network."""

    data: bytes = field(repr=False)
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    exact: bool

    def entries(self) -> list[tuple[str, str]]:
        """What the file's outputs are, in order: ("Y_1", "d Y_0 / d X_1")."""
        pairs = [(row, column) for row in self.rows for column in self.columns]
        return [(f"Y_{k}", f"d {row} / d {column}") for k, (row, column) in enumerate(pairs)]


def export(
    graph: Graph, names: Sequence[str], rows: Tensor, labels: Sequence[str], columns: Sequence[int]
) -> Exported:
    """The Jacobian that `jacobian` makes of a graph in float64, whose inputs have these names, as an ONNX file.

    The file is read back and compared with onnxruntime, and with automatic differentiation of `graph`. Raises
    UnsupportedError where something has no derivative or no form in ONNX, ModelError where the two disagree.
    """
    name = OUTPUT
    while name in names:
        name += "_"
    made = write(jacobian(graph, rows, columns), names, [name], DESCRIPTION)
    model = onnx_frontend.load(made.data)
    replay.check(model)
    points = [torch.from_numpy(p).double() for p in replay.random_points(model, SAMPLES, 1)]
    truth = _differentiated(graph, rows, columns, points)
    known = truth.flatten(1).isfinite().all(1)
    points, truth = [p[known] for p in points], truth[known]
    if len(truth) and disagreements(model.graph, points, [truth], float(np.finfo(np.float32).eps))[0] > 1:
        raise ModelError(
            "The Jacobian that was written disagrees with automatic differentiation of the network on random inputs, "
            "which is a bug of verifier: please report it with the model."
        )
    return Exported(made.data, tuple(labels), tuple(f"X_{k}" for k in columns), made.exact)


def _differentiated(graph: Graph, rows: Tensor, columns: Sequence[int], points: list[Tensor]) -> Tensor:
    """rows @ f differentiated by torch, [N, R, C]."""
    points = [p.clone().requires_grad_(True) for p in points]
    with torch.enable_grad():
        value = graph.evaluate(points)[0].flatten(1) @ rows.to(graph.dtype).T
        parts = []
        for row in value.unbind(1):
            found = torch.autograd.grad(row.sum(), points, retain_graph=True, materialize_grads=True)
            parts.append(torch.cat([t.flatten(1) for t in found], 1)[:, list(columns)])
    return torch.stack(parts, 1).detach()


def jacobian(graph: Graph, rows: Tensor, columns: Sequence[int]) -> Graph:
    """The inputs of `graph` to the derivatives [R, C] of rows @ f, `rows` [R, n_out] and f its first output, flattened,
    in the input elements `columns` (all inputs one after another).

    Written by rows or by columns, whichever are fewer. Slopes of piecewise linear functions are `Step`s: their value at
    a kink is one of the generalised derivatives that the chain rule gives, and their bounds hold for all of these.
    Numbers of the graph stay as they are: nothing is fused.
    Raises UnsupportedError where an operator has no derivative, or may jump.
    """
    written = write_out(graph)
    jumps = [n for i, n in enumerate(written.nodes) if i in written.ancestors(written.outputs[0])]
    jumps = [n for n in jumps if may_jump(n.op)]
    if jumps:
        why = "it may jump, and where a function jumps its derivative says nothing"
        raise UnsupportedError([(n.source or n.name, type(n.op).__name__, 0, why) for n in jumps])
    by_rows = len(rows) <= len(columns)
    made = _by_rows(graph, rows, columns) if by_rows else _by_columns(graph, rows, columns)
    return made.to(graph.dtype)


def _by_rows(graph: Graph, rows: Tensor, columns: Sequence[int]) -> Graph:
    pulled = differentiate(graph, folded=False)
    builder, feed = _copied(pulled, pulled.inputs[:-1])
    index = torch.tensor(list(columns), dtype=torch.int64)
    seed = pulled.inputs[-1:]
    held = [(builder.constant(row.view(pulled.nodes[seed[0]].shape)),) for row in rows.to(graph.dtype)]
    found = []
    for parts in repeated(builder, pulled, feed, seed, held):
        whole = concat(builder, [reshape(builder, part, (-1,)) for part in parts], 0)
        found.append(reshape(builder, take(builder, whole, lambda t: t[index]), (1, len(columns))))
    return _finished(builder, concat(builder, found, 0), feed)


def _by_columns(graph: Graph, rows: Tensor, columns: Sequence[int]) -> Graph:
    pushed = push_forward(graph, folded=False)
    half = len(pushed.inputs) // 2
    builder, feed = _copied(pushed, pushed.inputs[:half])
    tangents = pushed.inputs[half:]
    shapes = [pushed.nodes[i].shape for i in tangents]
    sizes = [math.prod(s) for s in shapes]
    held = []
    for column in columns:
        unit = torch.zeros(sum(sizes), dtype=graph.dtype)
        unit[column] = 1.0
        parts = zip(unit.split(sizes), shapes, strict=True)
        held.append([builder.constant(part.view(shape)) for part, shape in parts])
    found = []
    for (whole,) in repeated(builder, pushed, feed, tangents, held):
        chosen = builder.add(Linear(rows.to(graph.dtype)), reshape(builder, whole, (-1,)))
        found.append(reshape(builder, chosen, (1, len(rows))))
    return _finished(builder, permute(builder, concat(builder, found, 0), (1, 0)), feed)


def _copied(graph: Graph, inputs: Sequence[int]) -> tuple[Builder, dict[int, Value]]:
    builder = Builder()
    return builder, {i: builder.input(graph.nodes[i].name, graph.nodes[i].shape) for i in inputs}


def _finished(builder: Builder, value: Value, feed: dict[int, Value]) -> Graph:
    """A constant Jacobian is still a function of the input, as engines and formats want it."""
    if not builder.is_variable(value):
        first = reshape(builder, next(iter(feed.values())), (-1,))
        zero = scale_shift(builder, take(builder, first, lambda t: t[:1]), scale=0.0)
        shape = builder.shape(value)
        wide = take(builder, zero, lambda t: t.expand(math.prod(shape)))
        value = add(builder, reshape(builder, wide, shape), value)
    return builder.graph(value)
