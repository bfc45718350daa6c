"""Everything that is done to a network's graph before the engines see it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from verifier.graph import Graph
from verifier.transforms.centers import center_means
from verifier.transforms.comparators import share_relus
from verifier.transforms.composites import write_out
from verifier.transforms.deviations import bound_deviations
from verifier.transforms.fuse import fuse
from verifier.transforms.gates import join_gates
from verifier.transforms.pairs import carry_differences
from verifier.transforms.parallel import parallel
from verifier.transforms.quotients import bound_quotients
from verifier.transforms.unbatch import leave_out_unread, unbatch


def prepare(
    graph: Graph, points: Sequence[Tensor] = (), names: Sequence[str] = (), recurrent: bool = False
) -> Graph:
    """An equal graph of affine and elementwise nodes that is as easy to bound as is known to be.

    `points` are typical inputs, one tensor [N, *shape] per graph input, or none. Nodes called one of `names` stay, at
    the cost of what would be lost with them. Affine operators are not fused: `fold` does that.
    Recurrences with a cheaper parallel form take it, unless they are to stay `recurrent`.
    """
    graph = write_out(center_means(graph, points) if points else graph)
    graph = bound_deviations(bound_quotients(graph), points)
    recurrences = () if recurrent else (parallel,)
    for change in (leave_out_unread, share_relus, *recurrences, fuse, join_gates, unbatch, carry_differences):
        changed = change(graph)
        if {node.name for node in changed.nodes}.issuperset(names):
            graph = changed
    return graph
