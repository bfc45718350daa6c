"""What `explain` finds, as values. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from verifier.results import Result


class Kind(Enum):
    """What a hint is about; `value` is its word in the JSON form."""

    DECIDED = "decided"
    REASON = "reason"  # what results.Reason says of an `unknown`
    RAISE_TIMEOUT = "raise-timeout"
    FIRST_BOUNDS = "first-bounds"
    NEAR_COUNTEREXAMPLE = "near-counterexample"
    LOOSE_LAYER = "loose-layer"
    SMALLER_SET = "smaller-set"
    FEWER_DISJUNCTS = "fewer-disjuncts"
    TIGHTER_BOUNDS = "tighter-bounds"
    GPU = "gpu"


@dataclass(frozen=True)
class Hint:
    """Something to try, with what it follows from, in full sentences."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Disjunct:
    """A disjunct that is open: the query has a solution iff some disjunct has one.

    `case` and `number` count from 0 in the compiled query, `text` is its atoms in the query's words. `bound` is the
    best proved lower bound of its margin (above 0 it would be closed), `attack` the smallest margin that an input was
    seen to have (at most 0 it would be a counterexample), `middle` that of the middle of the box: all in the units of
    the margin, None where there is none. `subdomains` are open in the search, `left` is the share of the box's volume
    that they hold.
    """

    case: int
    number: int
    text: str
    bound: float | None = None
    attack: float | None = None
    middle: float | None = None
    subdomains: int | None = None
    left: float | None = None

    @property
    def gap(self) -> float | None:
        """The true least margin lies between `bound` and `attack`; so far are these apart."""
        return None if self.bound is None or self.attack is None else self.attack - self.bound


@dataclass(frozen=True)
class Layer:
    """A value that relaxed operators read, on the box of the worst open disjunct.

    `undecided` of its `neurons` have a range in which some of the operators `readers` are not exact. Of some of these
    (`driven`, evenly spread) inputs were looked for that drive them to both ends; over them are the mean widths by
    `intervals`, by `crown` and as `seen`, and `loose`, CROWN's width over the seen one: an estimate from above, since
    nobody knows all inputs. `widest` is the largest width by CROWN. `loses` is the part in what all relaxations may
    cost the worst disjunct's bound, as the coefficients weigh them.
    """

    name: str
    readers: str
    neurons: int
    undecided: int
    driven: int = 0
    intervals: float | None = None
    crown: float | None = None
    widest: float | None = None
    seen: float | None = None
    loose: float | None = None
    loses: float | None = None


@dataclass(frozen=True)
class InputRange:
    """What the open subdomains span of one input, `share` of its width."""

    name: str
    lower: float
    upper: float
    share: float


@dataclass(frozen=True)
class Region:
    """What branch and bound left: `bounded` subdomains were bounded, `open` are left, in `cases` of all boxes.

    `left` is the share of volume that open subdomains hold, every disjunct's box counted once: exact where only inputs
    were split, else of `samples` random inputs in each box. `ranges` are the inputs of which least is left, of the
    worst disjunct's box. `layers` says which layers' neurons were split, by the number of times.
    """

    bounded: int
    open: int
    cases: int
    left: float | None = None
    samples: int | None = None
    ranges: tuple[InputRange, ...] = ()
    layers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Radius:
    """The property is proved, by the bounds alone, where every box is `proved` times as wide about the same middle (0
    where none was found); at `open` times they leave it open, or took too long."""

    proved: float
    open: float


@dataclass(frozen=True)
class Explanation:
    """`result` is that of the search; where measuring decided the query, it is decided. `disjuncts` are the worst of
    the `open` ones, of `total` in the query; `phases` are seconds."""

    result: Result
    total: int = 0
    open: int = 0
    disjuncts: tuple[Disjunct, ...] = ()
    layers: tuple[Layer, ...] = ()
    region: Region | None = None
    radius: Radius | None = None
    hints: tuple[Hint, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def decided(self) -> bool:
        """Whether there is nothing left to explain."""
        return self.result.holds is not None

    def to_dict(self) -> dict[str, Any]:
        """As plain Python values that JSON can hold: infinities and NaN are strings."""
        found = {
            "result": self.result.to_dict(),
            "decided": self.decided,
            "disjuncts": {
                "total": self.total,
                "open": self.open,
                "worst": [asdict(d) | {"gap": d.gap} for d in self.disjuncts],
            },
            "layers": [asdict(layer) for layer in self.layers],
            "region": None if self.region is None else asdict(self.region),
            "radius": None if self.radius is None else asdict(self.radius),
            "hints": [{"kind": h.kind.value, "text": h.text} for h in self.hints],
            "seconds": dict(self.phases),
        }
        return _plain(found)

    def to_json(self, indent: int | None = None) -> str:
        """The JSON form as text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
