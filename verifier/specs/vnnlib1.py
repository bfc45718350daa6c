"""VNN-LIB 1: SMT-LIB assertions over scalars ``X_0 ..`` and ``Y_0 ..``.

One regular expression splits the text; a whole run of simple comparisons (``(<= X_3 0.5)``) is one token,
whose operands go to the table in bulk, and so is a comparison with arithmetic in it, all of which `read_linear` reads
at once. Everything else is reduced on a stack. Positions are found only for an error.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from verifier.specs.builder import NUMERALS, Expr, FormulaBuilder, Item, is_numeral, polynomial
from verifier.specs.errors import SpecError
from verifier.specs.formula import FALSE, MIRRORED, TRUE, Atom, Polynomial, Relation, sum_of
from verifier.specs.linear import MAX_LEVELS, read_linear
from verifier.specs.query import NetworkDecl, Query, plain_variables

_SIMPLE = r"\(\s*+(?:[<>]=?+|=)\s++[^\s()]++\s++[^\s()]++\s*+\)"
_RUN = rf"{_SIMPLE}(?:\s*+{_SIMPLE})*+"
_PLAIN = r"[()]|[^\s()]++"
SIMPLE = re.compile(_SIMPLE)
_ASSERT = rf"\(assert\s*+{_SIMPLE}\s*+\)"
_BALANCED = r"\([^()]*+\)"
for _ in range(MAX_LEVELS - 2):
    _BALANCED = rf"\([^()]*+(?:{_BALANCED}[^()]*+)*+\)"
_GENERAL = rf"\(\s*+(?:[<>]=?+|=)(?=[\s(])[^()]*+(?:{_BALANCED}[^()]*+)++\)"
_COMPARED = rf"\(assert\s*+{_GENERAL}\s*+\)|{_GENERAL}"
FAST_TOKEN = re.compile(rf"{_ASSERT}(?:\s*+{_ASSERT})*+|\(and\s*+{_RUN}\s*+\)|{_RUN}|{_COMPARED}|{_PLAIN}")
GENERAL_TOKEN = re.compile(rf"{_COMPARED}|{_PLAIN}")
PLAIN_TOKEN = re.compile(_PLAIN)
_NESTED = re.compile(r"\((?!and)(?:assert\s*+\()?+[^()]*+\(")
"""Of the compound tokens, only a comparison with brackets in it (asserted or not) begins so."""
_ROWS = object()
"""Stands for a compound token of simple comparisons where the others have an atom, or None."""
_NEGATIVE = re.compile(r"\(-\s+((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)\s*\)", re.ASCII)
_DECLARED = re.compile(r"\(\s*declare-(?:const|fun)\s+([^\s()]+)")
_NAME = re.compile(r"([XY])_(0|[1-9]\d{0,8})", re.ASCII)

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
_CODES = {text: int(relation) for text, relation in RELATIONS.items()}
_IGNORED = {"set-logic", "set-info", "set-option", "check-sat", "get-model", "get-value", "exit", "reset"}
_ARITHMETIC = ("+", "-", "*", "/")
_NO_CONSTRAINTS = frozenset((str, int, Polynomial))
_BOOLEAN = ("and", "or", "not", "=>")


Place = tuple[int, int]
"""A token, by its index, and a token within it, by its index among plain tokens."""


class _Refusal(Exception):
    """An error at a token, or at an operand of a simple comparison, not yet turned into a position."""

    def __init__(self, message: str, hint: str | None = None, token: Place | None = None) -> None:
        super().__init__(message)
        self.message, self.hint, self.token = message, hint, token
        self.row: int | None = None
        self.operand = 0


class _NotSimple(Exception):
    """A run holds a comparison that is no table row (of two constants, or of a variable with itself)."""


def parse(text: str, source: str | None = None) -> Query:
    """The query of a VNN-LIB 1 text. `SpecError`, with line and column, when it is not one."""
    blanked = re.sub(r";[^\n]*", lambda m: " " * len(m[0]), text) if ";" in text else text
    # numbers written as (- 0.5), in place, so that no position changes
    signed = _NEGATIVE.sub(lambda m: f" -{m[1]}".ljust(len(m[0])), blanked)
    try:
        return _parse(signed, source)
    except SpecError:
        if signed == blanked:
            raise
    return _parse(blanked, source)  # an error is worded for the text as it was written


def _parse(text: str, source: str | None) -> Query:
    try:
        try:
            return _Parser(text, FAST_TOKEN, source).query()
        except _NotSimple:
            return _Parser(text, GENERAL_TOKEN, source).query()
    except RecursionError:
        raise SpecError("negations are nested too deeply", hint="flatten the formula", file=source) from None
    except SpecError as error:
        error.file = source
        raise


class _Parser:
    """One pass over one text. A frame is ``[head, items, index of its opening token]``."""

    def __init__(self, text: str, token: re.Pattern[str], source: str | None) -> None:
        self.text = text
        self.token = token
        self.source = source
        self.tokens = token.findall(text)
        self.index: dict[str, int] = {}
        self.sizes = (0, 0)
        self.builder = FormulaBuilder()
        self.assertions: list[Item] = []
        self.row = 0
        self.compound: Iterator[Any] = iter(())

    def query(self) -> Query:
        if not self.tokens:
            hint = "a VNN-LIB file declares variables and asserts constraints"
            raise SpecError("the file is empty", 1, 1, hint)
        try:
            self._declare()
            self._bulk()
            frames: list[list] = []
            self._walk(self.tokens, zip(range(len(self.tokens)), itertools.repeat(0)), frames)
            if frames:
                hint = "a closing parenthesis is missing"
                raise _Refusal("the file ends inside this expression", hint, frames[-1][2])
            formula = self.builder.finish(self.assertions)
        except _Refusal as refusal:
            raise SpecError.at(self.text, self._offset(refusal), refusal.message, refusal.hint) from None
        inputs, outputs = self.sizes
        return Query((NetworkDecl("f"),), plain_variables((inputs,), (outputs,)), formula, 1, self.source)

    def _declare(self) -> None:
        """Number the declared names: all X by their number, then all Y."""
        names = _DECLARED.findall(self.text)
        numbers: dict[str, list[int]] = {"X": [], "Y": []}
        for name in names:
            match = _NAME.fullmatch(name)
            if match is None:
                hint = "inputs are X_0, X_1 ..., outputs Y_0, Y_1 ..."
                raise self._at_name(name, 0, f"the name {name} is not of VNN-LIB 1", hint)
            numbers[match[1]].append(int(match[2]))
        for letter, kind in (("X", "input"), ("Y", "output")):
            given = numbers[letter]
            if not given:
                raise SpecError(f"no {kind} is declared", 1, 1, f"write (declare-const {letter}_0 Real)")
            if len(set(given)) != len(given):
                name = f"{letter}_{Counter(given).most_common(1)[0][0]}"
                raise self._at_name(name, 1, f"{name} is declared twice", "remove one of them")
            if max(given) != len(given) - 1:
                gap = next(i for i, n in enumerate(sorted(given)) if n != i)
                hint = f"{letter} must be numbered from 0 without a gap"
                raise self._at_name(f"{letter}_{max(given)}", 0, f"{letter}_{gap} is not declared", hint)
        self.sizes = (len(numbers["X"]), len(numbers["Y"]))
        start = {"X": 0, "Y": self.sizes[0]}
        self.index = {name: start[name[0]] + int(name[2:]) for name in names}

    def _at_name(self, name: str, skip: int, message: str, hint: str) -> SpecError:
        matches = (m for m in _DECLARED.finditer(self.text) if m[1] == name)
        match = next(itertools.islice(matches, skip, None))
        return SpecError.at(self.text, match.start(1), message, hint)

    def _bulk(self) -> None:
        """Read all linear comparisons, and put the operands of all simple ones into the table."""
        compound = [token for token in self.tokens if len(token) > 1 and token[0] == "("]
        nested = [_NESTED.match(token) is not None for token in compound]
        atoms = iter(read_linear(list(itertools.compress(compound, nested)), self.sizes))
        self.compound = iter([next(atoms) if general else _ROWS for general in nested])
        joined = " ".join(itertools.compress(compound, (not general for general in nested)))
        for head in ("(assert", "(and", "(", ")"):
            joined = joined.replace(head, " ")
        words = joined.split()
        if not words:
            return
        lefts, rights = words[1::3], words[2::3]
        relations = [_CODES[head] for head in words[0::3]]
        left = list(map(self.index.get, lefts))
        swapped = [i for i, code in enumerate(left) if code is None] if None in left else []
        for i in swapped:
            if rights[i] not in self.index:
                self._check(lefts[i], i, 1)
                self._check(rights[i], i, 2)
                raise _NotSimple
            lefts[i], rights[i] = rights[i], lefts[i]
            left[i] = self.index[lefts[i]]
            relations[i] = MIRRORED[relations[i]]
        unique = dict.fromkeys(rights)
        numerals = [word for word in unique if word not in self.index]
        if NUMERALS.fullmatch(" ".join([*numerals, ""])) is None:
            row = next(i for i, word in enumerate(rights) if word not in self.index and not is_numeral(word))
            self._check(rights[row], row, 1 if row in swapped else 2)
        codes = {word: self.index[word] for word in unique if word in self.index}
        codes.update({word: ~i for i, word in enumerate(numerals)})
        right = list(map(codes.__getitem__, rights))
        if (np.array(left) == np.array(right)).any():
            raise _NotSimple
        self.builder = FormulaBuilder(left, relations, right, {word: i for i, word in enumerate(numerals)})

    def _check(self, word: str, row: int, operand: int) -> None:
        if word not in self.index and not is_numeral(word):
            refusal = self._unknown(word)
            refusal.row, refusal.operand = row, operand
            raise refusal

    def _unknown(self, word: str) -> _Refusal:
        if word[0].isdigit() or word[0] in "+-.":
            return _Refusal(f"{word} is not a number", "numbers look like 3, -0.5 or 1e-3")
        near = difflib.get_close_matches(word, itertools.islice(self.index, 20000), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "declare it with (declare-const NAME Real)"
        return _Refusal(f"{word} is not declared", hint)

    def _walk(self, tokens: list[str], places: Iterable[Place], frames: list[list]) -> None:
        """Reduce on the stack `frames` what the tokens, each at its place, open and close."""
        for token, place in zip(tokens, places, strict=False):
            if token == "(":
                frames.append([None, [], place])
            elif token == ")":
                if not frames:
                    raise _Refusal("unexpected )", "an opening parenthesis is missing", place)
                head, items, opened = frames.pop()
                if frames and head in ("and", "or") and _NO_CONSTRAINTS.isdisjoint(map(type, items)):
                    frames[-1][1].append((head, items))
                else:
                    self._close(frames, head, items, opened)
            elif token[0] == "(":
                self._compound(token, frames, place)
            elif not frames:
                hint = "a file is a list of (declare-const ...) and (assert ...)"
                raise _Refusal(f"unexpected {token}", hint, place)
            elif frames[-1][0] is None and not frames[-1][1]:
                frames[-1][0] = token
            else:
                frames[-1][1].append(token)

    def _close(self, frames: list[list], head: str | None, items: list, opened: Place) -> None:
        """Reduce a frame that has just been taken off `frames`, and hand its value to the one around it."""
        around = frames[-1][0] if frames else None
        if frames and frames[0][0] in _IGNORED:
            return
        if around == "declare-fun" and head is None and not items:
            frames[-1][1].append(())
            return
        value = self._reduce(head, items, opened)
        if value is None and frames:
            raise _Refusal(f"{head} inside an expression", "parentheses are unbalanced before it", opened)
        if value is not None and not frames:
            raise _Refusal(f"{head} outside an assertion", "write (assert ...) around it", opened)
        if value is not None:
            frames[-1][1].append(value)

    def _compound(self, token: str, frames: list[list], place: Place) -> None:
        """Place a token that holds comparisons."""
        atom = next(self.compound)
        if atom is not _ROWS:
            self._general(token, atom, frames, place)
            return
        row, opened = self.row, token.count("(")
        if token.startswith("(assert"):
            if frames:
                hint = "parentheses are unbalanced before it"
                raise _Refusal("assert inside an expression", hint, place)
            self.row += opened // 2
            self.assertions.append((row, self.row))
        elif not frames:
            raise _Refusal("a comparison outside an assertion", "write (assert ...) around it", place)
        elif token.startswith("(and"):
            self.row += opened - 1
            frames[-1][1].append((row, self.row))
        else:
            self.row += opened
            frames[-1][1].extend((i, i + 1) for i in range(row, self.row))

    def _general(self, token: str, atom: Atom | None, frames: list[list], place: Place) -> None:
        """Place a comparison with brackets in it: the atom read for it, or what its words reduce to."""
        asserted = token.startswith("(assert")
        if atom is not None and asserted and not frames:
            self.assertions.append(atom)
        elif atom is not None and frames and not asserted:
            frames[-1][1].append(atom)
        else:
            self._walk(PLAIN_TOKEN.findall(token), zip(itertools.repeat(place[0]), itertools.count()), frames)

    def _reduce(self, head: str | None, items: list, opened: Place) -> Item | Expr | None:
        """The value of ``(head items...)``; None for a command."""
        try:
            if head == "assert":
                if len(items) != 1:
                    raise _Refusal(
                        f"assert takes one expression, not {len(items)}", "join several with (and ...)"
                    )
                self.assertions.append(self._boolean(items[0]))
                return None
            if head in ("declare-const", "declare-fun"):
                return self._check_declaration(head, items)
            if head in _IGNORED:
                return None
            if head in RELATIONS:
                operands = [self._expr(item) for item in items]
                if len(operands) < 2:
                    raise _Refusal(
                        f"{head} takes at least two operands, not {len(operands)}", f"write ({head} a b)"
                    )
                return self.builder.chain(RELATIONS[head], operands)
            if head in _ARITHMETIC:
                return _arithmetic(head, [self._expr(item) for item in items])
            if head in _BOOLEAN:
                return self._connective(head, [self._boolean(item) for item in items])
            return self._other(head, items)
        except _Refusal as refusal:
            if refusal.token is None and refusal.row is None:
                refusal.token = opened
            raise

    def _other(self, head: str | None, items: list) -> None:
        if head is None and not items:
            raise _Refusal("empty parentheses", "remove them")
        if head is None:
            raise _Refusal("an operator is missing after (", "expressions are written (operator operand ...)")
        known = [*RELATIONS, *_ARITHMETIC, *_BOOLEAN, "assert", "declare-const", "declare-fun"]
        near = difflib.get_close_matches(head, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known[:-3])}"
        raise _Refusal(f"{head} is not an operator of VNN-LIB 1", hint)

    def _check_declaration(self, head: str, items: list) -> None:
        words = [item for item in items if item != ()]
        if len(words) != 2 or not all(isinstance(word, str) for word in words):
            form = "(declare-const X_0 Real)" if head == "declare-const" else "(declare-fun X_0 () Real)"
            raise _Refusal(f"{head} takes a name and a type", f"write {form}")
        if words[1] != "Real":
            raise _Refusal(f"{words[0]} has type {words[1]}", "every variable of VNN-LIB 1 is Real")

    def _expr(self, item: object) -> Expr:
        if isinstance(item, str):
            variable = self.index.get(item)
            if variable is not None:
                return variable
            if is_numeral(item):
                return item
            raise self._unknown(item)
        if isinstance(item, Polynomial | int):
            return item
        hint = "compare numbers, connect constraints with and / or"
        raise _Refusal("a number is needed here, not a constraint", hint)

    def _boolean(self, item: object) -> Item:
        if isinstance(item, str):
            if item in ("true", "false"):
                return TRUE if item == "true" else FALSE
            self._expr(item)
        if isinstance(item, str | int | Polynomial):
            raise _Refusal("a constraint is needed here, not a number", "compare it with <=, >=, <, > or =")
        return item  # type: ignore[return-value]

    def _connective(self, head: str, items: list) -> Item:
        if head in ("and", "or"):
            return (head, items)
        if head == "not":
            if len(items) != 1:
                raise _Refusal(f"not takes one operand, not {len(items)}", "write (not a)")
            return self.builder.negated(items[0])
        if len(items) < 2:
            raise _Refusal(f"=> takes at least two operands, not {len(items)}", "write (=> a b)")
        return ("or", [*(self.builder.negated(item) for item in items[:-1]), items[-1]])

    def _offset(self, refusal: _Refusal) -> int:
        """Where in the text the refused token or operand begins."""
        matches = self.token.finditer(self.text)
        if refusal.row is None:
            index, inner = refusal.token or (0, 0)
            match = next(itertools.islice(matches, index, None))
            return match.start() + next(itertools.islice(PLAIN_TOKEN.finditer(match[0]), inner, None)).start()
        runs = (m for m in matches if len(m[0]) > 1 and m[0][0] == "(" and not _NESTED.match(m[0]))
        rows = (m.start() + row.start() for m in runs for row in SIMPLE.finditer(m[0]))
        start = next(itertools.islice(rows, refusal.row, None))
        words = re.compile(r"[^\s()]+").finditer(self.text, start)
        return next(itertools.islice(words, refusal.operand, None)).start()


def _arithmetic(head: str, operands: list[Expr]) -> Expr:
    """``+ - * /`` on exact polynomials; division only by constants."""
    if not operands:
        raise _Refusal(f"{head} takes at least one operand", f"write ({head} a b)")
    if head == "-" and len(operands) == 1 and isinstance(operands[0], str):
        text = operands[0]
        return text[1:] if text[0] == "-" else "-" + text.lstrip("+")
    values = [polynomial(operand) for operand in operands]
    if head == "+":
        return sum_of(values)
    if head == "-":
        return -values[0] if len(values) == 1 else sum_of([values[0], *(-value for value in values[1:])])
    result = values[0]
    for value in values[1:]:
        if head == "*":
            result = result * value
        elif value.degree:
            raise _Refusal("division by a variable", "multiply both sides by it, if its sign is known")
        elif not value.offset:
            raise _Refusal("division by zero", "divide by a nonzero constant")
        else:
            result = result.scaled(1 / value.offset)
    return result
