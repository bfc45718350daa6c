"""VNN-LIB 2.0, parsed and type-checked by the ``vnnlib`` package; the meaning is worked out here.

The package's own ``compat.transform`` reads several input disjunctions as one list of cases, so only its
syntax tree is used. Some spellings that it rejects are rewritten first, with the same meaning: numbers such as
``1``, ``.5`` or ``1e-3``, and the type ``Real``. Two mistakes seen in the wild get an error that says what to write:
``(vnnlib-version 2.0)`` and infix comparisons ``(a < b)``.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
from decimal import Decimal
from typing import Any

import numpy as np

from verifier.specs.builder import Expr, FormulaBuilder, Item, polynomial
from verifier.specs.errors import SpecError
from verifier.specs.formula import MAX_DEPTH, Relation, sum_of
from verifier.specs.query import Kind, NetworkDecl, Query, Variable

_COMMENT = re.compile(r'("[^"\n]*")|;[^\n]*')
_QUOTED = re.compile(r'"[^"]*"')
_VERSION = re.compile(r"(\(\s*vnnlib-version\s+)(\d+\.\d+)(\s*\))")
_TYPE = re.compile(r"(declare-(?:input|hidden|output)\s+\S+\s+)Real\b")
_BRACKETS = re.compile(r"\[[^\]()]*\]")
_OPERAND = r"[^\s()<>=!\[\]]+(?:\s*\[[^\]()]*\])?"
_INFIX = re.compile(rf"\(\s*({_OPERAND})\s+(<=|<|>=|>|==|!=)\s+({_OPERAND})\s*\)")
_ODD_NUMERAL = re.compile(
    r"(?<=[\s()])(?!-?\d+\.\d+[\s()])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?(?=[\s()])", re.ASCII
)
_TYPES = ("real", "Real", "float32", "float64")
"""Element types that can be verified; networks have no others."""
_SPELLINGS = {"float": "float32", "double": "float64", "f32": "float32", "f64": "float64"}
_DECLARED = re.compile(r"declare-(input|hidden|output)\s+([^\s()\[]+)\s+([^\s()\[]+)")
_PLACE = re.compile(r"line (\d+), column (\d+)(?:: '(.*)')?", re.DOTALL)
_INSTALL = "pip install vnnlib (it has no wheels for Linux on aarch64; VNN-LIB 1 files need no package)"

_RELATIONS = {
    "LessEqual": Relation.LE,
    "LessThan": Relation.LT,
    "Equal": Relation.EQ,
    "NotEqual": Relation.NE,
    "GreaterEqual": Relation.GE,
    "GreaterThan": Relation.GT,
}


def parse(text: str, source: str | None = None) -> Query:
    """The query of a VNN-LIB 2.0 text. Raises `SpecError`, also when the ``vnnlib`` package is missing."""
    try:
        import vnnlib
    except ImportError:
        raise SpecError("VNN-LIB 2.0 files need the vnnlib package", file=source, hint=_INSTALL) from None
    blanked = _COMMENT.sub(lambda m: m[1] or " " * len(m[0]), text) if ";" in text else text
    try:
        _check_depth(blanked)
        _check_syntax(blanked)
        official = _official(blanked)
        try:
            tree = vnnlib.parse_query_string(official)
        except vnnlib.VNNLibException as error:
            raise _spec_error(str(error), blanked, official) from None
        return _Walker(tree, blanked).query(source)
    except SpecError as error:
        error.file = source
        raise


def _check_depth(text: str) -> None:
    """Refuse nesting that would exhaust the C++ parser's stack or ours, which no error can report."""
    data = np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)
    depth = np.cumsum((data == ord("(")).astype(np.int64) - (data == ord(")")))
    if depth.size and depth.max() > MAX_DEPTH:
        message = f"parentheses are nested more than {MAX_DEPTH} deep"
        raise SpecError.at(text, int(np.argmax(depth > MAX_DEPTH)), message, "flatten the formula")


