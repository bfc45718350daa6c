"""One batch as all parts of a loss see it: the clean pass, the sets and the bounds, each computed once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from verifier.bounds.backward import PassOptions
from verifier.bounds.crown import specification_bound
from verifier.bounds.relaxations import Relaxations
from verifier.bounds.rows import margin_rows
from verifier.errors import ModelError, OptionsError
from verifier.graph import Affine, Graph, Interval
from verifier.graph.coefficients import Dense
from verifier.sets import InputSet
from verifier.training.changes import Changes, changes
from verifier.training.enclosures import Enclosure, Enclosures, enclose
from verifier.training.neighbourhood import Neighbourhood, Radius
from verifier.training.network import Clean, Network


@dataclass(frozen=True, eq=False)
class Task:
    """Examples x [B, *shape] with labels [B], to be told from all other classes within `eps` in `near`."""

    net: Network
    x: Tensor
    labels: Tensor
    eps: Radius
    near: Neighbourhood

    def __post_init__(self) -> None:
        if self.labels.shape != self.x.shape[:1]:
            raise ModelError(
                f"There are labels of shape {tuple(self.labels.shape)} for examples of shape {tuple(self.x.shape)}; "
                "the losses take one class number per example."
            )

    @cached_property
    def clean(self) -> Clean:
        return self.net.clean(self.x, self.near.weights > 0)

    @cached_property
    def graph(self) -> Graph:
        """The network of this batch; the clean pass is only made for it where the network needs one."""
        known = self.__dict__.get("clean")
        plain = known is None and not self.net.changes
        return self.net.graph(self.x, self.near.weights > 0) if plain else self.clean.graph

    @cached_property
    def changes(self) -> Changes | None:
        """Where parameters that may change stand; None where none may."""
        return changes(self.graph, self.near.weights) if self.near.weights > 0 else None

    @cached_property
    def inputs(self) -> InputSet:
        return self.near.around(self.x, self.eps)

    @cached_property
    def rows(self) -> Tensor:
        """The label's score less those of the other classes: [B, K - 1, K]."""
        return margin_rows(self.labels, self.net.classes).to(self.x)

    @cached_property
    def enclosures(self) -> Enclosures:
        """Of all nodes, for all inputs in the sets."""
        return self.enclosed(self.inputs)

    def enclosed(self, inputs: InputSet, shrink: float = 1.0) -> Enclosures:
        """The same for other sets of inputs around the same examples."""
        return enclose(self.graph, self.near.start(self.graph, inputs), shrink, self.changes)

    def margins(self, enclosures: Enclosures) -> Interval:
        """The label's score less each other's, [B, K - 1], from enclosures of this graph's nodes."""
        # Where weights change there is no one map of the last layer and the margins.
        products = -1 if self.near.weights else math.inf
        return spread(self.graph, self.rows, enclosures, products).ends

    def scores(self, x: Tensor) -> Tensor:
        """Of other inputs x [B, 1, *shape] to the network of this batch: [B, K]."""
        return self.graph.evaluate([x])[0].flatten(1)

    def backward(self, rows: Tensor) -> Tensor:
        """Lower bounds [B, R] of linear forms `rows` [B, R, K] of the scores by one backward pass through relaxations
        that rest on intervals (CROWN-IBP, Zhang et al. 2020, arXiv 1906.06316)."""
        if self.near.weights:
            raise OptionsError(
                "Backward passes do not bound what changed weights do: use a loss of intervals (IBP, SABR, MTL-IBP)."
            )
        target = self.graph.outputs[0]
        bounds = self.enclosures
        found = specification_bound(
            self.graph,
            [self.inputs],
            target,
            Dense(rows.unflatten(2, self.graph.nodes[target].shape)),
            bounds,  # pyright: ignore[reportArgumentType]
            Relaxations(self.graph, bounds),  # pyright: ignore[reportArgumentType]
            PassOptions(rounding=False, windows=True),
        )
        return found.minimum(self.graph, [self.inputs])


def spread(graph: Graph, rows: Tensor, enclosures: Enclosures, products: float = math.inf) -> Enclosure:
    """Linear forms `rows` [B, R, K] of the scores, [B, R], from the enclosures of where the affine nodes at the end of
    the network begin: these and the forms are one affine map, which loses less (Gowal et al. 2018). At most
    `products` of the nodes that sum several elements are among them, and no node at all where it is negative."""
    position = graph.outputs[0]
    values = rows.unflatten(2, graph.nodes[position].shape)
    constant: Tensor | float = 0.0
    while isinstance(op := graph.nodes[position].op, Affine) and len(graph.nodes[position].inputs) == 1:
        (below,) = graph.nodes[position].inputs
        products -= not (op.elementwise or op.exact)
        if products < 0:
            break
        shape = graph.nodes[below].shape
        offset = op.offset(shape)
        if offset is not None:
            constant = constant + (values.flatten(2) * offset.flatten()).sum(2)
        values = op.transpose(values, 0, shape)
        position = below
    flat = values.flatten(2)
    center, radius = (
        t.flatten(1).expand(len(flat), -1).unsqueeze(2) for t in enclosures.found[position].middle
    )
    return Enclosure(middle=(constant + (flat @ center).squeeze(2), (flat.abs() @ radius).squeeze(2)))
