"""How far the prefix of a reversed string may be moved: `python -m benchmarks.rwkv7 [CHECKPOINT]`.

The public RWKV-7 checkpoint answers "12," by "21#". Property: while every element of the embeddings of the digits and
of the comma moves by at most a radius, the first token of the answer, the output at the comma, stays the most likely
one. For 20 seeded strings of 1 to 5 digits: the smallest radius at which projected gradient descent changes the token,
and the largest one that is certified, with the network written in either form. Both are found by shrinking an interval
of radii; a step tries several radii in one call, as one batch.

Every result is a line of FILE (benchmarks/cache/rwkv7.jsonl); what stands there is not computed again. The table comes
last.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import ROOT, machine
from verifier import robust, trace
from verifier.bounds.alpha import AlphaOptions, optimise
from verifier.bounds.crown import Effort, inner_bounds, specification_bound
from verifier.graph import Graph
from verifier.graph.coefficients import identity
from verifier.models.layer import Form
from verifier.models.rwkv7 import RWKV7Model
from verifier.models.rwkv7_checkpoint import VOCABULARY, load_rwkv7
from verifier.sets import Box
from verifier.specs.compile import compile_query

CHECKPOINT = Path(os.environ.get("VERIFIER_SHARED", ROOT.parent / "shared")) / "models/rwkv7_reverse_L2.pth"
FORMS: tuple[Form, ...] = ("recurrent", "parallel")
KINDS = ("attack", "crown", "alpha-crown")
RADII = 5
"""Tried at once."""
ROUNDS = 3
"""An interval of radii shrinks to its (RADII + 1)th part, in logarithms, in each."""
WIDEST = 100.0
"""Certified radii are looked for from the attacked one down to this part of it."""


@dataclass(frozen=True)
class Row:
    """One result: the attack's radius, or what a method certifies of a form. `margin` is that of the string itself."""

    text: str
    kind: str
    form: Form
    radius: float
    margin: float
    seconds: float


@dataclass(frozen=True)
class Settings:
    checkpoint: Path
    out: Path
    device: str
    iterations: int
    memory: int
    method: str = "crown"


class FirstAnswer(nn.Module):
    """Embeddings of the prefix [1, T, width] to the scores of the next token [1, vocabulary]."""

    def __init__(self, model: RWKV7Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, -1]


def strings(each: int, lengths: Sequence[int]) -> list[str]:
    """Different strings of digits of each length, the same ones in every run."""
    found = []
    for length in lengths:
        generator = random.Random(length)
        chosen: list[str] = []
        while len(chosen) < each:
            text = "".join(generator.choice("0123456789") for _ in range(length))
            chosen += [text] if text not in chosen else []
        found += chosen
    return found


def prefix(model: RWKV7Model, text: str) -> Tensor:
    """The embeddings [1, T, width] of a string and its comma."""
    return model.embed(torch.tensor([[VOCABULARY.index(c) for c in text + ","]])).detach()


def gap(scores: Tensor, label: int) -> Tensor:
    """How far the right score [N, vocabulary] exceeds the others: [N]."""
    others = scores.clone()
    others[:, label] = -torch.inf
    return scores[:, label] - others.amax(1)