def _check_syntax(text: str) -> None:
    """Refuse what is known from files in the wild with the standard's way to write it. Raises `SpecError`."""
    unquoted = _QUOTED.sub(lambda m: "_" * len(m[0]), text)
    match = _VERSION.search(unquoted)
    if match is not None:
        hint = f"write (vnnlib-version <{match[2]}>)"
        raise SpecError.at(text, match.start(2), f"the version {match[2]} is not in angle brackets", hint)
    match = _INFIX.search(unquoted)
    if match is not None:
        left, relation, right = match.groups()
        message = f"{relation} stands between what it compares"
        raise SpecError.at(
            text, match.start(2), message, f"write the comparison first: ({relation} {left} {right})"
        )
    for match in _DECLARED.finditer(unquoted):
        if match[3] not in _TYPES:
            known = ", ".join(kind for kind in _TYPES if kind != "Real")
            hint = f"write {_SPELLINGS[match[3]]}" if match[3] in _SPELLINGS else f"supported are {known}"
            message = f"the element type {match[3]} of {match[2]} is not supported"
            raise SpecError.at(text, match.start(3), message, hint)


def _official(text: str) -> str:
    """`text` in the spelling that the package accepts, line by line the same."""
    text = _TYPE.sub(r"\1real", text)
    text = _BRACKETS.sub(lambda m: re.sub(r"[ \t\r]+", "", m[0]), text)
    parts = text.split('"')
    parts[::2] = [_ODD_NUMERAL.sub(lambda m: _plain(m[0]), part) for part in parts[::2]]
    return '"'.join(parts)


def _plain(numeral: str) -> str:
    """A numeral without exponent and with digits on both sides of a point."""
    digits = format(Decimal(numeral), "f")
    return digits if "." in digits else digits + ".0"


