"""How far points are from violating a property: margins, scores per disjunct, and losses to descend."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from verifier.attack.surrogate import with_gradients
from verifier.graph import Graph
from verifier.graph.op import Affine


class Compiled(Protocol):
    """A query made into one graph (`verifier.specs.compile`), as far as an attack looks at it.

    `graph` maps x [B, n_in] to margins [B, K]; atom k holds where margin k is <= 0 (< 0 where `strict[k]`).
    Case n is its box `lower[n]`, `upper[n]` ([N, n_in], float64) and `clauses[n]` of int64 [N, D, C]: a
    disjunction over D of conjunctions over C of atoms, -1 being padding; a disjunct of only padding is absent.
    `inputs` gives the query's own input elements for points x.
    """

    @property
    def graph(self) -> Graph: ...
    @property
    def lower(self) -> Tensor: ...
    @property
    def upper(self) -> Tensor: ...
    @property
    def clauses(self) -> Tensor: ...
    @property
    def strict(self) -> Tensor: ...
    def inputs(self, points: NDArray) -> NDArray: ...


class Loss(enum.Enum):
    """How the atoms of one disjunct make one number to descend."""

    WORST = "worst"  # the largest margin: what the score is
    HINGE = "hinge"  # the sum over unmet atoms: moves all of them at once


@dataclass(frozen=True, eq=False)
class Objective:
    """Margins and scores of points of a compiled query, in one dtype, on one device.

    `lower`, `upper` are [N, n_in] in the dtype of the search; `index` is int64 [N, D, C] with padding K; `scale` [K]
    is the typical size of a margin's change, so that atoms in different units compare.
    """

    graph: Graph
    lower: Tensor
    upper: Tensor
    index: Tensor
    absent: Tensor
    strict: Tensor
    scale: Tensor

    @classmethod
    def of(cls, compiled: Compiled, dtype: torch.dtype) -> Objective:
        lower, upper, device = compiled.lower, compiled.upper, compiled.lower.device
        atoms = compiled.strict.shape[0]
        clauses = compiled.clauses
        return cls(
            graph=with_gradients(compiled.graph.to(dtype=dtype, device=device)),
            lower=lower.to(dtype),
            upper=torch.maximum(lower, upper).to(dtype),
            index=torch.where(clauses < 0, atoms, clauses).to(device),
            absent=((clauses < 0).all(2) | (lower > upper).any(1, keepdim=True)).to(device),
            strict=compiled.strict.to(device),
            scale=lower.new_ones(atoms, dtype=dtype),
        )

    def scaled(self, scale: Tensor) -> Objective:
        return replace(self, scale=scale)

    def to(self, dtype: torch.dtype) -> Objective:
        return replace(
            self,
            graph=self.graph.to(dtype=dtype),
            lower=self.lower.to(dtype),
            upper=self.upper.to(dtype),
            scale=self.scale.to(dtype),
        )

    def margins(self, x: Tensor) -> Tensor:
        """[B, K] for points [B, n_in]; a NaN counts as far from unsafe, a strict tie as just unmet."""
        margins = self.graph.evaluate([x])[0].expand(len(x), -1)  # constant ones have a batch of 1
        margins = torch.where(margins.isnan(), torch.inf, margins)
        tiny = torch.finfo(margins.dtype).tiny
        return torch.where((margins == 0) & self.strict, tiny, margins)

    def scores(self, margins: Tensor, cases: Tensor) -> Tensor:
        """[B, D]: each disjunct's worst margin; it holds where this is <= 0. Absent disjuncts are +inf."""
        return self._reduce(margins, cases, Loss.WORST, 0.0)

    def losses(self, margins: Tensor, cases: Tensor, kind: Loss, target: float) -> Tensor:
        """[B, D] in scaled units; `target` is how far beyond zero margins shall go."""
        return self._reduce(margins / self.scale, cases, kind, target)

    def loss(self, margins: Tensor, cases: Tensor, disjuncts: Tensor, kind: Loss, target: float) -> Tensor:
        """[B]: the loss of one disjunct per point, differentiable."""
        index = self.index[cases, disjuncts]
        return _combine(_pad(margins / self.scale).gather(1, index), kind, target)

    def _reduce(self, margins: Tensor, cases: Tensor, kind: Loss, target: float) -> Tensor:
        index = self.index[cases]
        values = _pad(margins).gather(1, index.flatten(1)).view(index.shape)
        return _combine(values, kind, target).masked_fill(self.absent[cases], torch.inf)

    def cost(self) -> float:
        """Roughly the floating-point operations for one point's margins."""
        total = float(self.index[0].numel()) if len(self.index) else 1.0
        for node in self.graph.nodes:
            shapes = [self.graph.nodes[j].shape for j in node.inputs]
            total += node.numel * (2 * node.op.fan_in(*shapes) if isinstance(node.op, Affine) else 4)
        return total

    def memory(self) -> int:
        """Roughly the bytes that one point's margins and their gradient need."""
        size = torch.finfo(self.lower.dtype).bits // 8
        nodes = zip(self.graph.nodes, self.graph.variable, strict=True)
        values = sum(node.numel for node, used in nodes if used)
        return 2 * size * values + 32 * int(self.index[0].numel() if len(self.index) else 0) + 1


def _pad(margins: Tensor) -> Tensor:
    """Column K is the atom that always holds."""
    return torch.cat([margins, margins.new_full((len(margins), 1), -torch.inf)], 1)


def _combine(values: Tensor, kind: Loss, target: float) -> Tensor:
    if kind is Loss.WORST:
        return values.amax(-1)
    return (values + target).clamp(min=0).sum(-1)
