"""The least score of a tiny case by mixed-integer programming (HiGHS): an oracle that shares nothing with the verifier.

The network's kinks become binaries with big-M constants from interval arithmetic, the formula's disjunctions as well.
"""

from __future__ import annotations

from functools import reduce

import highspy
import numpy as np

from tests.verdicts.networks import Case, Join, Layer, Leaf

Form = tuple[dict[int, float], float]
"""An affine form of the program's columns: coefficients and constant."""


class Milp:
    """Minimises t = min over the box of the formula's score (or: minimum, and: maximum, atom: left side).

    Without a `gap` the argument of a sign may be zero where its value is -1 or 1, so that a least score that is only
    approached counts; but where an argument is zero on a whole region, too little may come out. With a gap arguments
    of at least that size are asked for, and too much may come out.
    """

    def __init__(self, case: Case, gap: float = 0.0) -> None:
        self.gap = gap
        self.highs = highspy.Highs()
        self.highs.setOptionValue("output_flag", False)
        self.highs.setOptionValue("threads", 1)
        # with presolve, HiGHS 1.15 calls a worse point optimal in one or two of a hundred of these programs
        self.highs.setOptionValue("presolve", "off")
        self.highs.setOptionValue("mip_rel_gap", 0.0)
        self.highs.setOptionValue("mip_abs_gap", 1e-7)
        self.ends: list[tuple[float, float]] = []
        x = [self._column(a, b) for a, b in zip(case.lower, case.upper, strict=True)]
        values = [x]
        for layer in case.net.layers:
            values.append(self._layer(layer, [values[i] for i in layer.inputs]))
        self.variables = [*x, *values[-1]]
        low, high = self._score_range(case.formula)
        self.score = self._column(low - 1, high + 1)
        self.big = high - low + 2
        self._require(case.formula, None)
        self.highs.changeColCost(next(iter(self.score[0])), 1.0)

    def minimum(self, enough: float = -np.inf) -> float:
        """The least score, or one that some point has and that is at most `enough`; raises RuntimeError where HiGHS
        proves neither."""
        self.highs.setOptionValue("objective_target", max(enough, -highspy.kHighsInf))
        self.highs.run()
        if self.highs.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
            # it never is: once in some hundred programs HiGHS 1.15 errs within its usual tolerances
            for name in ("mip_feasibility_tolerance", "primal_feasibility_tolerance"):
                self.highs.setOptionValue(name, 1e-9)
            self.highs.clearSolver()
            self.highs.run()
        ends = (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kObjectiveTarget)
        if self.highs.getModelStatus() not in ends:
            raise RuntimeError(f"HiGHS: {self.highs.getModelStatus()}")
        return float(self.highs.getInfo().objective_function_value)

    # --- columns and forms

    def _column(self, low: float, high: float, integer: bool = False) -> Form:
        self.highs.addVar(float(low), float(high))
        self.ends.append((float(low), float(high)))
        column = len(self.ends) - 1
        if integer:
            self.highs.changeColIntegrality(column, highspy.HighsVarType.kInteger)
        return {column: 1.0}, 0.0

    def _row(self, form: Form, low: float, high: float) -> None:
        index = np.array(list(form[0]), dtype=np.int32)
        values = np.array(list(form[0].values()), dtype=np.float64)
        self.highs.addRow(low - form[1], high - form[1], len(index), index, values)

    def _range(self, form: Form) -> tuple[float, float]:
        low = high = form[1]
        for column, a in form[0].items():
            ends = sorted((a * self.ends[column][0], a * self.ends[column][1]))
            low, high = low + ends[0], high + ends[1]
        return low, high

    def _sum(self, *parts: tuple[float, Form], shift: float = 0.0) -> Form:
        total: dict[int, float] = {}
        for factor, (terms, constant) in parts:
            shift += factor * constant
            for column, a in terms.items():
                total[column] = total.get(column, 0.0) + factor * a
        return total, shift

    # --- the network

    def _parts(self, z: Form) -> tuple[Form, Form]:
        """(p, n) with z = p - n, both at least 0 and one of them 0."""
        low, high = self._range(z)
        if low >= 0:
            return z, ({}, 0.0)
        if high <= 0:
            return ({}, 0.0), self._sum((-1.0, z))
        p, n, on = self._column(0, high), self._column(0, -low), self._column(0, 1, integer=True)
        self._row(self._sum((1.0, z), (-1.0, p), (1.0, n)), 0.0, 0.0)
        self._row(self._sum((1.0, p), (-high, on)), -np.inf, 0.0)
        self._row(self._sum((1.0, n), (-low, on), shift=low), -np.inf, 0.0)
        return p, n

    def _layer(self, layer: Layer, xs: list[list[Form]]) -> list[Form]:
        c, x = layer.constants, xs[0]
        match layer.kind:
            case "affine":
                rows = zip(np.asarray(c["weight"], float), np.asarray(c["bias"], float), strict=True)
                return [
                    self._sum(*((float(a), v) for a, v in zip(w, x, strict=True)), shift=float(b))
                    for w, b in rows
                ]
            case "relu":
                return [self._parts(v)[0] for v in x]
            case "leaky" | "abs":
                slope = -1.0 if layer.kind == "abs" else float(c["alpha"])
                return [self._sum((1.0, p), (-slope, n)) for p, n in map(self._parts, x)]
            case "sign" | "binary":
                return [self._sign(v, layer.kind == "binary") for v in x]
            case "clip":
                low, high = float(c["low"]), float(c["high"])
                above_low = [self._parts(self._sum((1.0, v), shift=-low))[0] for v in x]
                above_high = [self._parts(self._sum((1.0, v), shift=-high))[0] for v in x]
                pairs = zip(above_low, above_high, strict=True)
                return [self._sum((1.0, a), (-1.0, b), shift=low) for a, b in pairs]
            case "pool":
                return [reduce(self._largest, [x[j] for j in own]) for own in layer.windows()]
            case "mean":
                return [self._sum(*((1.0 / len(own), x[j]) for j in own)) for own in layer.windows()]
            case "add":
                return [self._sum((1.0, a), (1.0, b)) for a, b in zip(*xs, strict=True)]
            case "max":
                return [self._largest(a, b) for a, b in zip(*xs, strict=True)]
            case "min":
                gaps = [(a, self._parts(self._sum((1.0, a), (-1.0, b)))[0]) for a, b in zip(*xs, strict=True)]
                return [self._sum((1.0, a), (-1.0, p)) for a, p in gaps]
            case "concat":
                return [form for part in xs for form in part]
        raise ValueError(layer.kind)

    def _sign(self, z: Form, binary: bool) -> Form:
        """-1, 0 (1 if `binary`) or 1."""
        low, high = self._range(z)
        if low > 0 or high < 0:
            return {}, 1.0 if low > 0 else -1.0
        low, high = min(low, -self.gap), max(high, self.gap)
        left, right = self._column(0, 1, integer=True), self._column(0, 1, integer=True)
        self._row(self._sum((1.0, left), (1.0, right)), 1.0 if binary else -np.inf, 1.0)
        # low * left + least * right <= z <= high * right - gap * left
        least = 0.0 if binary else self.gap
        self._row(self._sum((1.0, z), (-high, right), (self.gap, left)), -np.inf, 0.0)
        self._row(self._sum((1.0, z), (-low, left), (-least, right)), 0.0, np.inf)
        return self._sum((1.0, right), (-1.0, left))

    def _largest(self, a: Form, b: Form) -> Form:
        return self._sum((1.0, b), (1.0, self._parts(self._sum((1.0, a), (-1.0, b)))[0]))

    # --- the formula

    def _atom(self, leaf: Leaf) -> Form:
        return self._sum(*((a, self.variables[i]) for i, a in leaf.terms), shift=leaf.constant)

    def _score_range(self, formula: Join | Leaf) -> tuple[float, float]:
        if isinstance(formula, Leaf):
            return self._range(self._atom(formula))
        ranges = [self._score_range(child) for child in formula.children]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def _require(self, formula: Join | Leaf, when: Form | None) -> None:
        """score >= the formula's score, if the binary `when` is 1 (always, where it is None)."""
        if isinstance(formula, Leaf):
            form = self._sum((1.0, self._atom(formula)), (-1.0, self.score))
            if when is not None:
                form = self._sum((1.0, form), (self.big, when), shift=-self.big)
            self._row(form, -np.inf, 0.0)
        elif formula.both:
            for child in formula.children:
                self._require(child, when)
        else:
            picks = [self._column(0, 1, integer=True) for _ in formula.children]
            for child, pick in zip(formula.children, picks, strict=True):
                self._require(child, pick)
            least = ({}, 1.0) if when is None else when
            self._row(self._sum(*((1.0, p) for p in picks), (-1.0, least)), 0.0, np.inf)
