"""Writing a query as VNN-LIB 1 or 2, every number exact."""

from __future__ import annotations

import gzip
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from verifier.specs.builder import exact_text
from verifier.specs.errors import SpecError
from verifier.specs.formula import And, Atom, Clauses, Formula, Or, Polynomial, Relation, RowTable
from verifier.specs.query import Kind, Query

_KEYWORD = {Kind.INPUT: "declare-input", Kind.HIDDEN: "declare-hidden", Kind.OUTPUT: "declare-output"}


def write_query(query: Query, path: str | Path, version: int = 1) -> None:
    """Write `query` to `path`, gzipped when that ends in ``.gz``. `SpecError` when version 1 cannot express it."""
    data = query_text(query, version).encode()
    if str(path).endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    Path(path).write_bytes(data)


def query_text(query: Query, version: int = 1) -> str:
    """The text of `query` in VNN-LIB `version` 1 or 2. `SpecError` when version 1 cannot express it."""
    return "\n".join(_Writer(replace(query, version=version)).lines()) + "\n"


class _Writer:
    def __init__(self, query: Query) -> None:
        self.query = query
        self.names = [
            query.element_name(i) for v in query.variables for i in range(v.offset, v.offset + v.size)
        ]
        self.relations = [r.text if query.version == 2 else _V1[r] for r in Relation]

    def lines(self) -> Iterator[str]:
        yield from self._declarations()
        formula = self.query.formula
        for part in formula.children if isinstance(formula, And) else (formula,):
            if isinstance(part, Clauses) and len(part) == 1:
                rows = range(part.start, part.stop)
                yield from (f"(assert {self._row(part.table, row)})" for row in rows)
            else:
                yield f"(assert {self._formula(part)})"

    def _declarations(self) -> Iterator[str]:
        variables = self.query.variables
        if self.query.version == 1:
            if [(v.name, v.kind) for v in variables] != [("X", Kind.INPUT), ("Y", Kind.OUTPUT)]:
                hint = "VNN-LIB 1 has one network with input X and output Y; write version 2"
                raise SpecError("the query does not fit into VNN-LIB 1", hint=hint)
            yield from (f"(declare-const {name} Real)" for name in self.names)
            return
        yield "(vnnlib-version <2.0>)"
        for network in self.query.networks:
            yield f"(declare-network {network.name}"
            if network.equal_to or network.isomorphic_to:
                link = "equal-to" if network.equal_to else "isomorphic-to"
                yield f"  ({link} {network.equal_to or network.isomorphic_to})"
            for v in variables:
                if v.network == network.name:
                    name = f' "{v.onnx_name}"' if v.onnx_name else ""
                    yield f"  ({_KEYWORD[v.kind]} {v.name} {v.dtype} [{','.join(map(str, v.shape))}]{name})"
            yield ")"

    def _formula(self, formula: Formula) -> str:
        if isinstance(formula, Atom):
            return self._atom(formula)
        if isinstance(formula, Clauses):
            bounds = itertools.pairwise(formula.offsets.tolist())
            clauses = [
                self._joined("and", [self._row(formula.table, row) for row in range(a, b)]) for a, b in bounds
            ]
            return self._joined("or", clauses)
        parts = [self._formula(child) for child in formula.children]
        return self._joined("or" if isinstance(formula, Or) else "and", parts)

    def _joined(self, op: str, parts: list[str]) -> str:
        if not parts:
            return "(<= 0.0 1.0)" if op == "and" else "(<= 1.0 0.0)"
        return parts[0] if len(parts) == 1 else f"({op} {' '.join(parts)})"

    def _row(self, table: RowTable, row: int) -> str:
        right = int(table.right[row])
        if right < 0 and "/" in table.numerals[~right]:
            return self._atom(table.atom(row))
        other = self.names[right] if right >= 0 else self._numeral(table.numerals[~right])
        return f"({self.relations[table.relation[row]]} {self.names[table.left[row]]} {other})"

    def _atom(self, atom: Atom) -> str:
        # coefficients such as 1/3 have no decimal: multiply by their common denominator
        scale = math.lcm(*(c.denominator for _, c in atom.expr.terms if "/" in exact_text(c)))
        expr = atom.expr.scaled(Fraction(scale))
        left = self._sum(Polynomial(tuple((m, c) for m, c in expr.terms if m)))
        return f"({self.relations[atom.relation]} {left} {self._numeral(exact_text(-expr.offset))})"

    def _sum(self, expr: Polynomial) -> str:
        terms = [self._product(monomial, coefficient) for monomial, coefficient in expr.terms]
        return terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})"

    def _product(self, monomial: tuple[int, ...], coefficient: Fraction) -> str:
        factors = [self.names[i] for i in monomial]
        if coefficient != 1:
            factors.insert(0, self._numeral(exact_text(coefficient)))
        return factors[0] if len(factors) == 1 else f"(* {' '.join(factors)})"

    def _numeral(self, text: str) -> str:
        if self.query.version == 1:
            return text
        plain = format(Decimal(text), "f")
        return plain if "." in plain else f"{plain}.0"


_V1 = ("<=", "<", "=", "distinct", ">=", ">")
