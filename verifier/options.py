"""How to search, as one small frozen value. Imports no torch: the command line makes its flags from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from verifier.errors import OptionsError

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "float64"]
Method = Literal["auto", "interval", "crown", "alpha-crown"]
BoundMethod = Literal["interval", "forward", "crown-ibp", "crown", "alpha-crown"]
LipschitzMethod = Literal[
    "auto", "product-of-norms", "interval", "crown", "alpha-crown", "semidefinite", "branch-and-bound"
]
Branching = Literal["auto", "input", "activation", "babsr", "fsb", "bbps"]
LinearSolver = Literal["highs", "gurobi"]


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Options:
    """What a user may decide about one verification; each field is also a flag of `verifier verify`.

    Raises OptionsError, at construction, when a value is impossible or two contradict each other.
    """

    timeout: float | None = _option(300.0, "Wall-clock limit in seconds, loading included; inf for none.")
    device: Device = _option("auto", "Where to compute; auto takes CUDA when present, else the CPU.")
    seed: int = _option(0, "Seed of the attacks and samplings; the same seed repeats the same search.")
    threads: int | None = _option(None, "CPU threads; by default as many as torch takes.")
    dtype: Dtype = _option("auto", "Precision of the bounds; auto starts in float32 and rechecks in float64.")
    attack: bool = _option(True, "Search for a counterexample by gradients before and during the proof.")
    batch_size: int | None = _option(None, "Subdomains bounded at once; by default as many as fit in memory.")
    max_memory_gb: float | None = _option(
        None, "Memory to stay below, in GB; by default most of what is free."
    )
    max_domains: int | None = _option(None, "Give up with 'unknown' after this many subdomains.")
    method: Method = _option("auto", "Bounds to use; auto goes from cheap to tight.")
    branching: Branching = _option(
        "auto", "What to split: inputs or activations (these as babsr, fsb, the default, or bbps choose)."
    )
    lp: LinearSolver = _option("highs", "Solver of linear programs; gurobi is an extra and needs a licence.")
    progress: bool = _option(False, "Show progress on stderr.")

    def __post_init__(self) -> None:
        for name, choices in (
            ("device", Device),
            ("dtype", Dtype),
            ("method", Method),
            ("branching", Branching),
            ("lp", LinearSolver),
        ):
            _check_choice(name, getattr(self, name), get_args(choices))
        for name in ("attack", "progress"):
            if not isinstance(getattr(self, name), bool):
                raise OptionsError(f"{name} must be True or False, not {getattr(self, name)!r}.")
        for name in ("timeout", "max_memory_gb"):
            _check_number(name, getattr(self, name))
        for name in ("threads", "batch_size", "max_domains"):
            _check_count(name, getattr(self, name))
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise OptionsError(f"seed must be an integer from 0 to 2**63 - 1, not {self.seed!r}.")
        self._check_together()

    def _check_together(self) -> None:
        if self.batch_size and self.max_domains and self.batch_size > self.max_domains:
            raise OptionsError(
                f"batch_size={self.batch_size} contradicts max_domains={self.max_domains}: the first batch "
                "alone would pass the limit. Lower batch_size or raise max_domains."
            )
        if self.method == "interval" and self.branching not in ("auto", "input"):
            raise OptionsError(
                f"method='interval' contradicts branching={self.branching!r}: interval bounds cannot use a split "
                "activation's constraint. Use method='crown', or branching='input'."
            )

    @property
    def seconds(self) -> float:
        """The time limit as a float: `inf` when there is none."""
        return math.inf if self.timeout is None else float(self.timeout)


def option_fields() -> list[tuple[str, str]]:
    """(name, help text) of each option, in order."""
    return [(f.name, f.metadata["help"]) for f in fields(Options)]


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionsError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def _check_number(name: str, value: Any) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not value > 0:  # NaN is not greater than 0 either
        raise OptionsError(f"{name} must be a positive number, or None for no limit, not {value!r}.")


def _check_count(name: str, value: object) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise OptionsError(f"{name} must be a positive integer, or None for automatic, not {value!r}.")
