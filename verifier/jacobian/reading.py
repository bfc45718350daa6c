"""Finding the chain in a graph: affine parts as matrices, with their rounding, between activations.

A state is what the rest of the network reads. Between two nodes that everything passes through, activations on one
level are one layer, and what goes around them is its skip; activations on several levels become several layers whose
states hold what the later ones still need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.bounds.compute import compute_bounds
from verifier.errors import UnsupportedError
from verifier.graph import Affine, Builder, Graph, Interval, Univariate, Value
from verifier.graph.builder import rewritten
from verifier.graph.composite import intervals
from verifier.jacobian.chain import Activation, Chain, ChainError, Layer, Matrix, beside, group_sort, slopes
from verifier.jacobian.definite import frobenius, up
from verifier.ops.alternatives import Alternatives
from verifier.ops.sorting import Ranked, Sorted
from verifier.ops.within import Within
from verifier.options import BoundMethod
from verifier.sets import InputSet
from verifier.transforms.comparators import share_relus
from verifier.transforms.composites import write_out
from verifier.transforms.differentiate import differentiate
from verifier.transforms.fold import fold
from verifier.transforms.opposite import share_opposite_neurons
from verifier.transforms.unroll import unroll

LARGEST = 1 << 24
"""Entries of one matrix, at most."""

FAR = 1e300
"""Arguments of activations without bounds lie between this and its negative."""


@torch.no_grad()
def chain(graph: Graph, region: InputSet | None = None, method: BoundMethod = "crown") -> Chain:
    """The chain that a graph with one input and one output is; elements are counted in the flat order of both.

    With a convex `region` of inputs the activations' slopes are those that their arguments can meet there, by bounds of
    `method`, and all that is made of the chain holds there. Raises ChainError for a graph that is no chain of affine
    layers and functions of one value with bounded slopes, and for one whose matrices are too large.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ChainError("A chain has one input and one output: join several into one value.")
    graph = share_opposite_neurons(fold(share_relus(_plain(graph.to(torch.float64)))))
    reader = _Reader(graph)
    if region is not None and reader.arguments:
        # Their names may be others' once sorts are written out; outputs stay in order.
        asked = write_out(replace(graph, outputs=tuple(reader.arguments)))
        found = compute_bounds(asked, [region], method).outputs
        reader.bounds.update(zip(reader.arguments, found, strict=True))
    return reader.read()


def _plain(graph: Graph) -> Graph:
    """Written out but for whole sorts, and without what is only known besides of a value."""
    graph = unroll(graph)
    sorts = [(n.op, graph.nodes[n.inputs[0]].shape) for n in graph.nodes if isinstance(n.op, Sorted)]
    whole = all(op.count == shape[op.axis] for op, shape in sorts)
    graph = write_out(graph, keep=(Sorted,) if whole else ())

    def first(builder: Builder, i: int, values: Mapping[int, Value]) -> Value | None:
        node = graph.nodes[i]
        return values[node.inputs[0]] if isinstance(node.op, Ranked | Within | Alternatives) else None

    return rewritten(graph, first)


@dataclass(frozen=True)
class _Part:
    """Nodes of a state, and how many elements they have together."""

    nodes: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(self.sizes)


