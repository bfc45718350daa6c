"""Several networks that compute the same, as one whose bounds take the better of each."""

from __future__ import annotations

from verifier.graph import Builder, Graph
from verifier.ops.alternatives import alternatives


def either(*graphs: Graph) -> Graph:
    """A graph whose outputs are those of any of `graphs`, which the caller knows to be equal for every input, such as
    the recurrent and the parallel form of one model (`ops/alternatives.py`).

    Raises ValueError where their inputs or outputs differ in number or shape.
    """
    shapes = [[[g.nodes[i].shape for i in ends] for ends in (g.inputs, g.outputs)] for g in graphs]
    if any(own != shapes[0] for own in shapes):
        raise ValueError(f"Networks with inputs and outputs {shapes} cannot compute the same.")
    builder = Builder()
    names = [graphs[0].nodes[i].name for i in graphs[0].inputs]
    inputs = [builder.input(name, shape) for name, shape in zip(names, shapes[0][0], strict=True)]
    found = [builder.include(g, dict(zip(g.inputs, inputs, strict=True))) for g in graphs]
    return builder.graph(*[alternatives(builder, *values) for values in zip(*found, strict=True)])
