"""Reading many linear comparisons at once: ``(>= (+ (* 1.5 Y_0) (* -2 Y_1)) 3)`` by the hundred thousand.

The words of all comparisons become one array of codes, brackets are matched level by level, and every number on the
way from a comparison to one of its variables is collected as a factor. What does not fit (a product of variables, an
unknown word, a wrong number of operands) is left to the parser's stack, which also words the errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from verifier.specs.builder import NUMERALS, is_numeral
from verifier.specs.formula import Relation, StoredAtom, SumTable

MAX_LEVELS = 8
"""Brackets in a comparison may be nested this deep, its own included."""
_MAX_FACTORS = 4
_OPEN, _CLOSE, _ADD, _SUBTRACT, _MULTIPLY, _DIVIDE, _OTHER = range(7)
_RELATION = _OTHER + 1  # the codes of relations, then of variables, then of numerals
_WORD = _RELATION + len(Relation)
_BLANK, _WORD_CLASS = 255, 254
_CLASS = np.full(256, _WORD_CLASS, dtype=np.uint8)
_CLASS[[ord(" "), *range(9, 14), *range(28, 32)]] = _BLANK  # what separates words in ASCII
_CLASS[[ord("("), ord(")")]] = _OPEN, _CLOSE
_ALONE, _WITH_EQUAL = np.full((2, 256), _OTHER)
for _text, _code in (("+", _ADD), ("-", _SUBTRACT), ("*", _MULTIPLY), ("/", _DIVIDE)):
    _ALONE[ord(_text)] = _code
for _text, _relation in (("<", Relation.LT), (">", Relation.GT), ("=", Relation.EQ)):
    _ALONE[ord(_text)] = _RELATION + _relation
for _text, _relation in (("<", Relation.LE), (">", Relation.GE)):
    _WITH_EQUAL[ord(_text)] = _RELATION + _relation
_ASSERT = "(assert"
_UNITS = {"1", "1.0", "-1", "-1.0"}
_NUMERIC = np.zeros(256, dtype=bool)
_NUMERIC[[ord(c) for c in "0123456789+-."]] = True
# an `Atom` has none of the relations >= and >: it has the negated sum
_SIGNS = [-1 if relation in (Relation.GE, Relation.GT) else 1 for relation in Relation]
_STORED = [relation.mirrored if relation in (Relation.GE, Relation.GT) else relation for relation in Relation]

Ints = NDArray[np.integer]
Mask = NDArray[np.bool_]


def read_linear(texts: Sequence[str], sizes: tuple[int, int]) -> list[StoredAtom | None]:
    """The atom of each comparison; None for one that is not linear in at least two distinct variables, or wrong.

    Each text is one bracketed comparison, at most `MAX_LEVELS` deep, in balanced brackets, or such a one in
    ``(assert ...)``. ``sizes`` are how many inputs and outputs are declared: X_i is variable i, and Y_i is
    variable ``sizes[0] + i``.
    """
    if not texts:
        return []
    text = " ".join([text[len(_ASSERT) :] if text[1] == "a" else text for text in texts])
    if not text.isascii():
        return [None] * len(texts)
    codes, numerals = _tokens(text, sizes)
    reader = _Reader(codes, sum(sizes), numerals)
    table, good = reader.table()
    heads = reader.heads[reader.level == 1]
    return [
        StoredAtom(table, row, _SIGNS[head], _STORED[head]) if fits else None
        for row, (fits, head) in enumerate(zip(good.tolist(), (heads - _RELATION).tolist(), strict=True))
    ]


def _tokens(text: str, sizes: tuple[int, int]) -> tuple[Ints, list[str]]:
    """The codes of all brackets and words, and the numerals; each that occurs has a code of its own."""
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    kind = _CLASS[data]
    inside = np.zeros(len(kind) + 2, dtype=bool)
    inside[1:-1] = kind == _WORD_CLASS
    edge = np.flatnonzero(inside[1:] != inside[:-1])
    starts, lengths = edge[::2], edge[1::2] - edge[::2]
    first, second = data[starts], data[np.minimum(starts + 1, len(data) - 1)]
    words = np.where(lengths == 1, _ALONE[first], _OTHER).astype(np.int32)
    pair = (lengths == 2) & (second == ord("="))
    words[pair] = _WITH_EQUAL[first[pair]]
    named = np.flatnonzero((lengths > 2) & (second == ord("_")) & ((first == ord("X")) | (first == ord("Y"))))
    words[named] = _variables(data, starts[named], lengths[named], sizes)
    number = _NUMERIC[first] & (words == _OTHER)
    shown = np.where(np.repeat(number, lengths), data[kind == _WORD_CLASS], ord(" "))
    apart = np.full(len(data), ord(" "), dtype=np.uint8)
    apart[kind == _WORD_CLASS] = shown
    numerals = apart.tobytes().decode("ascii").split()
    if NUMERALS.fullmatch(" ".join([*numerals, ""])) is None:
        good = np.array([is_numeral(word) for word in numerals], dtype=bool)
        number[number] = good
        numerals = list(itertools.compress(numerals, good.tolist()))
    words[number] = _WORD + sum(sizes) + np.arange(len(numerals))
    token = kind <= _CLOSE
    token[starts] = True
    codes = kind[token].astype(np.int32)
    codes[codes == _WORD_CLASS] = words
    return codes, numerals


def _variables(data: NDArray[np.uint8], starts: Ints, lengths: Ints, sizes: tuple[int, int]) -> Ints:
    """The codes of words that begin with ``X_`` or ``Y_``."""
    number = np.zeros(len(starts), dtype=np.int64)
    good = (lengths <= 11) & ((data[starts + 2] != ord("0")) | (lengths == 3))
    for i in range(2, 11):
        more = np.flatnonzero(good & (lengths > i))
        if not len(more):
            break
        digit = data[starts[more] + i].astype(np.int64) - ord("0")
        good[more] &= (digit >= 0) & (digit <= 9)
        number[more] = number[more] * 10 + digit
    output = data[starts] == ord("Y")
    good &= number < np.where(output, sizes[1], sizes[0])
    return np.where(good, _WORD + number + np.where(output, sizes[0], 0), _OTHER)


class _Reader:
    """One pass over the codes. A *bracket* is ``( head operand ... )``; brackets are numbered as they open.

    A *factor* is a signed number: ``k + 1`` or ``-(k + 1)`` stands for plus or minus entry k of `numbers`, whose
    entry 0 is one. Operands are the words first, then the brackets that are inside another.
    """

    def __init__(self, codes: Ints, variables: int, numerals: list[str]) -> None:
        self.first_numeral = _WORD + variables
        self.numbers: list[str | tuple[int, ...]] = ["1", *numerals]
        self.factor_of = np.arange(2, len(numerals) + 2)
        near = np.array([1.0, *map(float, numerals)])
        self.zero = near == 0
        units = [i for i in np.flatnonzero(np.abs(near[1:]) == 1).tolist() if numerals[i] in _UNITS]
        self.factor_of[units] = near[1:][units]
        for i in np.flatnonzero(self.zero).tolist():
            self.zero[i] = Decimal(numerals[i - 1]) == 0  # or it only underflows
        depth = np.cumsum(
            (codes == _OPEN).astype(np.int8) - (codes == _CLOSE).astype(np.int8), dtype=np.int32
        )
        lowest = np.minimum(np.minimum.accumulate(depth), 0)
        inside = np.diff(lowest, prepend=0) == 0  # what closes an (assert, whose opening is left out, is not
        codes, depth = codes[inside], (depth - lowest)[inside]
        opening = codes == _OPEN
        opens = np.flatnonzero(opening)
        count = len(opens)
        self.level = depth[opens]
        self.heads = codes[opens + 1]
        before = np.cumsum(opening, dtype=np.int32) - 1
        numbered = np.arange(count, dtype=np.int32)
        # per level, the latest bracket of that level before each
        levels = range(int(self.level.max()) + 1)
        latest = np.stack([np.maximum.accumulate(np.where(self.level == i, numbered, 0)) for i in levels])
        self.comparison = np.cumsum(self.level == 1) - 1
        leaves = np.flatnonzero(codes >= _WORD)
        inner = np.flatnonzero(self.level > 1)
        self.words = codes[leaves]
        self.inner = inner
        self.parent = np.concatenate(
            (latest[depth[leaves], before[leaves]], latest[self.level[inner] - 1, inner])
        )
        self.first = np.concatenate((leaves, opens[inner])) == opens[self.parent] + 2
        self.constant = np.concatenate((self.words >= self.first_numeral, np.zeros(len(inner), dtype=bool)))
        self.size = np.bincount(self.parent, minlength=count)
        self.constants = np.bincount(self.parent[self.constant], minlength=count)
        symbols = np.flatnonzero((codes > _CLOSE) & (codes < _WORD))
        stray = symbols[codes[symbols - 1] != _OPEN]
        lowest = np.where(self.level == 1, _RELATION, _ADD)
        highest = np.where(self.level == 1, _WORD - 1, _DIVIDE)
        self.bad = (self.heads < lowest) | (self.heads > highest)
        self.bad[latest[depth[stray], before[stray]]] = True

    def table(self) -> tuple[SumTable, Mask]:
        """All comparisons as sums (left side minus right side), and which of them these sums describe."""
        local, kept = self._local()
        total = np.ones(len(self.level), dtype=np.int64)
        words = len(self.words)
        inner_level = self.level[self.inner]
        for level in range(2, int(self.level.max()) + 1):
            here = np.flatnonzero(inner_level == level)
            total[self.inner[here]] = self._product(total[self.parent[words + here]], local[words + here])
        factor = self._product(total[self.parent[:words]], local[:words])
        number = self.constant[:words]
        factor[number] = self._product(
            factor[number], self.factor_of[self.words[number] - self.first_numeral]
        )
        variable = np.where(number, -1, self.words - _WORD)
        row = self.comparison[self.parent[:words]]
        used = np.flatnonzero(kept[:words] & ~self.zero[np.abs(factor) - 1])
        order = used[np.lexsort((variable[used], row[used]))]
        row, variable, factor = row[order], variable[order], factor[order]
        rows = int(self.comparison[-1]) + 1
        good = np.bincount(row[variable >= 0], minlength=rows) >= 2
        good[row[1:][(row[1:] == row[:-1]) & (variable[1:] == variable[:-1]) & (variable[1:] >= 0)]] = False
        good[self.comparison[self.bad]] = False
        offsets = np.searchsorted(row, np.arange(rows + 1))
        return SumTable(offsets, variable.astype(np.int32), factor.astype(np.int64), self.numbers), good

    def _local(self) -> tuple[Ints, Mask]:
        """By what each operand is multiplied within its own bracket, and whether it is more than a factor."""
        head, size = self.heads[self.parent], self.size[self.parent]
        kept = np.ones(len(self.parent), dtype=bool)
        local = np.ones(len(self.parent), dtype=np.int64)
        local[~self.first & (head >= _RELATION)] = -1
        local[(~self.first | (size == 1)) & (head == _SUBTRACT)] = -1
        self.bad |= (self.level == 1) & (self.size != 2)
        self.bad |= self.size == 0
        # a product: its one operand that is no numeral is multiplied by the others; of numerals, the first
        times = head == _MULTIPLY
        kept[times & self.constant] = False
        kept[times & self.first & (size == self.constants[self.parent])] = True
        self.bad |= (self.heads == _MULTIPLY) & (self.size - self.constants > 1)
        local[times & kept] = self._gathered(np.flatnonzero(times & ~kept))[self.parent[times & kept]]
        over = (head == _DIVIDE) & ~self.first
        kept[over] = False
        self.bad |= (self.heads == _DIVIDE) & (self.size != 2)
        self.bad[self.parent[over & ~self.constant]] = True
        divisors = np.flatnonzero(over & self.constant)
        inverse = np.ones(len(self.level), dtype=np.int64)
        inverse[self.parent[divisors]] = self._inverse(self._numeral(divisors), self.parent[divisors])
        dividend = (head == _DIVIDE) & self.first
        local[dividend] = inverse[self.parent[dividend]]
        return local, kept

    def _numeral(self, operands: Ints) -> Ints:
        """The factors of operands that are numerals."""
        return self.factor_of[self.words[operands] - self.first_numeral]

    def _gathered(self, operands: Ints) -> Ints:
        """Per bracket, the product of those `operands` (numerals) that are in it."""
        product = np.ones(len(self.level), dtype=np.int64)
        for _ in range(_MAX_FACTORS):
            parents, chosen = np.unique(self.parent[operands], return_index=True)
            product[parents] = self._product(product[parents], self._numeral(operands[chosen]))
            operands = np.delete(operands, chosen)
            if not len(operands):
                break
        self.bad[self.parent[operands]] = True
        return product

    def _product(self, a: Ints, b: Ints) -> Ints:
        """Elementwise products of factors."""
        result = np.where(np.abs(a) == 1, a * b, a * np.sign(b))
        hard = np.flatnonzero((np.abs(a) > 1) & (np.abs(b) > 1))
        if len(hard):
            known = len(self.numbers)
            pairs, which = np.unique((np.abs(a[hard]) - 1) * known + np.abs(b[hard]) - 1, return_inverse=True)
            left, right = np.divmod(pairs, known)
            self.numbers += zip(left.tolist(), right.tolist(), strict=True)
            self.zero = np.concatenate((self.zero, self.zero[left] | self.zero[right]))
            result[hard] = np.sign(a[hard]) * np.sign(b[hard]) * (known + 1 + which)
        return result

    def _inverse(self, factors: Ints, parents: Ints) -> Ints:
        """Reciprocals; a bracket that divides by zero is bad."""
        self.bad[parents[self.zero[np.abs(factors) - 1]]] = True
        hard = np.abs(factors) > 1
        unique, which = np.unique(np.abs(factors[hard]) - 1, return_inverse=True)
        result = factors.copy()
        result[hard] = np.sign(factors[hard]) * (len(self.numbers) + 1 + which)
        self.numbers += [(k,) for k in unique.tolist()]
        self.zero = np.concatenate((self.zero, np.zeros(len(unique), dtype=bool)))
        return result
