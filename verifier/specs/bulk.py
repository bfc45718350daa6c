"""Reading a whole VNN-LIB 1 text in arrays: no step looks at one bracket, however many there are.

`vnnlib1` says what the language is, and words the errors. What is wrong, or beyond the limits here, is left to it,
assertion by assertion.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from verifier.specs import tokens as t
from verifier.specs.builder import FormulaBuilder, Item
from verifier.specs.formula import FALSE, TRUE, Relation
from verifier.specs.pairs import Pairs
from verifier.specs.tokens import Ints, Mask, Numerals, Tree

MAX_FACTORS = 32
"""Products of more operands are left to the stack."""
_NUMBER, _CONSTRAINT = 1, 2
_KIND = np.zeros(t.FIRST, dtype=np.int8)
"""What a bracket with this head is."""
_KIND[: t.ADD] = _CONSTRAINT
_KIND[t.ADD : t.AND] = _NUMBER
_KIND[t.AND : t.TRUE] = _CONSTRAINT
_TAKES = np.full(t.FIRST, -1, dtype=np.int8)
"""What the operands of this head are."""
_TAKES[: t.AND] = _NUMBER
_TAKES[t.AND : t.TRUE] = _CONSTRAINT
_TAKES[t.ASSERT] = _CONSTRAINT
_LEAST, _MOST = np.zeros(t.FIRST, dtype=np.int64), np.full(t.FIRST, 2**62)
_LEAST[: t.ADD], _LEAST[t.ADD : t.AND], _LEAST[t.IMPLIES] = 2, 1, 2
_LEAST[[t.NOT, t.ASSERT]] = _MOST[[t.NOT, t.ASSERT]] = 1
_MOST[t.MULTIPLY] = _MOST[t.DIVIDE] = MAX_FACTORS
_MOST[Relation.NE] = 2


@dataclass(frozen=True)
class Reading:
    """What was read: the assertions in order, as items for `builder`. What was ``left``: ``start : stop`` of the text,
    and how many of the assertions come before."""

    assertions: list[Item]
    builder: FormulaBuilder
    left: list[tuple[int, int, int]]


def read(text: str, sizes: tuple[int, int]) -> Reading:
    """Read what is right in `text`; `sizes` are how many inputs and outputs are declared."""
    codes, offsets, numerals = t.tokens(text, sizes)
    end = t.complete(codes)
    assertions, builder, left = [], FormulaBuilder(), []
    if end:
        tree = Tree(codes[:end])
        reader = _Reader(tree, sum(sizes), numerals)
        assertions, builder = reader.assertions()
        wrong = np.flatnonzero(reader.wrong)
        before = np.cumsum(reader.asserted & ~reader.wrong)[wrong]
        columns = (before, offsets[tree.start[wrong]], offsets[tree.stop[wrong]] + 1)
        left = list(zip(*(column.tolist() for column in columns), strict=True))
    if end < len(codes):
        left.append((len(assertions), int(offsets[end]), len(text)))
    return Reading(assertions, builder, left)


class _Reader:
    """Reads the assertions of a tree. A *command* is a bracket outside all others."""

    def __init__(self, tree: Tree, variables: int, numerals: Numerals) -> None:
        self.tree = tree
        self.variables = variables
        self.numerals = numerals
        self.top = int(np.count_nonzero(tree.level == 1))
        self.command = np.searchsorted(tree.start[: self.top], tree.start, side="right") - 1
        self.asserted = tree.head[: self.top] == t.ASSERT
        self.wrong = np.zeros(self.top, dtype=bool)
        self._check()
        self.alive = (self.asserted & ~self.wrong)[self.command]

    def _check(self) -> None:
        """Find the commands that are not well formed."""
        tree = self.tree
        head = np.minimum(tree.head, t.REAL)  # which takes no operands, as all after it
        kind = np.where(tree.code >= t.FIRST, _NUMBER, 0)
        kind[(tree.code == t.TRUE) | (tree.code == t.FALSE)] = _CONSTRAINT
        inner = tree.child >= 0
        kind[inner] = _KIND[head[tree.child[inner]]]
        fits = (tree.size >= _LEAST[head]) & (tree.size <= _MOST[head]) & (_TAKES[head] >= 0)
        fits[tree.parent[kind != _TAKES[head[tree.parent]]]] = False
        self.wrong[self.command[~fits]] = True
        self.wrong |= ~self.asserted
        self.wrong[tree.head[: self.top] == t.COMMAND] = False
        self.wrong[self._declarations()] = False

    def _declarations(self) -> Ints:
        """Those commands that are declarations as they should be."""
        tree, top = self.tree, self.top
        head, size, first = tree.head[:top], tree.size[:top], tree.first[:top]
        found = np.flatnonzero(((head == t.CONST) & (size == 2)) | ((head == t.FUN) & (size == 3)))
        name, last = tree.code[first[found]], tree.code[first[found] + size[found] - 1]
        good = (name >= t.FIRST) & (name < t.FIRST + self.variables) & (last == t.REAL)
        between = tree.child[first[found] + 1]
        good &= (size[found] == 2) | ((between >= 0) & (tree.head[between] == t.NOTHING))
        return found[good]

    def assertions(self) -> tuple[list[Item], FormulaBuilder]:
        """One item for each assertion, and the builder that they are for."""
        tree = self.tree
        flipped = self._flipped()
        pairs = Pairs(tree, self.variables, self.numerals, self.alive, flipped[tree.start])
        self.wrong[self.command[pairs.wrong]] = True
        self.alive &= ~self.wrong[self.command]
        return self._items(pairs, flipped), pairs.builder()

    def _flipped(self) -> Mask:
        """Per token, whether it is inside an odd number of negations."""
        tree = self.tree
        head = tree.head[tree.parent]
        last = tree.first[tree.parent] + tree.size[tree.parent] - 1
        negated = (head == t.NOT) | ((head == t.IMPLIES) & (np.arange(len(head)) != last))
        begin = np.where(tree.child >= 0, tree.start[tree.child], tree.place)
        change = np.concatenate((begin[negated], tree.place[negated] + 1))
        return np.cumsum(np.bincount(change, minlength=tree.tokens + 1), dtype=np.int32) % 2 == 1

    def _items(self, pairs: Pairs, flipped: Mask) -> list[Item]:
        """The assertions: connectives of spans of rows, of other comparisons and of connectives."""
        tree, compared = self.tree, self.tree.head < t.ADD
        flips = flipped[tree.start]
        either = np.where(compared, flips, ((tree.head == t.OR) | (tree.head == t.IMPLIES)) ^ flips)
        either &= tree.size - compared != 1
        run = self._runs(pairs, either)
        inside = self.alive & (tree.head >= t.AND) & (tree.head < t.TRUE) & ~run
        item = np.flatnonzero((inside | (self.alive & (tree.head == t.ASSERT)))[tree.parent])
        child = tree.child[item]
        values: list = [None] * len(item)

        def put(mask: Mask, found: Iterable) -> None:
            for i, value in zip(np.flatnonzero(mask).tolist(), found, strict=True):
                values[i] = value

        word, inner = child < 0, child >= 0
        truths = (tree.code[item[word]] == t.TRUE) ^ flipped[tree.place[item[word]]]
        put(word, (TRUE if holds else FALSE for holds in truths.tolist()))
        rows = tree.start[pairs.comparison[pairs.is_row]]
        spans = (
            np.searchsorted(rows, side[child[inner & run[child]]]).tolist()
            for side in (tree.start, tree.stop)
        )
        put(inner & run[child], zip(*spans, strict=True))
        single = inner & compared[child] & ~run[child]
        put(single, pairs.items(child[single], either))
        connective = inner & inside[child]
        brackets = child[connective]
        first = np.searchsorted(item, tree.first[brackets])
        columns = (np.flatnonzero(connective), either[brackets], first, first + tree.size[brackets])
        for i, disjunction, a, b in zip(*(column[::-1].tolist() for column in columns), strict=True):
            values[i] = ("or" if disjunction else "and", values[a:b])
        return values[: np.count_nonzero(self.asserted & ~self.wrong)]

    def _runs(self, pairs: Pairs, either: Mask) -> Mask:
        """Which brackets are conjunctions of rows, and of nothing else."""
        tree = self.tree
        word = (tree.code == t.TRUE) | (tree.code == t.FALSE)
        several = (either | (tree.size == 0)) & self.alive
        others = pairs.comparison[~pairs.is_row]
        broken = np.sort(np.concatenate((tree.place[word], tree.start[several], tree.start[others])))
        return np.searchsorted(broken, tree.start) == np.searchsorted(broken, tree.stop)
