"""What a verification answers. Imports neither torch nor numpy: the command line starts with it.

`unsat` speaks of exact real arithmetic with the stored weights, `sat` of onnxruntime's floats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from verifier.errors import UnsupportedNode

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = 1


class Status(Enum):
    """The four verdicts. `value` is the printed word, `advice` what to do next."""

    SAT = "sat"
    UNSAT = "unsat"
    UNKNOWN = "unknown"
    TIMEOUT = "timeout"

    @property
    def advice(self) -> str:
        """What the verdict means and what to do next, in full sentences."""
        return _STATUS_ADVICE[self]

    def printed(self, vnnlib_version: int = 1) -> str:
        """The first line on stdout: VNN-LIB 2.0 spells a time-out `timed-out`."""
        return "timed-out" if self is Status.TIMEOUT and vnnlib_version == 2 else self.value


_STATUS_ADVICE = {
    Status.SAT: (
        "The query has a solution: the property does not hold. The counterexample was replayed and confirmed."
    ),
    Status.UNSAT: "The query has no solution: the property is proved to hold.",
    Status.UNKNOWN: "Neither a proof nor a counterexample was found. The reason tells what to change.",
    Status.TIMEOUT: (
        "The time limit ended the search. Raise --timeout, run on a GPU (--device cuda), or ask an easier "
        "question: a smaller input set or fewer outputs at once."
    ),
}


_NO_MARGIN = (
    "The bound 0 is not a measured margin: some part of the input set was closed without a figure for it (at the "
    "root, by clipping, or by contradicting splits)."
)


class Reason(Enum):
    """Why a verdict is `unknown` (or `unsat` without a search): `value` for programs, `text` for people."""

    NONE = "none"
    EMPTY_INPUT_SET = "empty-input-set"
    UNSUPPORTED_OPERATOR = "unsupported-operator"
    MEMORY = "memory"
    NUMERICS = "numerics"
    INTERRUPTED = "interrupted"
    DOMAIN_LIMIT = "domain-limit"
    INCOMPLETE = "incomplete"
    UNCONFIRMED = "unconfirmed-counterexample"
    UNDEFINED = "undefined"

    @property
    def text(self) -> str:
        """What happened and what to try, in full sentences; empty for NONE."""
        return _REASON_TEXT[self]


_REASON_TEXT = {
    Reason.NONE: "",
    Reason.EMPTY_INPUT_SET: "The input set is empty, so the query has no solution whatever the network does.",
    Reason.UNSUPPORTED_OPERATOR: (
        "The bounds do not cover an operator of the network. `verifier inspect MODEL` lists what is not "
        "supported and why."
    ),
    Reason.MEMORY: (
        "Memory ran out even at the smallest batch. Close other programs, raise --max-memory-gb, or use a "
        "smaller network or --method crown."
    ),
    Reason.NUMERICS: (
        "The margin left is smaller than the rounding errors of the arithmetic. Try --dtype float64, or a "
        "property that does not hold with equality."
    ),
    Reason.INTERRUPTED: "The search was interrupted. The bound is the best one proved so far.",
    Reason.DOMAIN_LIMIT: "The limit on subdomains was reached. Raise --max-domains or leave it out.",
    Reason.INCOMPLETE: (
        "The chosen bounds are too loose and nothing is left to split. Try --method alpha-crown or "
        "--branching auto."
    ),
    Reason.UNCONFIRMED: (
        "A point was found that violates the property in the verifier's arithmetic but not in onnxruntime's. "
        "The property holds or fails by less than rounding; ask for a small margin."
    ),
    Reason.UNDEFINED: (
        "No value of the network violates the property, but it was not proved that the network has a value (not NaN) "
        "for every input of the set. Choose an input set on which it does, or clip the argument that is named."
    ),
}


@dataclass(frozen=True)
class Progress:
    """A snapshot of a running search, given to the `progress` callback."""

    domains_done: int = 0
    domains_open: int = 0
    worst_bound: float | None = None  # the best proved lower bound of the worst margin
    best_attack_margin: float | None = None  # the smallest margin that an attack has reached
    seconds: float = 0.0

    def after(self, last: Progress) -> Progress:
        """With the bound and the margin of the snapshot before, where this one has none: attack and search each know
        one of them, and both stay true."""
        bound = last.worst_bound if self.worst_bound is None else self.worst_bound
        margin = last.best_attack_margin if self.best_attack_margin is None else self.best_attack_margin
        return replace(self, worst_bound=bound, best_attack_margin=margin)


@dataclass(frozen=True)
class Counterexample:
    """A point that solves the query. Arrays have the shapes of the network's inputs and outputs.

    `outputs` are onnxruntime's (or the module's) at `inputs`. `tolerance` is 0 when the inputs lie in the
    exact input set, else how far they may lie outside because no float lies inside (at most 1e-4).
    `assignment` is the same point as text, in the format of the query's VNN-LIB version.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    tolerance: float = 0.0
    assignment: str = ""


