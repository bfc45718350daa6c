"""Where a function may jump, so that its derivative says nothing of its differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.bounds.interval import interval_bounds
from verifier.graph import Elementwise, Graph, Op
from verifier.ops.choice import Choice
from verifier.sets import InputSet
from verifier.transforms.composites import write_out


def may_jump(op: Op) -> bool:
    """Whether an operator has pieces that need not meet."""
    return isinstance(op, Elementwise) and (op.jumps or isinstance(op, Choice))


class Jumps(NamedTuple):
    """For which instances a function may jump in its set, bool [B], and why."""

    open: Tensor
    reason: str


class Jumping:
    """What of a graph's first output may jump, for many sets."""

    def __init__(self, graph: Graph) -> None:
        written = write_out(graph)
        self._graph = written.to(torch.float64)
        live = sorted(written.ancestors(written.outputs[0]))
        self.places = [i for i in live if may_jump(written.nodes[i].op)]

    def __call__(self, sets: Sequence[InputSet]) -> Jumps:
        """Where what decides between pieces that need not meet is open."""
        boxes = [s.box().to(torch.float64) for s in sets]
        batch, device = max(len(b.lower) for b in boxes), boxes[0].lower.device
        open_ = torch.zeros(batch, dtype=torch.bool, device=device)
        if not self.places:
            return Jumps(open_, "")
        reason = ""
        bounds = interval_bounds(self._graph.to(torch.float64, device), boxes)
        for i in self.places:
            node = self._graph.nodes[i]
            if not isinstance(node.op, Elementwise):
                continue
            arguments = [bounds[j].expand(batch) for j in node.inputs]
            here = node.op.refinable(0, *arguments).flatten(1).any(1)
            if bool(here.any()) and not reason:
                reason = (
                    f"{node.source or node.name} ({type(node.op).__name__}) may jump in this set, and a function that "
                    "jumps has no Lipschitz constant; take a set on which it is decided."
                )
            open_ = open_ | here
        return Jumps(open_, reason)
