"""What bounding subdomains needs and gives, as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from verifier.bounds.ascent import Leaves
from verifier.bounds.cuts import Cuts
from verifier.bounds.interval import Bounds
from verifier.branching.clip_neurons import NeuronPlanes
from verifier.graph import Interval


@dataclass(frozen=True, eq=False)
class Facts:
    """What holds on the whole box of each of N cases: `enclosures` of inner nodes [N, *shape], for subdomains that come
    without any of their own; `cuts`, and `planes` to clip inner enclosures by, are for cases of one disjunct each, the
    latter for cases that are all one box."""

    enclosures: Mapping[int, Interval] = field(default_factory=dict)
    cuts: Cuts | None = None
    planes: NeuronPlanes | None = None


@dataclass(frozen=True, eq=False)
class Bounded:
    """What bounding M subdomains gives.

    `score` float64 [M]: a proved lower bound of min over open disjuncts of max over atoms of the margins.
    `disjunct` float64 [M, D]: the same per disjunct (infinite for one that is absent or was refuted before), and
    `refuted` bool [M, D] those that no point of the subdomain satisfies. `planes` float64 [M, D, C, n_in] and
    `constants` [M, D, C]: linear forms below the margins, rounding included; for padding 0 and -inf.
    `bounds` encloses inner nodes, `warm` are optimised parameters, and `gaps` [M, *shape] per node says how much
    the relaxation of each neuron that reads it costs the bound; `arrived` [M, R, *shape] are the final pass's
    coefficients of each elementwise operator's result, of which `row` [M] is that of the best atom of the least refuted
    disjunct.
    """

    score: Tensor
    disjunct: Tensor
    refuted: Tensor
    planes: Tensor
    constants: Tensor
    bounds: Bounds = field(default_factory=dict)
    warm: Leaves = field(default_factory=dict)
    gaps: Mapping[int, Tensor] = field(default_factory=dict)
    arrived: Mapping[int, Tensor] = field(default_factory=dict)
    row: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def worst_plane(self, least: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The plane [M, n_in] and constant [M] of the only disjunct's best atom, by their `least` values."""
        atom = least(self.planes[:, 0], self.constants[:, 0]).argmax(1)
        every = torch.arange(len(atom), device=atom.device)
        return self.planes[every, 0, atom], self.constants[every, 0, atom]

    def with_margins(self, rows: Tensor, new: Bounded) -> Bounded:
        """With what `new` says of the margins of the subdomains `rows` [m]; what was refuted stays so."""
        fields = ("score", "disjunct", "refuted", "planes", "constants")
        merged = {n: getattr(self, n).index_copy(0, rows, getattr(new, n)) for n in fields}
        return replace(self, **{**merged, "refuted": merged["refuted"] | self.refuted})

    def replaced(self, rows: Tensor, new: Bounded) -> Bounded:
        """With the results `new` of the subdomains `rows` [m]; what was refuted stays so."""

        def put(old: Tensor, part: Tensor) -> Tensor:
            return old.expand(len(self.score), *old.shape[1:]).index_copy(
                0, rows, part.expand(len(rows), *part.shape[1:])
            )

        return replace(
            self.with_margins(rows, new),
            bounds={i: Interval(*map(put, b, new.bounds[i])) for i, b in self.bounds.items()},
            warm={
                key: {n: put(t, new.warm[key][n]) for n, t in own.items() if n in new.warm.get(key, {})}
                for key, own in self.warm.items()
            },
            gaps={i: put(t, new.gaps[i]) for i, t in self.gaps.items()},
            arrived={i: put(t, new.arrived[i]) for i, t in self.arrived.items()},
            row=put(self.row, new.row) if len(self.row) else self.row,
        )

    def index(self, rows: Tensor) -> Bounded:
        """Some of the subdomains (a mask, or positions)."""
        positions = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        return Bounded(
            self.score[positions],
            self.disjunct[positions],
            self.refuted[positions],
            self.planes[positions],
            self.constants[positions],
            {i: b.index(positions) for i, b in self.bounds.items()},
            {key: {n: t[positions] for n, t in own.items()} for key, own in self.warm.items()},
            {i: t[positions] for i, t in self.gaps.items()},
            {i: t[positions] for i, t in self.arrived.items()},
            self.row[positions] if len(self.row) else self.row,
        )
