"""Neurons that compute the same up to a sign, as in networks that write max(a, b) with |a - b|.

In Linear, Relu, Linear, rows z and -z of the first matrix need one neuron only, because relu(-z) = relu(z) - z. What
is left over is linear and goes around the Relu. A maximum written with four neurons becomes b + relu(a - b), which is
both cheaper and tighter to relax. Neurons without incoming weights (pruned networks have them) are constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Value
from verifier.graph.builder import rewritten
from verifier.ops.arithmetic import add
from verifier.ops.linear import Linear
from verifier.ops.piecewise_linear import Relu
from verifier.transforms.exact import exact_sums, faithful_affine, faithful_product

_WORTH = 0.9
"""A way around the Relu costs two more nodes: it is taken when at most this share of the neurons is left."""


class Shared(NamedTuple):
    """y = outer(relu(inner(x))) + around(x); `inner` and `outer` are None where no neuron is left, `around` where
    nothing goes around."""

    inner: Linear | None
    outer: Linear | None
    around: Linear | None


def share_opposite_neurons(graph: Graph) -> Graph:
    """An equal graph (but for float64 rounding of sums of weights) without such duplicates; `graph` itself if none."""
    found: dict[int, Shared] = {}
    for i, node in enumerate(graph.nodes):
        hidden = graph.nodes[node.inputs[0]] if isinstance(node.op, Linear) else None
        if hidden is None or not isinstance(hidden.op, Relu) or len(graph.users[node.inputs[0]]) != 1:
            continue
        first = graph.nodes[hidden.inputs[0]]
        if isinstance(first.op, Linear) and len(graph.users[hidden.inputs[0]]) == 1:
            if node.inputs[0] in graph.outputs or hidden.inputs[0] in graph.outputs:
                continue
            shared = share(first.op, node.op)  # pyright: ignore[reportArgumentType]
            if shared is not None:
                found[i] = shared
    return _rewrite(graph, found) if found else graph


def share(first: Linear, second: Linear) -> Shared | None:
    """The two layers around a Relu with one neuron per class of equal or opposite rows; None if there are none."""
    bias = first.weight.new_zeros(first.weight.shape[0]) if first.bias is None else first.bias
    live = (first.weight != 0).any(1)
    if not bool(live.any()):
        return None
    weight, shift = second.weight, second.bias
    if not bool(live.all()):
        if not faithful_affine(weight[:, ~live], bias[~live].clamp(min=0), shift):
            return None
        constant = weight[:, ~live] @ bias[~live].clamp(min=0)
        weight, shift = weight[:, live], constant if shift is None else shift + constant
    rows = torch.cat([first.weight, bias.unsqueeze(1)], dim=1)[live]
    shared = _classes(rows, weight, shift)
    if shared is not None or bool(live.all()):
        return shared
    return Shared(Linear(first.weight[live], bias[live]), Linear(weight, shift), None)


def _classes(rows: Tensor, weight: Tensor, shift: Tensor | None) -> Shared | None:
    """weight relu(rows (x, 1)) + shift with one neuron per class of rows, or None where that does not pay."""
    # Equal or opposite rows have hashes of one size, hence are neighbours when sorted by it (or are missed).
    generator = torch.Generator().manual_seed(0)
    vector = torch.rand(rows.shape[1], generator=generator, dtype=torch.float64).to(rows)
    value = rows @ vector
    size = value.abs().sort().values
    if not bool((size[1:] - size[:-1] <= 1e-9 * size[1:]).any()):
        return None
    sign = torch.where(value < 0, -1.0, 1.0).to(rows)
    order = value.abs().argsort(stable=True)
    sorted_rows = (rows * sign.unsqueeze(1))[order]
    new = torch.ones(len(order), dtype=torch.bool, device=rows.device)
    new[1:] = (sorted_rows[1:] != sorted_rows[:-1]).any(1)
    classes = int(new.sum())
    if classes == len(order):
        return None
    group = torch.empty_like(order)
    group[order] = new.cumsum(0) - 1
    kept = sorted_rows[new]
    if not exact_sums(weight, group, classes):
        return None
    total = weight.new_zeros(weight.shape[0], classes).index_add(1, group, weight)
    negative = weight.new_zeros(weight.shape[0], classes).index_add(1, group, weight * (sign < 0).to(weight))
    if classes > _WORTH * len(order) and bool((negative != 0).any()):
        return None
    return _assemble(kept, total, -negative, shift)


def _assemble(rows: Tensor, total: Tensor, linear: Tensor, bias: Tensor | None) -> Shared | None:
    """y = total relu(z) + linear z + bias with z = rows (x, 1); None where rounding would show."""
    weight, shift = rows[:, :-1], rows[:, -1]
    used = (total != 0).any(0)
    inner = Linear(weight[used].contiguous(), shift[used].contiguous()) if bool(used.any()) else None
    straight = (linear != 0).any(0)
    if not bool(straight.any()):
        return Shared(inner, Linear(total[:, used].contiguous(), bias), None)
    if not faithful_product(linear[:, straight], weight[straight]):
        return None
    if not faithful_affine(linear[:, straight], shift[straight], bias):
        return None
    moved = linear[:, straight] @ shift[straight]
    around = Linear(linear[:, straight] @ weight[straight], moved if bias is None else moved + bias)
    return Shared(inner, None if inner is None else Linear(total[:, used].contiguous()), around)


def _rewrite(graph: Graph, found: Mapping[int, Shared]) -> Graph:
    def replacement(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        if i not in found:
            return None
        hidden = graph.nodes[graph.nodes[i].inputs[0]]
        first = graph.nodes[hidden.inputs[0]]
        names = (first.name, hidden.name, graph.nodes[i].name)
        return _build(builder, found[i], values[first.inputs[0]], names)

    return rewritten(graph, replacement)


def _build(builder: Builder, shared: Shared, x: Value, names: tuple[str, str, str]) -> Value:
    around = None if shared.around is None else builder.add(shared.around, x, name=f"{names[2]}_around")
    if shared.inner is None or shared.outer is None:
        return around if around is not None else x  # one of the two always exists
    z = builder.add(shared.inner, x, name=names[0])
    y = builder.add(shared.outer, builder.add(Relu(), z, name=names[1]), name=names[2])
    return y if around is None else add(builder, y, around)
