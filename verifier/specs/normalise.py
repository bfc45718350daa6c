"""From a query to boxes, an atom table and formulas over atom ids."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from verifier.environment import without_collections
from verifier.specs.atoms import AtomTable
from verifier.specs.errors import SpecError
from verifier.specs.formula import (
    FALSE,
    LOWER,
    NO_ROWS,
    STRICT,
    TRUE,
    UPPER,
    And,
    Atom,
    Clauses,
    Formula,
    Or,
    Relation,
    RowTable,
    conjunction,
    disjunction,
)
from verifier.specs.implied import fill
from verifier.specs.problem import Problem, Tree
from verifier.specs.query import Kind, Query
from verifier.specs.sums import ranges

MAX_PRODUCT = 64
"""Several disjunctions over the inputs are multiplied out into cases up to this many."""
MAX_DENSE = 50_000_000
"""A disjunction with more (disjuncts x inputs) than this stays in the formula."""


@without_collections()
def normalise(query: Query) -> Problem:
    """The normal form of `query`.

    Raises `SpecError` when an input is unbounded or a coefficient is beyond float64.
    """
    return _Normaliser(query).problem()


def engine_positions(query: Query) -> NDArray[np.int64]:
    """[size] the place in v (inputs, hidden, outputs) of every flat index of the query."""
    position = np.empty(query.size, dtype=np.int64)
    place = 0
    for kind in (Kind.INPUT, Kind.HIDDEN, Kind.OUTPUT):
        for variable in query.of_kind(kind):
            position[variable.offset : variable.offset + variable.size] = range(place, place + variable.size)
            place += variable.size
    return position


@dataclass(frozen=True, eq=False)
class _Disjuncts:
    """D disjuncts: keys [D, inputs] of their own input bounds, and what else each says."""

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    trees: list[Tree]


class _Normaliser:
    def __init__(self, query: Query) -> None:
        self.query = query
        self.position = engine_positions(query)
        self.inputs = sum(variable.size for variable in query.of_kind(Kind.INPUT))
        atoms, table = _leaves(query.formula)
        self.table = table
        self.atoms = AtomTable(table, atoms, self.position)
        self.scale = self.atoms.scale
        of_input = self.position[table.left] < self.inputs
        self.bounding = of_input & (table.right < 0) & (table.relation != Relation.NE)
        """Which rows bound one input by a number."""
        self.bounds_before = np.concatenate(([0], np.cumsum(self.bounding))).tolist()
        formula = query.formula
        self.conjuncts = formula.children if isinstance(formula, And) else (formula,)

    def problem(self) -> Problem:
        split, kept = self._choose(
            [(part, found) for part in self.conjuncts if (found := self._split(part)) is not None]
        )
        chosen = {id(part) for part, _ in split}
        top = self._disjuncts((And(tuple(part for part in self.conjuncts if id(part) not in chosen)),))
        hulls = [self._hull(found) for _, found in kept]
        lower = np.max([top.lower[0], *(low for low, _ in hulls)], axis=0)
        upper = np.min([top.upper[0], *(high for _, high in hulls)], axis=0)
        lower, upper, trees = self._product([found for _, found in split], lower, upper, top.trees[0])
        self._propagate(lower, upper)
        alive = (lower <= upper).all(axis=1) & np.array([tree != FALSE for tree in trees], dtype=bool)
        if not alive.any():
            return self._finish(lower[:0], upper[:0], [], self._reason(lower, upper, trees))
        lower, upper = lower[alive], upper[alive]
        trees = self._with_strict(lower, upper, list(itertools.compress(trees, alive)))
        problem = self._finish(lower, upper, trees, None)
        low, high = fill(problem.lower, problem.upper, self.conjuncts, self.position)
        self._require_bounds(low, high)
        return replace(problem, lower=low, upper=high)

    def _finish(self, lower: NDArray, upper: NDArray, trees: list[Tree], reason: str | None) -> Problem:
        distinct = {tree: i for i, tree in enumerate(dict.fromkeys(trees))}
        return Problem(
            lower=self.scale.lower(lower),
            upper=self.scale.upper(upper),
            position=self.position,
            formulas=tuple(distinct),
            formula_index=np.array([distinct[tree] for tree in trees], dtype=np.int64),
            empty_reason=reason,
            **self.atoms.arrays(),
        )

    # --- conjunctions and disjunctions

    def _split(self, part: Formula) -> _Disjuncts | None:
        """`part` as disjuncts that each bound an input, or None when it is not of that kind."""
        if isinstance(part, Clauses) and len(part) > 1:
            children: tuple[Formula, ...] = (part,)
        elif isinstance(part, Or) and part.children:
            children = part.children
        else:
            return None
        total = sum(len(child) if isinstance(child, Clauses) else 1 for child in children)
        if total * self.inputs > MAX_DENSE or not all(map(self._bounds_inputs, children)):
            return None
        return self._disjuncts(children)

    def _bounds_inputs(self, part: Formula) -> bool:
        """Whether each disjunct of `part` (a clause, or the whole) has a row that bounds an input."""
        before = self.bounds_before
        if isinstance(part, Clauses):
            return all(before[a] < before[b] for a, b in itertools.pairwise(part.offsets.tolist()))
        if isinstance(part, And):
            spans = ((m.start, m.stop) for m in part.children if isinstance(m, Clauses) and len(m) == 1)
            return any(before[a] < before[b] for a, b in spans)
        return False

    def _disjuncts(self, parts: Iterable[Formula]) -> _Disjuncts:
        """The clauses of `parts`, and the other parts, as disjuncts: bounds of inputs as keys, the rest as trees."""
        owners: list[int] = []
        bounds: list[NDArray] = []
        others: dict[int, list[Tree]] = {}
        count = 0
        for part in parts:
            if isinstance(part, Clauses):
                bounds.append(part.offsets)
                owners += range(count, count + len(part))
                count += len(part)
                continue
            for member in part.children if isinstance(part, And) else (part,):
                if isinstance(member, Clauses) and len(member) == 1:
                    bounds.append(member.offsets)
                    owners.append(count)
                else:
                    others.setdefault(count, []).append(self._tree(member))
            count += 1
        owner = np.array(owners, dtype=np.int64)
        start = np.concatenate([np.zeros(0, dtype=np.int64), *(offsets[:-1] for offsets in bounds)])
        stop = np.concatenate([np.zeros(0, dtype=np.int64), *(offsets[1:] for offsets in bounds)])
        rows, owner = ranges(start, stop - start), np.repeat(owner, stop - start)
        lower, upper = self._boxes(rows, owner, count)
        rest = ~self.bounding[rows]
        leaves = self.atoms.leaves(rows[rest].tolist())
        bounds = np.searchsorted(owner[rest], np.arange(count + 1)).tolist()
        trees = [
            _all([*leaves[a:b], *others.get(i, ())]) for i, (a, b) in enumerate(itertools.pairwise(bounds))
        ]
        return _Disjuncts(lower, upper, trees)

    def _boxes(
        self, rows: NDArray, owner: NDArray, count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Keys [count, inputs] of the bounds that some rows set on the inputs of their owners."""
        lower, upper = self._blank(count)
        rows, owner = rows[self.bounding[rows]], owner[self.bounding[rows]]
        place = owner * self.inputs + self.position[self.table.left[rows]]
        rank2 = 2 * self.scale.rank[~self.table.right[rows]]
        relation = self.table.relation[rows]
        low, high = LOWER[relation], UPPER[relation]
        np.maximum.at(lower.reshape(-1), place[low], (rank2 + (relation == Relation.GT))[low])
        np.minimum.at(upper.reshape(-1), place[high], (rank2 - (relation == Relation.LT))[high])
        return lower, upper

    def _blank(self, disjuncts: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shape = (disjuncts, self.inputs)
        return np.full(shape, -1, dtype=np.int64), np.full(shape, self.scale.no_upper, dtype=np.int64)

    def _tree(self, formula: Formula) -> Tree:
        """The whole formula as a tree, bounds of inputs included."""
        if isinstance(formula, Atom):
            return self.atoms.general(formula)
        if isinstance(formula, And):
            return _all([self._tree(child) for child in formula.children])
        if isinstance(formula, Or):
            return _any([self._tree(child) for child in formula.children])
        leaves = self.atoms.leaves(range(formula.start, formula.stop))
        bounds = (formula.offsets - formula.start).tolist()
        return _any([_all(leaves[a:b]) for a, b in itertools.pairwise(bounds)])

    # --- cases

    def _choose(self, candidates: list[tuple[Formula, _Disjuncts]]) -> tuple[list, list]:
        """Which disjunctions become cases: the largest, and others while the product stays small."""
        ordered = sorted(candidates, key=lambda pair: len(pair[1].trees))
        split, count = ordered[-1:], len(ordered[-1][1].trees) if ordered else 0
        kept = []
        for pair in ordered[:-1]:
            count *= len(pair[1].trees)
            (split if count <= MAX_PRODUCT else kept).append(pair)
        return split, kept

    def _hull(self, found: _Disjuncts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Keys of a box around all disjuncts that are not empty."""
        alive = (found.lower <= found.upper).all(axis=1)
        if not alive.any():
            alive = np.full(len(found.trees), True)
        return found.lower[alive].min(axis=0), found.upper[alive].max(axis=0)

    def _product(
        self, split: list[_Disjuncts], lower: NDArray, upper: NDArray, tree: Tree
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], list[Tree]]:
        """All choices of one disjunct each, intersected with the common bounds and conjoined with `tree`."""
        sizes = [len(found.trees) for found in split]
        choices = np.indices(sizes).reshape(len(sizes), math.prod(sizes))
        lower, upper = (np.repeat(side[None], math.prod(sizes), axis=0) for side in (lower, upper))
        for found, choice in zip(split, choices, strict=True):
            np.maximum(lower, found.lower[choice], out=lower)
            np.minimum(upper, found.upper[choice], out=upper)
        if not split:
            return lower, upper, [tree]
        if tree == TRUE and len(split) == 1:
            return lower, upper, split[0].trees
        columns = ([found.trees[i] for i in row] for found, row in zip(split, choices.tolist(), strict=True))
        return lower, upper, [_all((tree, *parts)) for parts in zip(*columns, strict=True)]

    def _propagate(self, lower: NDArray[np.int64], upper: NDArray[np.int64]) -> None:
        """Tighten keys [N, inputs] in place through ``v[a] <= v[b]`` that hold in every case."""
        parts = [part for part in self.conjuncts if isinstance(part, Clauses) and len(part) == 1]
        pairs = [self._order_pairs(part) for part in parts]
        if not pairs:
            return
        small, large, strict = (np.concatenate(side) for side in zip(*pairs, strict=True))
        for _ in range(2 * len(small)):
            before = lower.sum() - upper.sum()
            # `| 1` and `(- 1) | 1` make keys strict, and leave those of missing bounds as they are
            low, high = lower.T[small], upper.T[large]
            np.maximum.at(lower.T, large, np.where(strict[:, None], low | 1, low))
            np.minimum.at(upper.T, small, np.where(strict[:, None], (high - 1) | 1, high))
            if lower.sum() - upper.sum() == before:
                return

    def _order_pairs(self, part: Clauses) -> tuple[NDArray, NDArray, NDArray]:
        """(small, large, strict): the rows ``small <= large`` between two inputs, ``==`` both ways."""
        table, rows = part.table, slice(part.start, part.stop)
        right, relation = table.right[rows], table.relation[rows]
        a, b = self.position[table.left[rows]], self.position[np.maximum(right, 0)]
        between = (right >= 0) & (a < self.inputs) & (b < self.inputs)
        up, down, strict = between & UPPER[relation], between & LOWER[relation], STRICT[relation]
        return (
            np.concatenate((a[up], b[down])),
            np.concatenate((b[up], a[down])),
            np.concatenate((strict[up], strict[down])),
        )

    def _with_strict(self, lower: NDArray, upper: NDArray, trees: list[Tree]) -> list[Tree]:
        """Add atoms for the strict bounds, since a box is closed."""
        extra: dict[int, list[Tree]] = {}
        for keys, is_lower in ((lower, True), (upper, False)):
            case, index = np.nonzero(keys & 1)
            ids = self.atoms.strict_bounds(index, is_lower, (keys[case, index] + (not is_lower)) >> 1)
            for i, atom in zip(case.tolist(), ids, strict=True):
                extra.setdefault(i, []).append(atom)
        for i, atoms in extra.items():
            trees[i] = _all((trees[i], *atoms))
        return trees

    def _require_bounds(self, lower: NDArray[np.float64], upper: NDArray[np.float64]) -> None:
        open_ = np.isinf(lower) | np.isinf(upper)
        missing = np.flatnonzero(open_.any(axis=0))
        if len(missing):
            offset = np.argsort(self.position)
            names = [self.query.element_name(int(offset[i])) for i in missing[:8]]
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            raise SpecError(
                f"inputs without a finite lower and upper bound: {', '.join(names)}{more}",
                hint="assert both bounds of every input, in each disjunct or outside",
                file=self.query.source,
            )

    def _reason(self, lower: NDArray[np.int64], upper: NDArray[np.int64], trees: list[Tree]) -> str:
        """Why no case is left."""
        if len(trees) == 0:
            return "the formula is false: an empty disjunction"
        if all(tree == FALSE for tree in trees):
            return "the formula is false: it contains a comparison of constants that does not hold"
        case, index = (int(i) for i in np.argwhere(lower > upper)[0])
        name = self.query.element_name(int(np.argsort(self.position)[index]))
        low, high = float(self.scale.lower(lower[case])[index]), float(self.scale.upper(upper[case])[index])
        many = (
            f" in the first of {len(trees)} disjuncts, and the others are empty too" if len(trees) > 1 else ""
        )
        return f"the input set is empty: {name} must be at least {low!r} and at most {high!r}{many}"


def _leaves(formula: Formula) -> tuple[list[Atom], RowTable]:
    """The atoms of a formula, and the table of its clauses."""
    atoms, table, pending = [], NO_ROWS, [formula]
    while pending:
        part = pending.pop()
        if isinstance(part, Atom):
            atoms.append(part)
        elif isinstance(part, Clauses):
            table = part.table
        else:
            pending += part.children
    return atoms, table


def _all(trees: Iterable[Tree]) -> Tree:
    flat = (child for tree in trees for child in (tree.children if type(tree) is And else (tree,)))
    return conjunction(dict.fromkeys(flat))  # type: ignore[return-value]


def _any(trees: Iterable[Tree]) -> Tree:
    return disjunction(dict.fromkeys(trees))  # type: ignore[return-value]
