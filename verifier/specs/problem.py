"""The normal form of a query: boxes, a table of atoms, and a formula over atom ids per box."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.specs.formula import And, Or

Tree = int | And | Or
"""A formula over atom ids: an id, or `And` / `Or` of trees; ``And(())`` is true, ``Or(())`` false."""


@dataclass(frozen=True)
class NonlinearPart:
    """The terms of degree >= 2 of atom ``atom``: ``sum(coefficients[i] * product(v[monomials[i]]))``."""

    atom: int
    monomials: tuple[tuple[int, ...], ...]
    coefficients: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Problem:
    """N boxes ("cases") and, for each, a formula over K atoms. The query holds iff some case does.

    The vector v has all input elements, then all hidden, then all output elements, each in declaration order;
    ``position`` int64 [size] maps a query's flat index to its place in v. ``lower`` and ``upper`` float64
    [N, inputs] are finite and rounded outward: they are the tightest floats around the exact decimals.

    Atom k says ``sum(values * v[cols] where rows == k) + (its NonlinearPart) + constants[k] <= 0``; ``< 0``
    where ``strict[k]``. The constant is rounded *down*, which only weakens the atom. Each coefficient is
    within the relative error ``coefficient_error[k]`` of the exact one: 0.0 (exact) or ``2**-53``.

    ``formulas[formula_index[i]]`` is the tree of case i; no tree is false. Satisfying the query implies
    satisfying box and tree of some case (with exact coefficients); the converse holds up to the rounding.
    With no cases left, ``empty_reason`` says why: then the query is proved to have no solution.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    position: NDArray[np.int64]
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    values: NDArray[np.float64]
    constants: NDArray[np.float64]
    strict: NDArray[np.bool_]
    coefficient_error: NDArray[np.float64]
    nonlinear: tuple[NonlinearPart, ...]
    formulas: tuple[Tree, ...]
    formula_index: NDArray[np.int64]
    empty_reason: str | None = None

    @property
    def cases(self) -> int:
        """N."""
        return len(self.lower)

    @property
    def atoms(self) -> int:
        """K."""
        return len(self.constants)

    @property
    def inputs(self) -> int:
        """Number of input elements."""
        return self.lower.shape[1]

    @property
    def input_only(self) -> NDArray[np.bool_]:
        """[K] whether an atom mentions no hidden and no output element."""
        only = np.ones(self.atoms, dtype=bool)
        only[self.rows[self.cols >= self.inputs]] = False
        for part in self.nonlinear:
            if any(index >= self.inputs for monomial in part.monomials for index in monomial):
                only[part.atom] = False
        return only

    def formula(self, case: int) -> Tree:
        """The tree of a case; ``And(())`` when nothing but the box constrains it."""
        return self.formulas[self.formula_index[case]]

    def dnf(self, case: int, limit: int) -> list[list[int]] | None:
        """The case's formula as a list of conjunctions of atom ids; None if there are more than `limit`."""
        tree = self.formula(case)
        return disjuncts(tree) if count_disjuncts(tree) <= limit else None


def count_disjuncts(tree: Tree) -> int:
    """How many conjunctions `disjuncts` gives at most."""
    if isinstance(tree, And):
        return math.prod(count_disjuncts(child) for child in tree.children)
    if isinstance(tree, Or):
        return sum(count_disjuncts(child) for child in tree.children)
    return 1


def disjuncts(tree: Tree) -> list[list[int]]:
    """The disjunctive normal form; ids within a conjunction are distinct."""
    if isinstance(tree, Or):
        return [conjunct for child in tree.children for conjunct in disjuncts(child)]
    if isinstance(tree, And):
        choices = itertools.product(*(disjuncts(child) for child in tree.children))
        return [list(dict.fromkeys(itertools.chain.from_iterable(choice))) for choice in choices]
    return [[tree]]
