"""Inputs that the query ties to one another: equal, in order, or no further apart than a bound.

Two networks that are compared read the same input, or nearly. As a box such inputs would be free of each other, and all
bounds would lose what they have in common; so every input becomes a free one, or the sum of a free one and its
deviation, which is free within bounds of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from verifier.specs.formula import And
from verifier.specs.problem import Problem, Tree

MAX_ADDED = 64
"""Bounds of inputs that are sums become atoms where these are at most so many."""

Pair = tuple[int, int]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ties:
    """Input i of the query is free input ``base[i]``, plus free input ``deviation[i]`` unless that is -1; ``free`` is
    how many of these there are."""

    base: Ints
    deviation: Ints
    free: int

    def inputs(self, free: Floats) -> Floats:
        """The query's inputs [..., n_in] for free ones [..., free]; the sums are rounded."""
        padded = np.concatenate([free, np.zeros((*free.shape[:-1], 1))], -1)
        return free[..., self.base] + padded[..., self.deviation]


@dataclass(frozen=True, eq=False)
class Untied:
    """A problem whose formulas do without what ``ties`` and the boxes ``lower``, ``upper`` [N, free] of the free inputs
    say; its own boxes are those of the query's inputs."""

    problem: Problem
    ties: Ties
    lower: Floats
    upper: Floats


def untie(problem: Problem, owner: Ints) -> Untied | None:
    """The problem over free inputs, or None where none are tied. A case that the ties leave empty is dropped.

    `owner` [n_in] numbers the networks that read the inputs: within one, only equal inputs are tied, for others a box
    of the inputs themselves may say more than one of deviations.
    """
    table = _Atoms.of(problem)
    if not len(table.atom):
        return None
    most = [table.differences(_certain(tree)) for tree in problem.formulas]
    common = set.intersection(*map(set, most)) if most else set()
    if not common:
        return None
    return _Untier(problem, owner, table, most, common).untied()


@dataclass(frozen=True, eq=False)
class _Atoms:
    """The atoms ``v[plus] - v[minus] <= most`` of two inputs (``<`` where strict), `most` rounded up."""

    atom: Ints
    plus: Ints
    minus: Ints
    most: Floats
    strict: NDArray[np.bool_]

    @classmethod
    def of(cls, p: Problem) -> _Atoms:
        order = np.argsort(p.rows, kind="stable")
        rows, cols, values = p.rows[order], p.cols[order], p.values[order]
        count = np.bincount(rows, minlength=p.atoms)
        starts = np.cumsum(count) - count
        two = np.flatnonzero((count == 2) & (p.coefficient_error == 0))
        two = np.setdiff1d(two, [part.atom for part in p.nonlinear])
        first, second = starts[two], starts[two] + 1
        fits = (values[first] == -values[second]) & (np.maximum(cols[first], cols[second]) < p.inputs)
        two, first, second = two[fits], first[fits], second[fits]
        rising = values[first] > 0
        plus, minus = np.where(rising, first, second), np.where(rising, second, first)
        most = -p.constants[two] / values[plus]
        most = np.where(values[plus] == 1, most, np.nextafter(most, np.inf))
        return cls(two, cols[plus], cols[minus], most, p.strict[two])

    def differences(self, certain: set[int]) -> dict[Pair, float]:
        """What the given atoms say that the first input of a pair is above the second at most."""
        found: dict[Pair, float] = {}
        for i in np.flatnonzero(np.isin(self.atom, list(certain))).tolist():
            pair = int(self.plus[i]), int(self.minus[i])
            found[pair] = min(found.get(pair, np.inf), float(self.most[i]))
        return found


def _certain(tree: Tree) -> set[int]:
    """The atoms that a formula states on their own."""
    parts = tree.children if isinstance(tree, And) else (tree,)
    return {part for part in parts if isinstance(part, int)}


