"""Reading of large VNN-LIB 1 files: seconds from the text to the `Query`, for generated files of one size.

    python -m benchmarks.parser [--megabytes 10] [--runs 3] [--only KIND] [--normalise]

Medians of the runs. The goal is 3 s for 10 MB, whatever the file holds.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from benchmarks.common import machine
from verifier.specs.load import parse_query
from verifier.specs.normalise import normalise

GOAL = 3.0
INPUTS, OUTPUTS = 100, 50


class Texts:
    """Random pieces of text: numbers of 4 to 8 digits, names, sums."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)

    def number(self) -> str:
        return f"{self.rng.uniform(-9, 9):.{self.rng.randint(3, 7)}f}"

    def name(self) -> str:
        return f"Y_{self.rng.randrange(OUTPUTS)}"

    def names(self, count: int) -> list[str]:
        return [f"Y_{i}" for i in self.rng.sample(range(OUTPUTS), count)]

    def relation(self) -> str:
        return self.rng.choice(("<=", ">=", "<", ">"))

    def plain(self) -> str:
        return f"({self.relation()} {self.name()} {self.number()})"

    def weighted(self, count: int) -> str:
        terms = " ".join(f"(* {self.number()} {name})" for name in self.names(count))
        return f"({self.relation()} (+ {terms}) {self.number()})"

    def nested(self) -> str:
        """Left-deep sums, differences, products of a number with a sum, divisions."""
        a, b, c, d = self.names(4)
        n = self.number
        return self.rng.choice(
            (
                f"(<= (+ (+ (* {n()} {a}) (* {n()} {b})) (* {n()} {c})) {n()})",
                f"(>= (- {a} {b}) (* {n()} {c}))",
                f"(<= (* {n()} (+ {a} (* -1.0 {b}) {n()})) (- {c} {d}))",
                f"(< (/ (+ {a} {b} {c}) 3.0) (- (* {n()} {d})))",
            )
        )

    def deep(self, depth: int) -> str:
        """A sum that nests to the left."""
        terms = "".join(f" (* {self.number()} {self.name()}))" for _ in range(depth))
        return f"(<= {'(+ ' * depth}{self.name()}{terms} {self.number()})"

    def product(self) -> str:
        """Products of two and three variables, a square, a product of sums."""
        a, b, c, d = self.names(4)
        n = self.number
        return self.rng.choice(
            (
                f"(<= (* {a} {b}) {n()})",
                f"(>= (+ (* {n()} {a} {b} {c}) (* {n()} {d})) {n()})",
                f"(<= (- (* {a} {a}) (* 2.0 {b})) (* {n()} {c}))",
                f"(< (* (+ {a} {n()}) (- {b} {c})) 1.0)",
            )
        )

    def alternating(self, depth: int) -> str:
        opening = "".join(f"({('and', 'or')[i % 2]} {self.weighted(2)} " for i in range(depth))
        return opening + self.plain() + ")" * depth


def _asserts(atom: Callable[[Texts], str]) -> Callable[[Texts], str]:
    return lambda texts: f"(assert {atom(texts)})"


KINDS: dict[str, Callable[[Texts], str]] = {
    "comparisons of a variable and a number": _asserts(Texts.plain),
    "disjunctions of conjunctions of such": lambda t: (
        f"(assert (or {' '.join(f'(and {t.plain()} {t.plain()})' for _ in range(1000))}))"
    ),
    "sums of 2 weighted variables": _asserts(lambda t: t.weighted(2)),
    "sums of 20": _asserts(lambda t: t.weighted(20)),
    "sums of 50": _asserts(lambda t: t.weighted(50)),
    "differences of two variables": _asserts(lambda t: "(<= (- {} {}) 0)".format(*t.names(2))),
    "nested sums, products and quotients": _asserts(Texts.nested),
    "disjunctions of conjunctions of sums": lambda t: (
        f"(assert (or {' '.join(f'(and {t.weighted(3)} {t.plain()} {t.weighted(2)})' for _ in range(1000))}))"
    ),
    "and / or alternating 150 deep, with sums": lambda t: f"(assert {t.alternating(150)})",
    "sums nested 40 deep": _asserts(lambda t: t.deep(40)),
    "one weighted variable": _asserts(
        lambda t: f"(<= (* {t.rng.uniform(1, 9):.5f} {t.name()}) {t.number()})"
    ),
    "products of variables": _asserts(Texts.product),
    "variables that occur twice": _asserts(
        lambda t: "(<= (+ (* {} {a}) (* {} {a}) {b}) {})".format(
            t.number(), t.number(), t.number(), a=t.name(), b=t.name()
        )
    ),
    "chains of four operands": _asserts(
        lambda t: "(<= {} {} {} {})".format(t.number(), *t.names(2), t.number())
    ),
    "chains of sums": _asserts(lambda t: "(< {} (+ {} {}) {})".format(t.number(), *t.names(2), t.number())),
    "distinct, ==, comparisons of numbers": _asserts(
        lambda t: t.rng.choice(("(distinct {0} {1})", "(== {0} {2})", "(<= {2} 10)")).format(
            *t.names(2), t.number()
        )
    ),
    "not and =>": _asserts(lambda t: f"(=> {t.plain()} (not (and {t.plain()} {t.weighted(2)})))"),
    "numbers of 17 digits": _asserts(
        lambda t: f"(<= (+ (* {t.rng.gauss(0, 1)!r} {t.name()}) Y_0) {t.rng.gauss(0, 1)!r})"
    ),
    "numbers with exponents": _asserts(
        lambda t: f"(<= (+ (* {float(t.number()):.6e} {t.name()}) Y_0) {float(t.number()):.6e})"
    ),
    "negative numbers as (- 0.5)": _asserts(lambda t: f"(<= {t.name()} (- {abs(float(t.number()))}))"),
}


def text_of(kind: str, size: int) -> str:
    """About `size` characters of one kind, after the declarations and the bounds of the inputs."""
    names = [f"X_{i}" for i in range(INPUTS)] + [f"Y_{i}" for i in range(OUTPUTS)]
    lines = [f"(declare-const {name} Real)" for name in names]
    lines += [f"(assert (<= {name} 1.0))\n(assert (>= {name} -1.0))" for name in names[:INPUTS]]
    left, texts = size - sum(map(len, lines)), Texts()
    while left > 0:
        lines.append(KINDS[kind](texts))
        left -= len(lines[-1]) + 1
    return "\n".join(lines)


def seconds(work: Callable[[], object], runs: int) -> tuple[float, float]:
    """Median wall-clock and processor seconds."""
    found = []
    for _ in range(runs):
        wall, processor = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - wall, time.process_time() - processor))
    return median(wall for wall, _ in found), median(processor for _, processor in found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument(
        "--normalise", action="store_true", help="time the next step as well: boxes and atoms"
    )
    arguments = parser.parse_args()
    print(machine())
    print(
        f"{arguments.megabytes:g} MB each, medians of {arguments.runs}; goal: at most {GOAL:g} s for 10 MB\n"
    )
    print("| what the file holds | step | seconds | processor seconds |\n|---|---|---|---|")
    for kind in KINDS:
        if arguments.only not in kind:
            continue
        text = text_of(kind, int(arguments.megabytes * 1e6))
        steps: dict[str, Callable[[], object]] = {"parse": partial(parse_query, text)}
        if arguments.normalise:
            steps["normalise"] = partial(normalise, parse_query(text))
        for name, work in steps.items():
            wall, processor = seconds(work, arguments.runs)
            print(f"| {kind} | {name} | {wall:.2f} | {processor:.2f} |", flush=True)


if __name__ == "__main__":
    main()
