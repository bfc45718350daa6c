"""Where the time of one verification goes: per phase and per operator.

    python -m benchmarks.phases MODEL SPEC [--timeout S] [--device auto|cpu|cuda] [--branching ...] [--no-attack]

Runs `verifier.verify` in this process, with a clock around the functions that begin a phase and around what operators
compute. The engine has no hooks for it: this script replaces the functions while it runs. Seconds are those spent in
a row itself, not in the rows that it calls. On a GPU every clock waits for the device, so that the whole takes longer
than without clocks. Run it from the project's folder, with -m.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from benchmarks.common import machine
from verifier.options import Branching, Device, Options

if TYPE_CHECKING:
    from verifier.results import Result

PHASES = (
    ("verifier.api", "load_query", "parse"),
    ("verifier.api", "load_network", "load"),
    ("verifier.frontends.replay", "check", "compare with onnxruntime"),
    ("verifier.api", "compile_query", "compile"),
    ("verifier.strategy", "falsify", "attack"),
    ("verifier.strategy", "_Run._search", "root bounds"),
    ("verifier.branching.search", "Search.run", "branch and bound"),
    ("verifier.branching.bounding", "Bounder.bound", "bounding"),
    ("verifier.branching.input_split", "InputBrancher.branch", "branching"),
    ("verifier.branching.activation_split", "ActivationBrancher.branch", "branching"),
    ("verifier.branching.search", "Search._clip", "clipping"),
    ("verifier.branching.domains", "Store.push", "store"),
    ("verifier.branching.domains", "Store.take", "store"),
    ("verifier.strategy", "_Attempt.__call__", "points tried"),
)
"""Module, function, and the phase that a call of it is."""
METHODS = {
    "forward": "forward",
    "interval": "interval",
    "relax": "relax",
    "backward": "backward",
    "transpose": "backward",
}
"""Methods of an operator, and the column's name for each."""


@dataclass
class Row:
    """Calls of one thing and the seconds spent in it, less those in other rows."""

    calls: int = 0
    seconds: float = 0.0


@dataclass
class Stopwatch:
    """Seconds per row. Rows are named by the path of the timed calls that are open, if `nested`, else by the last."""

    nested: bool
    wait: Callable[[], None]
    rows: dict[tuple[str, ...], Row] = field(default_factory=dict)
    _open: list[tuple[tuple[str, ...], float]] = field(default_factory=list)

    @contextlib.contextmanager
    def timed(self, *name: str) -> Iterator[None]:
        """Counts one call of the row `name` and what passes inside."""
        outer = self._open[-1][0] if self.nested and self._open else ()
        path = (*outer, *name)
        row = self.rows.setdefault(path, Row())
        self.wait()
        self._open.append((path, 0.0))
        began = time.perf_counter()
        try:
            yield
        finally:
            self.wait()
            elapsed = time.perf_counter() - began
            _, inside = self._open.pop()
            row.calls += 1
            row.seconds += elapsed - inside
            if self._open:
                path, inside = self._open[-1]
                self._open[-1] = (path, inside + elapsed)

    def seconds(self, name: str) -> float:
        """All seconds in rows whose path has `name`."""
        return sum(row.seconds for path, row in self.rows.items() if name in path)


@dataclass(frozen=True)
class Report:
    """What one verification gave and cost. `seconds` is the whole; `missing` are functions that were not found."""

    result: Result
    seconds: float
    phases: Stopwatch
    operators: Stopwatch
    missing: tuple[str, ...]
    device_mb: float | None

    def lines(self, imported: float = 0.0) -> Iterator[str]:
        """The report as text, tables in Markdown. `imported`: seconds that the imports took before."""
        stats = self.result.stats
        total = self.seconds + imported
        searched = self.phases.seconds("branch and bound")
        rate = f", {stats.domains / searched:.0f} a second of the search" if searched else ""
        memory = f"{stats.peak_memory_mb:.0f} MB" if stats.peak_memory_mb else "unknown"
        device = "" if self.device_mb is None else f", of the device {self.device_mb:.0f} MB"
        yield f"{self.result.status.value}, bound {self.result.bound}, on {stats.device}; {total:.2f} s"
        yield f"{stats.domains} subdomains{rate}; peak memory {memory}{device}"
        yield from (f"not timed, because it is not there: {name}" for name in self.missing)
        yield "\n| phase | calls | seconds | share |\n|---|---|---|---|"
        yield _line("import", Row(1, imported), total)
        for path, row in self.phases.rows.items():
            yield _line("&nbsp;&nbsp;" * (len(path) - 1) + path[-1], row, total)
        rest = self.seconds - sum(row.seconds for row in self.phases.rows.values())
        yield _line("everything else", Row(1, rest), total)
        yield "\n| operator | step | calls | seconds | share |\n|---|---|---|---|---|"
        for path, row in sorted(self.operators.rows.items(), key=lambda item: -item[1].seconds):
            yield _line(" | ".join(path), row, total)


