"""The words of a VNN-LIB 1 text as numbers, and its brackets as arrays."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.specs.builder import NUMERALS, is_numeral
from verifier.specs.formula import Relation
from verifier.specs.rationals import Decimals, Pool, Rationals

RELATIONS = {
    "<=": Relation.LE,
    "<": Relation.LT,
    "=": Relation.EQ,
    "==": Relation.EQ,
    "!=": Relation.NE,
    "distinct": Relation.NE,
    ">=": Relation.GE,
    ">": Relation.GT,
}
ARITHMETIC = ("+", "-", "*", "/")
BOOLEAN = ("and", "or", "not", "=>")
IGNORED = ("set-logic", "set-info", "set-option", "check-sat", "get-model", "get-value", "exit", "reset")

# codes: the relations, by `Relation`; then these; then the variables, from `FIRST` on; then the numerals
ADD, SUBTRACT, MULTIPLY, DIVIDE, AND, OR, NOT, IMPLIES = range(len(Relation), len(Relation) + 8)
TRUE, FALSE, ASSERT, CONST, FUN, COMMAND, REAL, OTHER, NOTHING, OPEN, CLOSE, FIRST = range(
    IMPLIES + 1, IMPLIES + 13
)
_CODES: dict[str, int] = {
    "(": OPEN,
    ")": CLOSE,
    "true": TRUE,
    "false": FALSE,
    "assert": ASSERT,
    "declare-const": CONST,
    "declare-fun": FUN,
    "Real": REAL,
    **{text: int(relation) for text, relation in RELATIONS.items()},
    **dict(zip((*ARITHMETIC, *BOOLEAN), itertools.count(ADD))),
    **dict.fromkeys(IGNORED, COMMAND),
}

_BLANK, _WORD = 0, 1
_CLASS = np.full(256, _WORD, dtype=np.uint8)
_CLASS[[ord(" "), *range(9, 14), *range(28, 32)]] = _BLANK  # what separates words in ASCII
_CLASS[[ord("("), ord(")")]] = OPEN, CLOSE
_SHORT = np.full((256, 256), OTHER, dtype=np.int32)
for _word in filter(lambda word: len(word) < 3, _CODES):
    _SHORT[ord(_word[0]), ord(_word[1:] or "\0")] = _CODES[_word]
_NUMERIC = np.zeros(256, dtype=bool)
_NUMERIC[[ord(c) for c in "0123456789+-."]] = True

Ints = NDArray[np.integer]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Numerals:
    """All numerals of a text, one after the other, and where each begins and ends."""

    text: str
    starts: Ints
    stops: Ints
    decimals: Decimals

    def texts(self, index: Ints) -> list[str]:
        """Some of them, as they are written."""
        spans = zip(self.starts[index].tolist(), self.stops[index].tolist(), strict=True)
        return [self.text[a:b] for a, b in spans]

    def values(self, index: Ints, pool: Pool) -> Rationals:
        """Some of them, as numbers."""
        found = self.decimals[index]
        long = np.flatnonzero(~found.plain)
        return Rationals.of_decimals(found, self.texts(index[long]), pool)


def tokens(text: str, sizes: tuple[int, int]) -> tuple[Ints, Ints, Numerals]:
    """The codes of all words and parentheses, and where they begin; `sizes` counts the inputs and the outputs."""
    data = np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)
    kind = _CLASS[data]
    edge = np.flatnonzero(np.diff(kind == _WORD, prepend=False, append=False))
    starts, stops = edge[::2], edge[1::2]
    first, second = data[starts], data[np.minimum(starts + 1, len(data) - 1)]
    codes = np.where(stops - starts > 2, OTHER, _SHORT[first, np.where(stops - starts == 2, second, 0)])

    named = np.flatnonzero((second == ord("_")) & ((first == ord("X")) | (first == ord("Y"))))
    codes[named] = _variables(data, starts[named], stops[named], sizes)

    numeric = np.flatnonzero(_NUMERIC[first] & ((stops - starts > 1) | (first >= ord("0"))))
    decimals = Decimals.read(data, starts[numeric], stops[numeric])
    good = decimals.plain.copy()
    long = np.flatnonzero(~good)
    words = [
        text[a:b] for a, b in zip(starts[numeric[long]].tolist(), stops[numeric[long]].tolist(), strict=True)
    ]
    good[long] = NUMERALS.fullmatch(" ".join([*words, ""])) is not None or [
        is_numeral(word) for word in words
    ]
    numeric = numeric[good]
    codes[numeric] = FIRST + sum(sizes) + np.arange(len(numeric))
    numerals = Numerals(text, starts[numeric], stops[numeric], decimals[good])

    other = codes == OTHER
    apart = np.full(len(data), ord(" "), dtype=np.uint8)
    apart[kind == _WORD] = np.where(np.repeat(other, stops - starts), data[kind == _WORD], ord(" "))
    codes[other] = [_CODES.get(word, OTHER) for word in apart.tobytes().decode("ascii").split()]
    token = kind >= OPEN
    token[starts] = True
    result = kind[token].astype(np.int32)
    result[result == _WORD] = codes
    return result, np.flatnonzero(token), numerals


def _variables(data: NDArray[np.uint8], starts: Ints, stops: Ints, sizes: tuple[int, int]) -> Ints:
    """The codes of words that begin with ``X_`` or ``Y_``."""
    number = Decimals.read(data, starts + 2, stops)
    length = stops - starts - 2
    good = (number.digits == length) & (length > 0) & (length < 10)
    good &= (data[np.minimum(starts + 2, len(data) - 1)] != ord("0")) | (length == 1)
    output = data[starts] == ord("Y")
    good &= number.mantissa < np.where(output, sizes[1], sizes[0])
    return np.where(good, FIRST + number.mantissa + np.where(output, sizes[0], 0), OTHER)


def complete(codes: Ints) -> int:
    """How many of the tokens, at the start, are whole brackets, not nested deeper than can be counted."""
    depth = np.cumsum((codes == OPEN).astype(np.int8) - (codes == CLOSE).astype(np.int8), dtype=np.int32)
    outside = np.flatnonzero(
        (depth < 0) | ((depth == 0) & (codes != CLOSE)) | (depth > np.iinfo(np.int16).max)
    )
    end = outside[0] if len(outside) else len(codes)
    return int(np.flatnonzero(np.concatenate(([0], depth[:end])) == 0)[-1])


class Tree:
    """Brackets ``( head item ... )``, in order of their depth and then of the text; so are the items.

    Of bracket b: ``head`` (`NOTHING` if it is empty, `CLOSE` if it begins with a bracket), ``size`` (how many items),
    ``first`` (its first item), ``level`` (its depth, from 1), ``start`` and ``stop`` (the places of its parentheses
    among the tokens). Of item i: ``code``, ``parent`` (a bracket), ``child`` (the bracket that it is, or -1),
    ``place`` (of its last token).
    """

    def __init__(self, codes: Ints) -> None:
        """Of whole brackets."""
        self.tokens = len(codes)
        depth = np.cumsum((codes == OPEN).astype(np.int8) - (codes == CLOSE).astype(np.int8), dtype=np.int16)
        # an opening is of the depth inside and a closing of that outside: each level is a list of brackets,
        # ( word word ) word, where each ) stands for a bracket of the next
        order = np.argsort(depth, kind="stable")
        code = codes[order]
        opening, closing = code == OPEN, code == CLOSE
        opens = np.flatnonzero(opening)
        self.start, self.stop = order[opening], order[closing]
        self.level = depth[self.start]
        after = np.append(code, OPEN)[opens + 1]
        self.head = np.where(after == OPEN, NOTHING, after)
        is_item = ~opening
        is_item[1:] &= ~opening[:-1]
        is_item[: np.count_nonzero(depth == 0)] = False
        self.code = code[is_item]
        self.parent = (np.cumsum(opening) - 1)[is_item]
        self.child = np.where(closing, np.cumsum(closing) - 1, -1)[is_item]
        self.place = order[is_item]
        self.size = np.bincount(self.parent, minlength=len(opens))
        self.first = np.cumsum(self.size) - self.size
