"""The table of distinct atoms: simple comparisons and polynomials, each by an integer key."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifier.specs.errors import SpecError
from verifier.specs.formula import LOWER, STRICT, And, Atom, Or, Relation, RowTable
from verifier.specs.problem import NonlinearPart, Tree
from verifier.specs.scale import Scale
from verifier.specs.sums import Monomials, StoredAtom, Sums, SumTable

_TINY = 2.0**-1022
_RANGE_HINT = "scale the constraint: coefficients must lie between 1e-307 and 1e308 in magnitude"

Ints = NDArray[np.int64]


class Polynomials:
    """The polynomials of a query's atoms over v. Each has a class, which it shares with its negation and its equals."""

    def __init__(self, atoms: list[Atom], position: Ints) -> None:
        """`position` [size] is the place in v of each variable."""
        plain = [atom for atom in atoms if not isinstance(atom, StoredAtom)]
        tables = {id(atom.table): atom.table for atom in atoms if isinstance(atom, StoredAtom)}
        tables[0] = SumTable.of((atom.expr for atom in plain), len(position))
        self.names = Monomials(len(position))
        placed = []
        for table in tables.values():
            codes = table.names.placed(position, self.names)[table.sums.monomials + 1]
            placed.append(Sums(table.sums.counts, codes, table.sums.factors))
        self.offset = dict(zip(tables, itertools.accumulate(map(len, placed), initial=0), strict=False))
        self.plain = {id(atom): self.offset[0] + i for i, atom in enumerate(plain)}
        sums = Sums.joined(placed).merged()
        # the sign that makes the last factor positive
        last = np.append(sums.factors.num, 0)[sums.offsets[1:] - 1]
        sign = np.where((last < 0) & (sums.counts > 0), -1, 1)
        self.sums = sums.signed(sign)
        columns = (self.sums.monomials, self.sums.factors.num, self.sums.factors.den)
        content = np.stack(columns, axis=1).tobytes()
        width = len(content) // max(len(self.sums.monomials), 1)
        spans = enumerate(itertools.pairwise((width * self.sums.offsets).tolist()))
        index: dict[bytes, int] = {}
        classes = np.array([index.setdefault(content[a:b], i) for i, (a, b) in spans], dtype=np.int64)
        self.codes: list[int] = (2 * classes + (sign < 0)).tolist()
        """By row, twice the first row with the same polynomial up to sign, plus whether the sign differs."""

    def code(self, atom: Atom) -> int:
        """Twice the class of an atom's polynomial, plus whether it is the negation of that."""
        if isinstance(atom, StoredAtom):
            return self.codes[self.offset[id(atom.table)] + atom.row] ^ (atom.sign < 0)
        return self.codes[self.plain[id(atom)]]