def _line(name: str, row: Row, total: float) -> str:
    return f"| {name} | {row.calls} | {row.seconds:.3f} | {row.seconds / total:.1%} |"


def profile(model: Any, spec: Any, options: Options) -> Report:
    """Verify once, with clocks. `model` and `spec` are whatever `verifier.verify` takes."""
    import torch

    from verifier import api

    cuda = options.device != "cpu" and torch.cuda.is_available()
    wait = torch.cuda.synchronize if cuda else _nothing
    phases, operators = Stopwatch(True, wait), Stopwatch(False, wait)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with contextlib.ExitStack() as stack:
        missing = _time_phases(stack, phases)
        _time_operators(stack, operators)
        began = time.perf_counter()
        result = api.verify(model, spec, options=options)
        seconds = time.perf_counter() - began
    device = torch.cuda.max_memory_allocated() / 2**20 if cuda else None
    return Report(result, seconds, phases, operators, tuple(missing), device)


def _nothing() -> None:
    """Waits for nothing: the CPU is done when a call returns."""


def _time_phases(stack: contextlib.ExitStack, watch: Stopwatch) -> list[str]:
    """Puts a clock around every function of `PHASES`; returns those that are not there."""
    missing = []
    for module, name, phase in PHASES:
        *classes, last = name.split(".")
        owner: Any = import_module(module)
        for part in classes:
            owner = getattr(owner, part, None)
        if last not in vars(owner or object):
            missing.append(f"{module}.{name}")
            continue
        _replace(stack, owner, last, _clocked(vars(owner)[last], watch, phase))
    return missing


def _clocked(function: Callable, watch: Stopwatch, phase: str) -> Callable:
    calls = 0

    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        name = phase if phase != "attack" else "quick attack" if calls == 1 else "attack turns"
        with watch.timed(name):
            return function(*args, **kwargs)

    return timed


def _time_operators(stack: contextlib.ExitStack, watch: Stopwatch) -> None:
    """Puts a clock around what every operator computes, and around automatic differentiation."""
    import torch

    import verifier.ops  # noqa: F401  (makes all operators known)
    from verifier.graph.op import Op

    classes = [Op]
    for cls in classes:
        classes += [sub for sub in cls.__subclasses__() if sub not in classes]
    for cls in classes:
        for method in METHODS.keys() & vars(cls).keys():
            _replace(stack, cls, method, _clocked_method(vars(cls)[method], watch, METHODS[method]))

    @wraps(torch.autograd.grad)
    def grad(*args: Any, **kwargs: Any) -> Any:
        with watch.timed("(autograd)", "gradients"):
            return original(*args, **kwargs)

    original = torch.autograd.grad
    _replace(stack, torch.autograd, "grad", grad)


def _clocked_method(method: Callable, watch: Stopwatch, step: str) -> Callable:
    @wraps(method)
    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        with watch.timed(type(self).__name__, step):
            return method(self, *args, **kwargs)

    return timed


def _replace(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Sets an attribute until the stack is left."""
    stack.callback(setattr, owner, name, vars(owner)[name])
    setattr(owner, name, value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--device", choices=get_args(Device), default="auto")
    parser.add_argument("--branching", choices=get_args(Branching), default="auto")
    parser.add_argument("--max-domains", type=int)
    parser.add_argument("--no-attack", action="store_true")
    words = parser.parse_args()
    options = Options(
        timeout=words.timeout,
        device=words.device,
        branching=words.branching,
        max_domains=words.max_domains,
        attack=not words.no_attack,
    )
    began = time.perf_counter()
    import_module("verifier.api")
    imported = time.perf_counter() - began
    print(machine())
    for line in profile(words.model, words.spec, options).lines(imported):
        print(line)


if __name__ == "__main__":
    main()