def attack(module: nn.Module, x: Tensor, label: int, steps: int = 60, restarts: int = 3) -> float:
    """The smallest radius at which some start of projected gradient descent, towards some other token, changes the
    answer, measured on the point that was found."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = module(x).shape[1]
    targets = torch.tensor([t for t in range(vocabulary) if t != label]).repeat(restarts)

    def reached(radius: float) -> float:
        """The radius of the nearest point of another answer that is found within `radius`."""
        noise = torch.rand(len(targets), *x.shape[1:], generator=generator, dtype=x.dtype)
        shift, best = radius * (2 * noise - 1), torch.inf
        for step in range(steps + 1):
            z = (x + shift).requires_grad_()
            scores = module(z)
            wrong = gap(scores.detach(), label) < 0
            if bool(wrong.any()):
                best = min(best, float((z.detach() - x)[wrong].abs().amax((1, 2)).min()))
            margin = scores[:, label] - scores.gather(1, targets.unsqueeze(1)).squeeze(1)
            slope = torch.autograd.grad(margin.sum(), z)[0]
            shift = (shift - 0.5 * radius * (1 - step / (steps + 1)) * slope.sign()).clamp(-radius, radius)
        return best

    low, high = 1e-4, 1.0
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        found = reached(middle)
        low, high = (middle, high) if found == torch.inf else (low, min(middle, found))
    return high


@dataclass(frozen=True)
class Network:
    """A traced module as queries see it."""

    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kept: Mapping[str, int] = field(default_factory=dict)


def certified(module: nn.Module, x: Tensor, label: int, ends: tuple[float, float], given: Settings) -> float:
    """The largest radius, of those tried between the ends, at which all margins are proved positive; 0 for none."""
    query = robust(x, label, ends[1]).to_query((1, len(VOCABULARY)))
    traced = trace(module, x)
    network = Network(traced.graph(torch.float64), traced.inputs, traced.outputs)
    compiled = compile_query(query, {query.networks[0].name: network})
    graph = compiled.graph_on(torch.float32, torch.device(given.device))
    target, flat = graph.outputs[0], x.flatten().double().unsqueeze(0).to(given.device)
    rows = identity(graph.nodes[target].shape, flat.float())
    options = AlphaOptions(given.iterations, threshold=0.0, memory=given.memory)

    def holds(radii: Tensor) -> Tensor:
        reach = radii.unsqueeze(1).to(flat)
        box = Box((flat - reach).float(), (flat + reach).float())  # `largest` reports a little less
        if given.method == "crown":
            bounds = inner_bounds(graph, [box], [target], effort=Effort(memory=given.memory))
            lower = specification_bound(graph, [box], target, rows, bounds).minimum(graph, [box])
        else:
            lower = optimise(graph, [box], target, rows, options=options).lower
        return (lower > 0).all(1).cpu()

    with torch.no_grad():
        return largest(holds, *ends)


def largest(holds: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    """The largest radius, of those tried between `low` and `high`, for which `holds` was true, less a thousandth for
    the rounding of boxes; 0 for none."""
    best = 0.0
    for _ in range(ROUNDS):
        radii = torch.logspace(0, 1, RADII + 2, base=high / low, dtype=torch.float64)[1:-1] * low
        answers = holds(radii).tolist()
        if True in answers:
            last = RADII - 1 - answers[::-1].index(True)
            low, high = float(radii[last]), float(radii[last + 1]) if last + 1 < RADII else high
            best = low
        else:
            high = float(radii[0])
    return 0.999 * best


@cache
def model(path: Path, form: Form) -> RWKV7Model:
    found = load_rwkv7(path, form)
    for parameter in found.parameters():
        parameter.requires_grad_(False)
    return found


def measured(text: str, kind: str, form: Form, before: Mapping[str, float], given: Settings) -> Row:
    """One row; `before` are the radii that are known of this string and form, by kind."""
    torch.set_num_threads(1)
    network = model(given.checkpoint, form)
    module, x = FirstAnswer(network).eval(), prefix(network, text)
    scores = module(x)
    label = VOCABULARY.index(text[-1])
    margin = float(gap(scores, label))
    if margin <= 0:
        raise ValueError(f"The model answers {text!r} wrongly.")
    began = time.perf_counter()
    if kind == "attack":
        radius = attack(module, x, label)
    else:
        low = before.get("crown", 0.0) or before["attack"] / WIDEST
        radius = certified(module, x, label, (low, before["attack"]), replace(given, method=kind))
        radius = max(radius, before.get("crown", 0.0))
    return Row(text, kind, form, radius, margin, time.perf_counter() - began)


def read(path: Path) -> dict[tuple[str, str, str], Row]:
    lines = path.read_text().splitlines() if path.is_file() else []
    rows = [Row(**json.loads(line)) for line in lines]
    return {(row.text, row.kind, row.form): row for row in rows}


def fill(pool: Executor, texts: Sequence[str], kind: str, given: Settings) -> None:
    """Computes what is missing of one kind; every result is written when it is there."""
    rows = read(given.out)
    waiting = []
    for text in texts:
        for form in FORMS[:1] if kind == "attack" else FORMS:
            if (text, kind, form) in rows:
                continue
            before = {
                k: r.radius for (t, k, f), r in rows.items() if t == text and (f == form or k == "attack")
            }
            waiting.append(pool.submit(measured, text, kind, form, before, given))
    for done in as_completed(waiting):
        row = done.result()
        with given.out.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(f"{row.text:6} {row.kind:12} {row.form:10} {row.radius:.5f}  {row.seconds:.1f} s", flush=True)


def table(rows: Mapping[tuple[str, str, str], Row], texts: Sequence[str]) -> Iterator[str]:
    """One line per string, with the better form of each method, and medians per length. Raises ValueError where a
    certified radius is above an attacked one: one of the two is wrong then."""
    kinds = [k for k in KINDS[1:] if any(row.kind == k for row in rows.values())]
    yield "| string | margin | attacked | " + " | ".join(f"{k} | form | s | ratio" for k in kinds) + " |"
    yield "|---|--:|--:|" + "--:|---|--:|--:|" * len(kinds)
    ratios: dict[tuple[int, str], list[float]] = {}
    for text in texts:
        attacked = rows[text, "attack", FORMS[0]]
        cells = [text, f"{attacked.margin:.1f}", f"{attacked.radius:.4f}"]
        for kind in kinds:
            found = [rows[text, kind, form] for form in FORMS if (text, kind, form) in rows]
            best = max(found, key=lambda row: row.radius, default=None)
            if best is None:
                cells += ["", "", "", ""]
                continue
            if best.radius > attacked.radius:
                raise ValueError(f"{text}: {best.radius} is certified, but {attacked.radius} attacked.")
            ratio = best.radius / attacked.radius
            ratios.setdefault((len(text), kind), []).append(ratio)
            cells += [f"{best.radius:.5f}", best.form, f"{best.seconds:.0f}", f"{ratio:.3f}"]
        yield "| " + " | ".join(cells) + " |"
    yield ""
    for (length, kind), own in sorted(ratios.items()):
        yield f"{kind}, length {length}: median ratio {statistics.median(own):.3f}, least {min(own):.3f} of {len(own)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--each", type=int, default=4, help="strings of each length")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:2])
    parser.add_argument("--iterations", type=int, default=10, help="of alpha-CROWN")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--memory", type=float, default=1.0, help="GB for coefficients, per job")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/cache/rwkv7.jsonl")
    words = parser.parse_args()
    if not words.checkpoint.is_file():
        sys.exit(f"there is no checkpoint {words.checkpoint}")
    words.out.parent.mkdir(exist_ok=True)
    memory = int(words.memory * 2**30)
    given = Settings(words.checkpoint, words.out, words.device, words.iterations, memory)
    texts = strings(words.each, words.lengths)
    with ProcessPoolExecutor(words.jobs, get_context("spawn")) as pool:
        for kind in words.kinds:
            fill(pool, texts, kind, given)
    print(f"\n{machine()}\n")
    for line in table(read(given.out), texts):
        print(line)


if __name__ == "__main__":
    main()