class AtomTable:
    """Gives ids to atoms over v.

    The key of a simple atom is an integer, (v index, is lower bound, strict, other v index or rank) encoded; that of a
    polynomial is a negative one, -1 less (class, is negated, strict) encoded.
    """

    def __init__(self, table: RowTable, atoms: list[Atom], position: Ints) -> None:
        """For the rows of `table` and for `atoms`; `position` [size] is the place in v of each variable."""
        self.variables = len(position)
        self.scale = Scale.of(table.numerals)
        self.base = self.variables + len(self.scale.down)
        self.polynomials = Polynomials(atoms, position)
        self.ids: dict[int, int] = {}
        left, right = position[table.left], table.right
        other = np.where(right >= 0, position[np.maximum(right, 0)], 0)
        other[right < 0] = self.variables + self.scale.rank[~right[right < 0]]
        different = table.relation == Relation.NE
        double = (table.relation == Relation.EQ) | different
        strict = STRICT[table.relation] | different
        self.keys: list[int] = self._keys(left, LOWER[table.relation] & ~double, strict, other).tolist()
        """By row; of those with == and !=, that of the upper bound."""
        kinds = [Or if d else And for d in different[double].tolist()]
        seconds = self._keys(left[double], True, strict[double], other[double]).tolist()
        self.double = dict(
            zip(np.flatnonzero(double).tolist(), zip(kinds, seconds, strict=True), strict=True)
        )
        """By row with == or !=: how the two bounds are connected, and the key of the lower one."""

    def _keys(self, index: Ints, is_lower: NDArray | bool, strict: NDArray | bool, other: Ints) -> Ints:
        """The keys of ``v[index] <= other`` (or ``>=``), where `other` is a v index, or ``variables + rank``."""
        swap = is_lower & (other < self.variables)
        index, other = np.where(swap, other, index), np.where(swap, index, other)
        return ((index.astype(np.int64) * 2 + (is_lower & ~swap)) * 2 + strict) * self.base + other

    def _id(self, key: int) -> int:
        return self.ids.setdefault(key, len(self.ids))

    def strict_bounds(self, index: Ints, is_lower: bool, rank: Ints) -> list[int]:
        """Ids of ``v[index] < number`` (or ``>``)."""
        return [self._id(key) for key in self._keys(index, is_lower, True, rank + self.variables).tolist()]

    def leaves(self, rows: Iterable[int]) -> list[Tree]:
        """One tree per row: an id, for ``==`` both of two ids, for ``!=`` one of two strict ones."""
        ids, keys = self.ids, self.keys
        leaves: list[Tree] = []
        for row in rows:
            tree: Tree = ids.setdefault(keys[row], len(ids))
            if row in self.double:
                kind, key = self.double[row]
                tree = kind((tree, self._id(key)))
            leaves.append(tree)
        return leaves

    def general(self, atom: Atom) -> Tree:
        """The tree of a polynomial atom."""
        relation, code = atom.relation, self.polynomials.code(atom)
        strict = relation is Relation.LT or relation is Relation.NE
        low = self._id(-1 - (2 * code + strict))
        if relation is Relation.LE or relation is Relation.LT:
            return low
        return (Or if strict else And)((low, self._id(-1 - (2 * (code ^ 1) + strict))))

    def arrays(self) -> dict[str, Any]:
        """The fields of `Problem` that describe atoms."""
        keys = np.array(list(self.ids), dtype=np.int64)
        simple, general = np.flatnonzero(keys >= 0), np.flatnonzero(keys < 0)
        head, other = np.divmod(keys[simple], self.base)
        head, strict_codes = np.divmod(head, 2)
        index, low = np.divmod(head, 2)
        constants, strict = np.zeros(len(keys)), np.zeros(len(keys), dtype=bool)
        strict[simple] = strict_codes == 1
        number = other >= self.variables
        rank = other[number] - self.variables
        constants[simple[number]] = np.where(low[number] == 1, self.scale.down[rank], -self.scale.up[rank])
        rows = [simple, simple[~number]]
        cols = [index, other[~number]]
        values = [np.where(low == 1, -1.0, 1.0), np.full(int((~number).sum()), -1.0)]

        row, strict_codes = np.divmod(-1 - keys[general], 2)
        strict[general] = strict_codes == 1
        row, negated = np.divmod(row, 2)
        sums = self.polynomials.sums.take(row).signed(1 - 2 * negated)
        owner = np.repeat(general, sums.counts)
        near, missing = sums.factors.nearest()
        constant = sums.monomials < 0
        constants[owner[constant]] = _rounded_down(near[constant], missing[constant])
        size = np.abs(near[~constant])
        if not ((size >= _TINY) & (size < np.inf)).all():
            raise SpecError("a coefficient is beyond the range of float64", hint=_RANGE_HINT)
        error = np.zeros(len(keys))
        error[owner[~constant & (missing != 0)]] = 2.0**-53
        linear = ~constant & (sums.monomials < self.variables)
        if not np.isfinite(constants).all():
            raise SpecError("a constant is beyond the range of float64", hint=_RANGE_HINT)
        parts = ((*rows, owner[linear]), (*cols, sums.monomials[linear]), (*values, near[linear]))
        flat = [np.concatenate(part) for part in parts]
        order = np.lexsort((flat[1], flat[0]))
        high = sums.monomials >= self.variables
        return {
            "rows": flat[0][order],
            "cols": flat[1][order],
            "values": flat[2][order],
            "constants": constants + 0.0,
            "strict": strict,
            "coefficient_error": error,
            "nonlinear": self._nonlinear(owner[high], sums.monomials[high], near[high]),
        }

    def _nonlinear(self, atoms: Ints, monomials: Ints, values: NDArray) -> tuple[NonlinearPart, ...]:
        """One part for each atom that has terms of degree two and more."""
        names = list(map(self.polynomials.names.monomial, monomials.tolist()))
        floats = values.tolist()
        atom, first = np.unique(atoms, return_index=True)
        spans = itertools.pairwise([*first.tolist(), len(floats)])
        return tuple(
            NonlinearPart(i, tuple(names[a:b]), tuple(floats[a:b]))
            for i, (a, b) in zip(atom.tolist(), spans, strict=True)
        )


def _rounded_down(near: NDArray[np.float64], missing: Ints) -> NDArray[np.float64]:
    """Floats not above the numbers that these are nearest to, where `missing` has the sign of the difference."""
    top = np.finfo(np.float64).max
    down = np.where(missing < 0, np.nextafter(near, -np.inf), near)
    return np.where(np.isposinf(near), top, down)
