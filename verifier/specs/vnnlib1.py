"""VNN-LIB 1: SMT-LIB assertions over scalars ``X_0 ..`` and ``Y_0 ..``.

Texts are read in bulk (`bulk`). The parser here says what the language is: it reduces one bracket after the other on a
stack, words the errors, and reads what the bulk reader leaves to it.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterable

from verifier.specs.builder import Expr, FormulaBuilder, Item, is_numeral, polynomial
from verifier.specs.bulk import read
from verifier.specs.errors import SpecError
from verifier.specs.formula import FALSE, TRUE, Polynomial, sum_of
from verifier.specs.query import NetworkDecl, Query, plain_variables
from verifier.specs.tokens import ARITHMETIC, BOOLEAN, IGNORED, RELATIONS

_TOKEN = re.compile(r"[()]|[^\s()]++")
_DECLARED = re.compile(r"\(\s*declare-(?:const|fun)\s+([^\s()]+)")
_NAME = re.compile(r"([XY])_(0|[1-9]\d{0,8})", re.ASCII)

_NO_CONSTRAINTS = frozenset((str, int, Polynomial))


class _Refusal(Exception):
    """An error at an offset, or at a word in the bracket that is being reduced, or at that bracket."""

    def __init__(
        self, message: str, hint: str | None = None, offset: int | None = None, word: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.hint, self.offset, self.word = message, hint, offset, word


def parse(text: str, source: str | None = None, bulk: bool = True) -> Query:
    """The query of a VNN-LIB 1 text. `SpecError`, with line and column, when it is not one.

    Without `bulk`, all is read bracket by bracket.
    """
    if ";" in text:
        text = re.sub(r";[^\n]*", lambda m: " " * len(m[0]), text)
    try:
        return _Parser(text, source).query(bulk)
    except RecursionError:
        raise SpecError("negations are nested too deeply", hint="flatten the formula", file=source) from None
    except SpecError as error:
        error.file = source
        raise


class _Parser:
    """One text. A frame is ``[head, items, offset of its opening]``."""

    def __init__(self, text: str, source: str | None) -> None:
        self.text = text
        self.source = source
        self.index: dict[str, int] = {}
        self.sizes = (0, 0)
        self.builder = FormulaBuilder()
        self.assertions: list[Item] = []

    def query(self, bulk: bool) -> Query:
        if not self.text.strip():
            hint = "a VNN-LIB file declares variables and asserts constraints"
            raise SpecError("the file is empty", 1, 1, hint)
        self._declare()
        try:
            if bulk:
                self._bulk()
            else:
                self._walk(_TOKEN.finditer(self.text))
            formula = self.builder.finish(self.assertions)
        except _Refusal as refusal:
            raise SpecError.at(self.text, refusal.offset or 0, refusal.message, refusal.hint) from None
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
        """Read in bulk what can be read so, and the rest on the stack."""
        found = read(self.text, self.sizes)
        self.builder = found.builder
        done = 0
        for before, start, stop in found.left:
            self.assertions += found.assertions[done:before]
            self._walk(_TOKEN.finditer(self.text, start, stop))
            done = before
        self.assertions += found.assertions[done:]

    def _unknown(self, word: str) -> _Refusal:
        if word[0].isdigit() or word[0] in "+-.":
            return _Refusal(f"{word} is not a number", "numbers look like 3, -0.5 or 1e-3", word=word)
        near = difflib.get_close_matches(word, itertools.islice(self.index, 20000), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "declare it with (declare-const NAME Real)"
        return _Refusal(f"{word} is not declared", hint, word=word)

    def _walk(self, tokens: Iterable[re.Match[str]]) -> None:
        """Reduce on a stack what the tokens open and close."""
        frames: list[list] = []
        for match in tokens:
            token, offset = match[0], match.start()
            if token == "(":
                frames.append([None, [], offset])
            elif token == ")":
                if not frames:
                    raise _Refusal("unexpected )", "an opening parenthesis is missing", offset)
                head, items, opened = frames.pop()
                if frames and head in ("and", "or") and _NO_CONSTRAINTS.isdisjoint(map(type, items)):
                    frames[-1][1].append((head, items))
                else:
                    self._close(frames, head, items, opened)
            elif not frames:
                hint = "a file is a list of (declare-const ...) and (assert ...)"
                raise _Refusal(f"unexpected {token}", hint, offset)
            elif frames[-1][0] is None and not frames[-1][1]:
                frames[-1][0] = token
            else:
                frames[-1][1].append(token)
        if frames:
            raise _Refusal(
                "the file ends inside this expression", "a closing parenthesis is missing", frames[-1][2]
            )

    def _close(self, frames: list[list], head: str | None, items: list, opened: int) -> None:
        """Reduce a frame that has just been taken off `frames`, and hand its value to the one around it."""
        around = frames[-1][0] if frames else None
        if frames and frames[0][0] in IGNORED:
            return
        if around == "declare-fun" and head is None and not items:
            frames[-1][1].append(())
            return
        value = self._reduce(head, items, opened)
        if value is None and frames:
            raise _Refusal(f"{head} inside an expression", "parentheses are unbalanced before it", opened)
        if value is not None and not frames:
            what = "a comparison" if head in RELATIONS else head
            raise _Refusal(f"{what} outside an assertion", "write (assert ...) around it", opened)
        if value is not None:
            frames[-1][1].append(value)

    def _reduce(self, head: str | None, items: list, opened: int) -> Item | Expr | None:
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
            if head in IGNORED:
                return None
            if head in RELATIONS:
                operands = [self._expr(item) for item in items]
                if len(operands) < 2:
                    raise _Refusal(
                        f"{head} takes at least two operands, not {len(operands)}", f"write ({head} a b)"
                    )
                return self.builder.chain(RELATIONS[head], operands)
            if head in ARITHMETIC:
                return _arithmetic(head, [self._expr(item) for item in items])
            if head in BOOLEAN:
                return self._connective(head, [self._boolean(item) for item in items])
            return self._other(head, items)
        except _Refusal as refusal:
            if refusal.offset is None:
                words = _TOKEN.finditer(self.text, opened)
                place = next(m for m in words if refusal.word in (None, m[0]))
                refusal.offset = place.start()
            raise

    def _other(self, head: str | None, items: list) -> None:
        if head is None and not items:
            raise _Refusal("empty parentheses", "remove them")
        if head is None:
            raise _Refusal("an operator is missing after (", "expressions are written (operator operand ...)")
        known = [*RELATIONS, *ARITHMETIC, *BOOLEAN, "assert", "declare-const", "declare-fun"]
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