class _Untier:
    """`most` [formulas] bounds differences of pairs of inputs, `common` are the pairs that it bounds everywhere."""

    def __init__(
        self,
        problem: Problem,
        owner: Ints,
        table: _Atoms,
        most: list[dict[Pair, float]],
        common: set[Pair],
    ) -> None:
        self.problem, self.owner, self.table, self.most, self.common = problem, owner, table, most, common
        self.root = np.arange(problem.inputs)
        """The input that each one is equal to, itself perhaps."""
        self.parent: dict[int, int] = {}
        """Of roots that deviate, the root that they deviate from."""

    def untied(self) -> Untied | None:
        worst = {pair: max(own[pair] for own in self.most) for pair in self.common}
        self._merge([(a, b) for a, b in worst if worst[a, b] == 0 == worst.get((b, a), np.inf)])
        lower, upper = (
            self._shared(self.problem.lower, np.maximum),
            self._shared(self.problem.upper, np.minimum),
        )
        self._choose(worst, lower, upper)
        if not self.parent and (self.root == np.arange(self.problem.inputs)).all():
            return None
        ties = self._ties()
        problem = self.problem
        box = [np.zeros((len(lower), ties.free)) for _ in range(2)]
        for end, free in zip((lower, upper), box, strict=True):
            roots = np.setdiff1d(self.root, list(self.parent))
            free[:, ties.base[roots]] = end[:, roots]
        for child, parent in self.parent.items():
            own = [self._deviation(child, parent, own) for own in self.most]
            least, most = np.array(own)[problem.formula_index].T if len(lower) else np.zeros((2, 0))
            place = ties.deviation[child]
            apart = _down(lower[:, child], upper[:, parent]), -_down(lower[:, parent], upper[:, child])
            box[0][:, place], box[1][:, place] = np.maximum(least, apart[0]), np.minimum(most, apart[1])
        alive = (box[0] <= box[1]).all(1)
        problem = self._reduced(problem, lower, upper, ties, box)
        reason = (
            None
            if alive.any()
            else "the input set is empty: its bounds on differences of inputs contradict the others"
        )
        problem = replace(
            problem,
            lower=problem.lower[alive],
            upper=problem.upper[alive],
            formula_index=problem.formula_index[alive],
            empty_reason=problem.empty_reason or reason,
        )
        return Untied(problem, ties, box[0][alive], box[1][alive])

    def _merge(self, pairs: list[Pair]) -> None:
        if pairs:
            self.root = connected(self.problem.inputs, np.array(pairs, dtype=np.int64))

    def _shared(self, ends: Floats, pick: np.ufunc) -> Floats:
        """What the bounds of equal inputs say of their root, [N, inputs]."""
        found = ends.copy()
        pick.at(found.T, self.root, ends.T)
        return found

    def _choose(self, worst: dict[Pair, float], lower: Floats, upper: Floats) -> None:
        """Pairs of roots of which one deviates from the other: the closest first, where that says more than boxes."""
        found: dict[Pair, float] = {}
        for (a, b), most in worst.items():
            one, other = int(self.root[a]), int(self.root[b])
            if self.owner[one] == self.owner[other]:
                continue
            least = -worst.get((b, a), np.inf)
            apart = (
                float((lower[:, one] - upper[:, other]).min(initial=np.inf)),
                float((upper[:, one] - lower[:, other]).max(initial=-np.inf)),
            )
            own = min(most, apart[1]) - max(least, apart[0])
            if own < apart[1] - apart[0]:
                key = min(one, other), max(one, other)
                found[key] = min(found.get(key, np.inf), own)
        parents: set[int] = set()
        for a, b in sorted(found, key=lambda pair: (found[pair], pair)):
            for child, parent in ((b, a), (a, b)):
                if child not in self.parent and parent not in self.parent and child not in parents:
                    self.parent[child] = parent
                    parents.add(parent)
                    break

    def _ties(self) -> Ties:
        roots = np.setdiff1d(self.root, list(self.parent))
        place = np.zeros(self.problem.inputs, dtype=np.int64)
        place[roots] = np.arange(len(roots))
        base, deviation = place.copy(), np.full(self.problem.inputs, -1, dtype=np.int64)
        for k, (child, parent) in enumerate(self.parent.items()):
            base[child], deviation[child] = place[parent], len(roots) + k
        return Ties(base[self.root], deviation[self.root], len(roots) + len(self.parent))

    def _deviation(self, child: int, parent: int, own: dict[Pair, float]) -> tuple[float, float]:
        """Between what numbers a formula says that a root's deviation lies."""
        ends = [np.inf, np.inf]
        for (a, b), most in own.items():
            for k, pair in enumerate(((parent, child), (child, parent))):
                if (self.root[a], self.root[b]) == pair:
                    ends[k] = min(ends[k], most)
        return -ends[0], ends[1]

    def _reduced(
        self, problem: Problem, lower: Floats, upper: Floats, ties: Ties, box: list[Floats]
    ) -> Problem:
        """The formulas without the atoms that the ties take care of, and with the bounds of inputs that are sums."""
        gone = set(self._settled())
        problem, added = self._with_bounds(problem, lower, upper, ties, box)
        trees: list[Tree] = []
        for tree in problem.formulas:
            parts = tree.children if isinstance(tree, And) else (tree,)
            kept = [part for part in parts if not (isinstance(part, int) and part in gone)]
            kept += [atom for atom in added if atom not in kept]
            trees.append(kept[0] if len(kept) == 1 else And(tuple(kept)))
        return replace(problem, formulas=tuple(trees))

    def _settled(self) -> Iterator[int]:
        """Atoms that hold in every box of free inputs where a formula states them."""
        table = self.table
        for i, atom in enumerate(table.atom.tolist()):
            a, b = int(self.root[table.plus[i]]), int(self.root[table.minus[i]])
            equal = a == b and (table.most[i] > 0 or (table.most[i] == 0 and not table.strict[i]))
            apart = a == self.parent.get(b) or b == self.parent.get(a)
            if equal or (apart and not table.strict[i]):
                yield atom

    def _with_bounds(
        self, problem: Problem, lower: Floats, upper: Floats, ties: Ties, box: list[Floats]
    ) -> tuple[Problem, list[int]]:
        """The problem with atoms that say which bounds the sums have, where all cases have the same, and which these
        are; none where they would be many."""
        ends: list[tuple[int, float, float]] = []
        for child in self.parent:
            base, place = ties.base[child], ties.deviation[child]
            for sign, own, other in ((1.0, upper, box[1]), (-1.0, lower, box[0])):
                beyond = sign * (other[:, base] + other[:, place] - own[:, child]) > 0
                if beyond.any() and (own[:, child] == own[0, child]).all():
                    ends.append((child, sign, float(own[0, child])))
        if not ends or len(ends) > MAX_ADDED:
            return problem, []
        first = problem.atoms
        names = list(range(first, first + len(ends)))
        grown = replace(
            problem,
            rows=np.concatenate([problem.rows, names]),
            cols=np.concatenate([problem.cols, [child for child, _, _ in ends]]),
            values=np.concatenate([problem.values, [sign for _, sign, _ in ends]]),
            constants=np.concatenate([problem.constants, [-sign * end for _, sign, end in ends]]),
            strict=np.concatenate([problem.strict, np.zeros(len(ends), dtype=bool)]),
            coefficient_error=np.concatenate([problem.coefficient_error, np.zeros(len(ends))]),
        )
        return grown, names


def _down(a: Floats, b: Floats) -> Floats:
    """a - b, rounded down; differences of equal numbers are exact."""
    return np.where(a == b, 0.0, np.nextafter(a - b, -np.inf))


def connected(size: int, ties: Ints) -> Ints:
    """[size] the smallest index that each index is connected with through `ties` [T, 2]."""
    label = np.arange(size)
    while len(ties):
        low = np.minimum(label[ties[:, 0]], label[ties[:, 1]])
        before = label.copy()
        np.minimum.at(label, ties[:, 0], low)
        np.minimum.at(label, ties[:, 1], low)
        if (label == before).all():
            break
    return label