class _Reader:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.bounds: dict[int, Interval] = {}
        self._output = graph.outputs[0]
        used = graph.ancestors(self._output)
        self._live = [i for i in sorted(used) if graph.variable[i]]
        self._active = [i for i in self._live if not self._affine(i)]
        self._level = self._levels()
        self.arguments = sorted({graph.nodes[i].inputs[0] for i in self._active})

    def _affine(self, i: int) -> bool:
        node = self._graph.nodes[i]
        return isinstance(node.op, Affine) or not node.inputs

    def _levels(self) -> dict[int, int]:
        """Per node how many activations lie above one another up to it."""
        found: dict[int, int] = {}
        for i in self._live:
            node = self._graph.nodes[i]
            below = max((found[j] for j in node.inputs if j in found), default=0)
            if not self._affine(i) and not isinstance(node.op, Univariate | Sorted):
                raise ChainError(
                    f"'{node.source or node.name}' ({type(node.op).__name__}) is neither affine nor a function of one "
                    "value each, so that the network is no chain: bound its Jacobian instead."
                )
            found[i] = below + (not self._affine(i))
        return found

    def read(self) -> Chain:
        state = self._part([self._graph.inputs[0]])
        layers: list[Layer] = []
        cuts = self._cuts()
        for level in range(1, self._level[self._output] + 1):
            acting = [i for i in self._active if self._level[i] == level]
            after = self._after(cuts, level, state)
            f = self._activation(acting)
            inner = self._matrix(state, self._part([self._graph.nodes[i].inputs[0] for i in acting]))
            new = self._part(acting)
            if after.nodes == new.nodes:
                layers.append(Layer(inner, f))
            else:
                both = self._matrix(_joined(new, state), after)
                outer = Matrix(both.value[:, : new.size], both.doubt)
                skip = Matrix(both.value[:, new.size :], both.doubt)
                layers.append(Layer(inner, f, outer, skip if bool(skip.value.any()) or skip.doubt else None))
            state = after
        return Chain(tuple(layers), self._matrix(state, self._part([self._output])))

    def _cuts(self) -> list[int]:
        """Nodes that everything on the way to the output passes through."""
        furthest, cuts = -1, []
        for i in self._live:
            if furthest <= i:
                cuts.append(i)
            furthest = max([furthest, *[k for k in self._graph.users[i] if k in self._level]])
        return cuts

    def _after(self, cuts: Sequence[int], level: int, before: _Part) -> _Part:
        """The state behind the activations of a level: one node where all passes through one, else all that is read."""
        passing = [i for i in cuts if self._level[i] == level]
        if passing:
            return self._part([min(passing)])
        read: set[int] = set()
        queue = [j for i in self._active if self._level[i] > level for j in self._graph.nodes[i].inputs]
        queue.append(self._output)
        while queue:
            i = queue.pop()
            if i in read or not self._graph.variable[i]:
                continue
            if i in before.nodes or (self._level[i] == level and not self._affine(i)):
                read.add(i)
            else:
                queue += self._graph.nodes[i].inputs if self._affine(i) else ()
        return self._part(sorted(read))

    def _part(self, nodes: Sequence[int]) -> _Part:
        return _Part(tuple(nodes), tuple(self._graph.nodes[i].numel for i in nodes))

    def _activation(self, acting: Sequence[int]) -> Activation:
        return beside([self._sorting(i) if self._sorts(i) else slopes(*self._slopes(i)) for i in acting])

    def _sorts(self, i: int) -> bool:
        return isinstance(self._graph.nodes[i].op, Sorted)

    def _sorting(self, i: int) -> Activation:
        node = self._graph.nodes[i]
        assert isinstance(node.op, Sorted)
        places = torch.arange(node.numel).view(node.shape).movedim(node.op.axis, -1)
        size = node.shape[node.op.axis]
        return group_sort(node.numel, size, places.reshape(-1, size))

    def _slopes(self, i: int) -> tuple[Tensor, Tensor]:
        """Between which numbers the derivative of an activation lies, where its argument does."""
        node = self._graph.nodes[i]
        argument = self._graph.nodes[node.inputs[0]]
        builder = Builder()
        one = builder.graph(builder.add(node.op, builder.input("x", argument.shape)))
        try:
            steep = differentiate(one, cotangent=torch.ones(node.shape, dtype=torch.float64))
        except (UnsupportedError, NotImplementedError) as error:
            what = f"'{node.source or node.name}' ({type(node.op).__name__})"
            raise ChainError(
                f"{what} has no derivative everywhere, so that no Lipschitz constant is known."
            ) from error
        given = self.bounds.get(node.inputs[0])
        end = torch.full((1, *argument.shape), math.inf, dtype=torch.float64)
        low, high = intervals(steep, [given or Interval(-end, end)])[0]
        if given is None:
            # What holds up to infinity is wide for some; derivatives that are not bounded stay so.
            far = intervals(steep, [Interval(-FAR * torch.ones_like(end), FAR * torch.ones_like(end))])[0]
            low = torch.where(low.isfinite(), far.lower, low)
            high = torch.where(high.isfinite(), far.upper, high)
        low, high = (t.expand(1, *node.shape)[0].flatten() for t in (low, high))
        return low, high

    def _matrix(self, before: _Part, after: _Part) -> Matrix:
        """What nodes are of earlier ones, [elements after, elements before]: the images of unit vectors, enclosed."""
        if before.size * after.size > LARGEST or before.size > LARGEST:
            raise ChainError(
                f"A layer from {before.size} to {after.size} values is too large a matrix: bound the Jacobian instead."
            )
        units = torch.cat([torch.zeros(1, before.size, dtype=torch.float64), torch.eye(before.size).double()])
        values: dict[int, Interval] = {}
        for i, part in zip(before.nodes, units.split(list(before.sizes), 1), strict=True):
            shaped = part.unflatten(1, self._graph.nodes[i].shape)
            values[i] = Interval(shaped, shaped)
        found = [self._enclosed(i, values) for i in after.nodes]
        columns = Interval.cat([f.expand(len(units)).map(lambda t: t.flatten(1).T) for f in found]).map(
            lambda t: t.T
        )
        center, radius = columns.center, columns.radius
        value = (center[1:] - center[:1]).T
        if not bool(value.isfinite().all()):
            raise ChainError("The network has weights that are not finite.")
        # Differences of equal numbers are exact; others round.
        rounding = torch.where(center[:1] == 0, torch.zeros_like(value.T), 2.3e-16 * value.T.abs())
        doubt = frobenius(radius[1:] + radius[:1] + rounding)
        return Matrix(value.contiguous(), up(up(doubt)))

    def _enclosed(self, i: int, values: dict[int, Interval]) -> Interval:
        if i not in values:
            node = self._graph.nodes[i]
            if node.inputs and not self._affine(i):
                raise ChainError(f"'{node.source or node.name}' is read around the activation behind it.")
            values[i] = node.op.interval(*[self._enclosed(j, values) for j in node.inputs])
        return values[i]


def _joined(first: _Part, second: _Part) -> _Part:
    return _Part(first.nodes + second.nodes, first.sizes + second.sizes)
