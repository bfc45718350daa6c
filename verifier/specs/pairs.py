"""What a text compares, pair by pair, from the arrays of its brackets: rows, polynomials and constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

from verifier.specs import tokens as t
from verifier.specs.builder import FormulaBuilder, Item, exact_text
from verifier.specs.formula import FALSE, MIRRORED, NEGATED, TRUE, Relation
from verifier.specs.rationals import Pool, Rationals
from verifier.specs.sums import Monomials, StoredAtom, Sums, SumTable, ranges
from verifier.specs.tokens import Ints, Mask, Numerals, Tree

_RELATIONS = tuple(Relation)
_MIRRORED, _NEGATED = np.array(MIRRORED), np.array(NEGATED)
_HOLDS = np.array([(1, 1, 0), (1, 0, 0), (0, 1, 0), (1, 0, 1), (0, 1, 1), (0, 0, 1)], dtype=bool)
"""By relation: whether it holds between a negative number, zero, a positive number and zero."""


class Arithmetic:
    """Evaluates brackets ``(+ ...)``, ..., level by level from the innermost."""

    def __init__(self, tree: Tree, variables: int, numerals: Numerals, wanted: Mask) -> None:
        """`wanted` are the brackets to evaluate, and the comparisons whose operands are."""
        self.tree = tree
        self.end = t.FIRST + variables
        self.names = Monomials(variables)
        self.wrong: list[Ints] = []
        """Brackets that divide by what is no number but zero."""
        self.items = np.flatnonzero(wanted[tree.parent])
        code = tree.code[self.items]
        used = code[code >= self.end] - self.end
        one = Rationals.of([Fraction(1)], Pool())
        self.numbers = Rationals.joined([one, numerals.values(used, one.pool)])
        self.entry = np.zeros(len(numerals.starts) + 1, dtype=np.int64)
        self.entry[used] = np.arange(1, len(used) + 1)

    def sides(self) -> tuple[Ints, Sums]:
        """The operands of the comparisons: the items, and what they are."""
        level = self.tree.level[self.tree.parent[self.items]]
        found: list[tuple[Ints, Sums]] = []
        inner = self._leaves(self.items[:0])
        for one in np.unique(level)[::-1].tolist():
            items = self.items[slice(*np.searchsorted(level, (one, one + 1)))]
            sides, inner = self._level(items, inner)
            found.append(sides)
        found.reverse()
        return np.concatenate([items for items, _ in found]), Sums.joined([sums for _, sums in found])

    def _leaves(self, items: Ints) -> Sums:
        code = self.tree.code[items].astype(np.int64)
        variable = code < self.end
        factors = self.numbers[np.where(variable, 0, self.entry[np.maximum(code - self.end, 0)])]
        return Sums(np.ones_like(code), np.where(variable, code - t.FIRST, -1), factors)

    def _level(self, items: Ints, inner: Sums) -> tuple[tuple[Ints, Sums], Sums]:
        """From the values of the brackets one level further in: the operands of this level's comparisons, and the
        values of its other brackets."""
        tree, parent = self.tree, self.tree.parent[items]
        nested = tree.child[items] >= 0
        values = Sums.interleaved(nested, inner, self._leaves(items[~nested]))
        head, first = tree.head[parent], tree.first[parent] == items
        minus = (head == t.SUBTRACT) & (~first | (tree.size[parent] == 1))
        if minus.any():
            values = values.signed(np.where(minus, -1, 1))
        divisor = (head == t.DIVIDE) & ~first
        if divisor.any():
            inverse = self._inverses(values.take(divisor), parent[divisor])
            values = Sums.interleaved(divisor, inverse, values.take(~divisor))
        compared = head < t.ADD
        factor = (head == t.MULTIPLY) | (head == t.DIVIDE)
        bracket = parent[first & ~compared]
        size, product = tree.size[bracket], factor[first & ~compared]
        sums = values.take(~compared & ~factor).grouped(size[~product])
        products = self._products(values.take(factor), size[product])
        return (items[compared], values.take(compared)), Sums.interleaved(product, products, sums)

    def _inverses(self, divisors: Sums, brackets: Ints) -> Sums:
        divisors = divisors.merged()
        first = np.minimum(divisors.offsets[:-1], max(len(divisors.monomials) - 1, 0))
        good = divisors.counts == 1
        good[good] = divisors.monomials[first[good]] < 0
        self.wrong.append(brackets[~good])
        one = self.numbers[np.zeros(np.count_nonzero(~good), dtype=np.int64)]
        inverse = Rationals.interleaved(good, divisors.factors[first[good]].reciprocal(), one)
        return Sums(np.ones_like(divisors.counts), np.full(len(good), -1), inverse)

    def _products(self, factors: Sums, sizes: Ints) -> Sums:
        """The products of the first ``sizes[0]`` factors, of the next ``sizes[1]``, ..."""
        first = np.cumsum(sizes) - sizes
        result = factors.take(first)
        for k in range(1, sizes.max(initial=1)):
            more = sizes > k
            times = result.take(more).times(factors.take(first[more] + k), self.names)
            if (times.counts > 1).any():
                times = times.merged()
            result = Sums.interleaved(more, times, result.take(~more))
        return result


class Pairs:
    """The pairs that are compared, in the order of the text: ``(<= a b c)`` has two.

    ``comparison`` int64 [P] is the bracket of each, ``relation`` what it says (negated where the bracket is).
    ``row`` is the number of the row that it is, or -1; ``atom`` that of the polynomial that it compares with zero, or
    -1; of a pair that is neither, ``holds`` says whether it does.
    """

    def __init__(self, tree: Tree, variables: int, numerals: Numerals, alive: Mask, negated: Mask) -> None:
        found = np.flatnonzero(alive & (tree.head < t.ADD))
        found = found[np.argsort(tree.start[found], kind="stable")]
        count = tree.size[found] - 1
        self.first = np.zeros(len(tree.head), dtype=np.int64)
        self.first[found] = np.cumsum(count) - count
        self.comparison = np.repeat(found, count)
        item = ranges(tree.first[found], count)
        self.relation = tree.head[self.comparison]
        self.relation = np.where(negated[self.comparison], _NEGATED[self.relation], self.relation)
        left, right = (
            tree.code[item].astype(np.int64) - t.FIRST,
            tree.code[item + 1].astype(np.int64) - t.FIRST,
        )
        plain = (left >= 0) & (right >= 0) & (left != right) & ((left < variables) | (right < variables))
        self.left, self.right = np.where(left < variables, (left, right), (right, left))
        self.relation = np.where(plain & (left >= variables), _MIRRORED[self.relation], self.relation)
        self.numerals: dict[str, int] = {}
        number = np.flatnonzero(plain & (self.right >= variables))
        self.right[number] = self._codes(numerals.texts(self.right[number] - variables))
        self.atom = np.full(len(item), -1)
        self.holds = np.zeros(len(item), dtype=bool)
        self.wrong = found[:0]
        self.is_row = plain
        if not plain.all():
            wanted = alive & (tree.head >= t.ADD) & (tree.head < t.AND)
            wanted[self.comparison[~plain]] = True
            arithmetic = Arithmetic(tree, variables, numerals, wanted)
            self._compare(np.flatnonzero(~plain), item[~plain], arithmetic)
        self.row = np.where(self.is_row, np.cumsum(self.is_row) - 1, -1)

    def _compare(self, pairs: Ints, item: Ints, arithmetic: Arithmetic) -> None:
        """Decide what the `pairs` are whose left operands are `item`."""
        items, sides = arithmetic.sides()
        self.wrong = np.concatenate([self.wrong, *arithmetic.wrong])
        both = np.searchsorted(items, np.stack((item, item + 1), axis=1).reshape(-1))
        signs = np.tile((1, -1), len(item))
        sums = sides.take(both).signed(signs).grouped(np.full(len(item), 2)).merged()
        names, factors = np.append(sums.monomials, -1), sums.factors
        start, last = sums.offsets[:-1], sums.offsets[1:] - 1
        constant = (sums.counts > 0) & (names[start] < 0)  # which comes first
        degree = sums.counts - constant
        self.holds[pairs] = _HOLDS[
            self.relation[pairs], np.where(constant, np.sign(np.append(factors.num, 0)[start]), 0) + 1
        ]
        linear = names[last] < arithmetic.names.variables
        one = np.flatnonzero(linear & (degree == 1))
        slope = factors[last[one]]
        value = factors[start[one]].signed(-constant[one].astype(np.int64)) * slope.reciprocal()
        codes = self._codes(_texts(value))
        self._row(pairs[one], names[last[one]], codes, slope.num < 0)
        two = np.flatnonzero(linear & (degree == 2) & ~constant)
        low, high = factors[start[two]], factors[last[two]]
        opposite = (low.num == -high.num) & (low.den == high.den)
        two, low = two[opposite], low[opposite]
        self._row(pairs[two], names[start[two]], names[last[two]], low.num < 0)
        rest = np.flatnonzero((degree > 0) & ~self.is_row[pairs])
        self.table = SumTable(sums.take(rest), arithmetic.names)
        self.atom[pairs[rest]] = np.arange(len(rest))

    def _codes(self, texts: Iterable[str]) -> Ints:
        """How a table's column ``right`` has these numerals."""
        known = self.numerals
        return ~np.array([known.setdefault(text, len(known)) for text in texts], dtype=np.int64)

    def _row(self, pairs: Ints, left: Ints, right: Ints, mirrored: Mask) -> None:
        self.left[pairs], self.right[pairs], self.is_row[pairs] = left, right, True
        turned = pairs[mirrored]
        self.relation[turned] = _MIRRORED[self.relation[turned]]

    def builder(self) -> FormulaBuilder:
        """One that has the rows."""
        rows = np.flatnonzero(self.is_row)
        columns = (self.left[rows].tolist(), self.relation[rows].tolist(), self.right[rows].tolist())
        return FormulaBuilder(*columns, self.numerals)

    def items(self, comparisons: Ints, either: Mask) -> list[Item]:
        """The items of some comparisons; of those with several pairs, `either` says which are disjunctions."""
        count = np.bincount(self.comparison, minlength=len(self.first))[comparisons]
        ends = np.cumsum(count)
        leaves = self._leaves(ranges(self.first[comparisons], count))
        if (count == 1).all():
            return leaves
        heads = np.where(either[comparisons], "or", "and").tolist()
        spans = zip(heads, (ends - count).tolist(), ends.tolist(), strict=True)
        return [leaves[a] if b - a == 1 else (head, leaves[a:b]) for head, a, b in spans]

    def _leaves(self, pairs: Ints) -> list[Item]:
        """The items of some pairs."""
        relation = self.relation[pairs]
        turned = relation >= Relation.GE
        relation = np.where(turned, _MIRRORED[relation], relation)
        columns = (self.row[pairs], self.atom[pairs], np.where(turned, -1, 1), relation, self.holds[pairs])
        leaves: list[Item] = []
        for row, atom, sign, code, holds in zip(*(column.tolist() for column in columns), strict=True):
            if row >= 0:
                leaves.append((row, row + 1))
            elif atom >= 0:
                leaves.append(StoredAtom(self.table, atom, sign, _RELATIONS[code]))
            else:
                leaves.append(TRUE if holds else FALSE)
        return leaves


def _texts(values: Rationals) -> Iterator[str]:
    """Decimals, or ``p/q``, that equal the values."""
    den = np.maximum(values.den, 1)
    scale, places = np.ones_like(den), np.zeros_like(den)
    for _ in range(15):
        short = scale % den != 0
        scale[short] *= 10
        places += short
    factor = scale // den
    decimal = (scale % den == 0) & (np.abs(values.num * factor.astype(np.float64)) < 2.0**62)
    large = iter(values[values.den == 0].exact())
    columns = (values.num, values.den, values.num * factor, places, decimal)
    for num, den, scaled, digits, exact in zip(*(column.tolist() for column in columns), strict=True):
        if den == 0:
            yield exact_text(next(large))
        elif exact:
            body = str(abs(scaled)).rjust(digits + 1, "0")
            yield f"{'-' * (num < 0)}{body[: len(body) - digits]}.{body[len(body) - digits :] or '0'}"
        else:
            yield f"{num}/{den}"
