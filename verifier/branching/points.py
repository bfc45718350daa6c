"""Where to cut the argument of an operator: points optimised offline, per operator and interval.

`points.npz` holds one table per operator, named by its `repr`, of relative places in the interval [l, u] for all l < u
of a grid: entry [i, j] belongs to l = grid[i], u = grid[j] and is a part of 255. The script
benchmarks/branching_points.py makes it, by the area that the lines of both halves leave, as published tables are made
(GenBaB, Shi et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from verifier.graph import Interval, Univariate
from verifier.graph.op import Op

SPAN, STEP = 6.0, 0.25
"""The grid goes from -SPAN to SPAN in steps of STEP."""
PARTS = 255
"""Entries are such parts of the interval; 0 means that there is none."""


def key(op: Op) -> str | None:
    """The table's name for an operator; None where it has tensors of its own, which no table can know."""
    return None if any(True for _ in op.tensors()) else repr(op)


def table_point(op: Univariate, x: Interval) -> Tensor:
    """The branching point [B, *shape] by the operator's table, at the nearest entry; where there is none (a narrow
    interval, one beyond the grid, a kink that has to be cut at) by the operator's own rule."""
    own = op.branching_point(0, x)
    name = key(op)
    if name is None or name not in _tables():
        return own
    table = _table(name, x.lower.device)
    places = [((end + SPAN) / STEP).round() for end in x]
    count = len(table)
    inside = (places[0] >= 0) & (places[1] < count) & (places[1] > places[0])
    first, last = [torch.where(inside, p, torch.zeros_like(p)).long() for p in places]
    part = table[first, last].to(own) / PARTS
    point = x.lower + part * (x.upper - x.lower)
    return torch.where(inside & (part > 0), torch.minimum(torch.maximum(point, x.lower), x.upper), own)


def middle_point(op: Univariate, x: Interval) -> Tensor:
    """The middle, for operators that have a table; for others (kinks have to be cut at) their own rule."""
    return x.center if movable(op) else op.branching_point(0, x)


def movable(op: Univariate) -> bool:
    """Whether an operator has a table: others have to be cut at kinks, or are not known well enough."""
    return key(op) in _tables()


RULES: Mapping[str, Callable[[Univariate, Interval], Tensor]] = {"table": table_point, "middle": middle_point}
"""Rules by name."""


@cache
def _table(name: str, device: torch.device) -> Tensor:
    """One table where it is used."""
    return torch.from_numpy(_tables()[name]).to(device)


@cache
def _tables() -> Mapping[str, np.ndarray]:
    """All tables, uint8 [N, N] each; none where the file is missing from an installation."""
    file = resources.files("verifier.branching") / "points.npz"
    if not file.is_file():
        return {}
    with file.open("rb") as stream, np.load(stream) as found:
        return {name: found[name] for name in found.files}