def _spec_error(message: str, text: str, official: str) -> SpecError:
    """The package's message as a `SpecError`: a syntax error with a place, or a JSON list of type errors."""
    place = _PLACE.search(message)
    if place is not None:
        line, column = int(place[1]), int(place[2])
        found = f"unexpected {place[3]!r}" if place[3] else "unexpected token, or the end of the file"
        if official.splitlines()[line - 1 : line] != text.splitlines()[line - 1 : line]:
            column = 1  # this line was rewritten: columns no longer agree
        return SpecError(
            f"syntax error: {found}", line, column, "see the VNN-LIB 2.0 grammar; is a ) missing?"
        )
    try:
        errors = json.loads(message)["errors"]
    except (ValueError, KeyError, TypeError):
        return SpecError(message, 1, 1, "the vnnlib package refuses this file")
    first = next((e for e in errors if e.get("errorCode") != "TypeMismatch"), errors[0])
    symbol, line = str(first.get("offendingSymbol", "")), int(first.get("line", 1))
    row = "".join(text.splitlines()[line - 1 : line])
    match = re.search(rf"(?<![\w]){re.escape(symbol)}(?![\w])", row)
    hint = str(first.get("hint", ""))
    if first.get("errorCode") == "UndeclaredVariable":
        near = difflib.get_close_matches(symbol, [name for _, name, _ in _DECLARED.findall(text)], 3, 0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else hint
    column = match.start() + 1 if match else 1
    return SpecError(f"{str(first.get('message', '')).rstrip('.')}: {symbol}", line, column, hint.rstrip("."))


class _Walker:
    """Turns the package's syntax tree into a `Query`."""

    def __init__(self, tree: Any, text: str) -> None:
        self.tree = tree
        self.types = {name: dtype for _, name, dtype in _DECLARED.findall(text)}
        self.text = text
        self.variables: dict[str, Variable] = {}
        self.strides: dict[str, tuple[int, ...]] = {}
        self.builder = FormulaBuilder()

    def query(self, source: str | None) -> Query:
        size = 0
        order = {name: i for i, (_, name, _) in enumerate(_DECLARED.findall(self.text))}
        for network in self.tree.networks:
            declared = [
                (definition, kind)
                for kind, group in (
                    (Kind.INPUT, network.inputs),
                    (Kind.HIDDEN, network.hidden),
                    (Kind.OUTPUT, network.outputs),
                )
                for definition in group
            ]
            for definition, kind in sorted(declared, key=lambda pair: order.get(pair[0].name, 0)):
                size += self._declare(definition, kind, network.name, size)
        networks = tuple(
            NetworkDecl(n.name, n.equal_to or None, n.isometric_to or None) for n in self.tree.networks
        )
        self._check_networks(networks)
        items = [self._boolean(assertion.expr) for assertion in self.tree.assertions]
        return Query(networks, tuple(self.variables.values()), self.builder.finish(items), 2, source)

    def _declare(self, definition: Any, kind: Kind, network: str, offset: int) -> int:
        name, shape = definition.name, tuple(int(n) for n in definition.shape)
        if name in self.variables:
            raise self._error(f"{name} is declared twice", name, "rename one of them")
        if any(n <= 0 for n in shape):
            raise self._error(f"{name} has shape {list(shape)}", name, "every dimension must be positive")
        onnx_name = definition.onnx_name.strip('"') if definition.onnx_name else None
        variable = Variable(name, kind, network, shape, self.types.get(name, "real"), onnx_name, offset)
        self.variables[name] = variable
        self.strides[name] = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        return variable.size

    def _check_networks(self, networks: tuple[NetworkDecl, ...]) -> None:
        signatures: dict[str, list] = {}
        for network in networks:
            own = [(v.kind, v.shape) for v in self.variables.values() if v.network == network.name]
            own = [part for part in own if part[0] is not Kind.HIDDEN]
            other = network.equal_to or network.isomorphic_to
            if network.name in signatures:
                raise self._error(f"network {network.name} is declared twice", network.name, "rename one")
            if other is not None and other not in signatures:
                raise self._error(f"network {other} is not declared before", other, "declare it first")
            if other is not None and signatures[other] != own:
                message = f"network {network.name} has other inputs or outputs than {other}"
                raise self._error(message, network.name, "equal or isomorphic networks have the same shapes")
            signatures[network.name] = own

    def _error(self, message: str, name: str, hint: str) -> SpecError:
        places = list(re.finditer(rf"(?<![\w]){re.escape(name)}(?![\w])", self.text))
        return SpecError.at(self.text, places[-1].start() if places else 0, message, hint)

    def _boolean(self, node: Any) -> Item:
        kind = type(node).__name__
        if kind in ("And", "Or"):
            return kind.lower(), [self._boolean(child) for child in node.args]
        if kind in _RELATIONS:
            return self.builder.compare(
                _RELATIONS[kind], self._arithmetic(node.lhs), self._arithmetic(node.rhs)
            )
        raise SpecError(f"unknown constraint {node}", 1, 1, "this release of vnnlib is not supported")

    def _arithmetic(self, node: Any) -> Expr:
        kind = type(node).__name__
        if kind == "Var":
            strides = self.strides[node.name]
            place = sum(i * stride for i, stride in zip(node.indices, strides, strict=True))
            return self.variables[node.name].offset + place
        if kind in ("Float", "Int", "IntExpr", "Literal"):
            return node.lexeme
        if kind == "Negate":
            return -polynomial(self._arithmetic(node.expr))
        if kind == "Plus":
            return sum_of(polynomial(self._arithmetic(part)) for part in node.args)
        if kind == "Minus":
            rest = sum_of(polynomial(self._arithmetic(part)) for part in node.rest)
            return polynomial(self._arithmetic(node.head)) - rest
        if kind == "Multiply":
            factors = [polynomial(self._arithmetic(part)) for part in node.args]
            return list(itertools.accumulate(factors, lambda a, b: a * b))[-1]
        raise SpecError(f"unknown expression {node}", 1, 1, "this release of vnnlib is not supported")
