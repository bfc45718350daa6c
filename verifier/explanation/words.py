"""Disjuncts and inputs in the words of the query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from verifier.specs.problem import Problem
from verifier.specs.query import Query
from verifier.specs.ties import Ties

TERMS, ATOMS = 4, 3
"""A longer sum or conjunction ends with how much more there is."""


class Words:
    """`problem` is the normal form of `query`."""

    def __init__(self, query: Query, problem: Problem) -> None:
        self._query, self._problem = query, problem
        self._flat = np.argsort(problem.position)

    def inputs(self, ties: Ties | None = None) -> list[str]:
        """The names of all input elements, in order; where some are tied to others, of the free ones: an input, or
        by how much one deviates from another."""
        names = [self._name(column) for column in range(self._problem.inputs)]
        if ties is None:
            return names
        free = [""] * ties.free
        for name, base, deviation in zip(names, ties.base.tolist(), ties.deviation.tolist(), strict=True):
            if deviation < 0:
                free[base] = free[base] or name
            else:
                free[deviation] = free[deviation] or f"deviation of {name}"
        return free

    def conjunction(self, atoms: Sequence[int]) -> str:
        """What a disjunct asks for."""
        shown = [self.atom(k) for k in atoms[:ATOMS]]
        rest = len(atoms) - len(shown)
        return " and ".join(shown) + (f" and {rest} more" if rest else "")

    def atom(self, number: int) -> str:
        """One comparison, with what is subtracted on the other side."""
        p = self._problem
        if number >= p.atoms:
            return "another part of the query"  # of many disjuncts as one margin, or a bound of tied inputs
        mine = p.rows == number
        terms = [(float(v), self._name(c)) for v, c in zip(p.values[mine], p.cols[mine], strict=True)]
        for part in p.nonlinear:
            if part.atom == number:
                products = ["*".join(self._name(c) for c in m) for m in part.monomials]
                terms += list(zip(part.coefficients, products, strict=True))
        constant = float(p.constants[number])
        left = [(v, name) for v, name in terms if v > 0]
        right = [(-v, name) for v, name in terms if v < 0]
        sign = "<" if p.strict[number] else "<="
        if not left:
            return f"{_sum(right, 0.0)} {sign.replace('<', '>')} {constant:.6g}"
        return f"{_sum(left, 0.0)} {sign} {_sum(right, -constant)}"

    def _name(self, column: int) -> str:
        return self._query.element_name(int(self._flat[column]))


def _sum(terms: Sequence[tuple[float, str]], constant: float) -> str:
    shown = [name if v == 1 else f"{v:.6g}*{name}" for v, name in terms[:TERMS]]
    shown += [f"({len(terms) - TERMS} more terms)"] if len(terms) > TERMS else []
    shown += [f"{constant:.6g}"] if constant or not terms else []
    return " + ".join(shown).replace("+ -", "- ")