@dataclass(frozen=True)
class Stats:
    """What the search cost."""

    domains: int = 0
    branches: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)  # wall-clock per phase
    peak_memory_mb: float | None = None
    device: str | None = None
    dtype: str | None = None
    attack_margin: float | None = None


@dataclass(frozen=True)
class Result:
    """The answer to one query. `bool(result)` raises: ask `.holds`, which is True, False or None."""

    status: Status
    # Proved lower bound of the worst margin; the property holds when it is positive. Of other units than the network's
    # outputs where these end with a softmax (then of what it compares) or a norm (then times the deviation divided by).
    bound: float | None = None
    counterexample: Counterexample | None = None
    reason: Reason = Reason.NONE
    detail: str = ""  # what `reason` cannot know: names, numbers
    stats: Stats = field(default_factory=Stats)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.status is Status.SAT) != (self.counterexample is not None):
            raise ValueError("A result has a counterexample exactly when its status is sat.")

    def __bool__(self) -> bool:
        raise TypeError(
            "A Result has no truth value, because 'unknown' and 'timeout' are neither. Ask result.holds, "
            "which is True (proved), False (counterexample) or None (undecided), or compare result.status."
        )

    @property
    def holds(self) -> bool | None:
        """Whether the property holds: True when proved, False when refuted, None when undecided."""
        return {Status.UNSAT: True, Status.SAT: False}.get(self.status)

    @property
    def explanation(self) -> str:
        """Why, and what to try next, in full sentences."""
        detail = f"{self.detail.removesuffix('.')}." if self.detail else ""
        unmeasured = self.status is Status.UNSAT and self.bound == 0
        parts = (detail, self.reason.text or self.status.advice, _NO_MARGIN if unmeasured else "")
        return " ".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form (verifier/results.schema.json) as plain Python values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.status.value,
            "holds": self.holds,
            "reason": self.reason.value,
            "explanation": self.explanation,
            "bound": _number(self.bound),
            "domains": self.stats.domains,
            "branches": self.stats.branches,
            "seconds": {phase: float(value) for phase, value in self.stats.seconds.items()},
            "peak_memory_mb": _number(self.stats.peak_memory_mb),
            "device": self.stats.device,
            "dtype": self.stats.dtype,
            "attack_margin": _number(self.stats.attack_margin),
            "counterexample": _counterexample_dict(self.counterexample),
            "versions": dict(self.versions),
        }

    def to_json(self, indent: int | None = None) -> str:
        """The JSON form as text. Numbers that JSON cannot hold (infinities) are strings such as "-inf"."""
        import json

        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


@dataclass(frozen=True)
class NodeRow:
    """One node as `verifier inspect` shows it. `shape` is the ONNX shape, its batch of 1 included."""

    name: str
    operator: str
    shape: tuple[int, ...]
    unstable: int | None = None  # neurons whose relaxation is not exact on the input set; None without one
    note: str = ""


@dataclass(frozen=True)
class Inspection:
    """What a network consists of, and what of it is not supported and why."""

    nodes: tuple[NodeRow, ...]
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    opset: int | None = None
    parameters: int = 0
    unsupported: tuple[UnsupportedNode, ...] = ()


def _number(value: float | None) -> float | str | None:
    """JSON has no infinities and no NaN: they become strings."""
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _counterexample_dict(point: Counterexample | None) -> dict[str, Any] | None:
    if point is None:
        return None
    return {
        "inputs": {name: _array_dict(array) for name, array in point.inputs.items()},
        "outputs": {name: _array_dict(array) for name, array in point.outputs.items()},
        "tolerance": float(point.tolerance),
    }


def _array_dict(array: np.ndarray) -> dict[str, Any]:
    """`values` are in row-major order, exact: the shortest decimals that give the same float64."""
    values = [_number(v) if isinstance(v, float) else v for v in array.reshape(-1).tolist()]
    return {"shape": list(array.shape), "dtype": str(array.dtype), "values": values}
