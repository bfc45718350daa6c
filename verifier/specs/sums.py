"""Many polynomials in arrays, as a large file has them, and the atoms that compare them with zero."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.specs.formula import Atom, Monomial, Polynomial, Relation
from verifier.specs.rationals import Pool, Rationals

Ints = NDArray[np.int64]


def ranges(starts: Ints, counts: Ints) -> Ints:
    """``counts[0]`` numbers from ``starts[0]`` on, then ``counts[1]`` from ``starts[1]`` on, ..."""
    return np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())


class Monomials:
    """Numbers monomials over ``variables`` variables: -1 is the constant, then the variables, then products."""

    def __init__(self, variables: int) -> None:
        self.variables = variables
        self.products: list[tuple[int, ...]] = []
        self.index: dict[tuple[int, ...], int] = {}

    def code(self, monomial: Monomial) -> int:
        """The number of a sorted tuple of variables."""
        if len(monomial) < 2:
            return monomial[0] if monomial else -1
        code = self.index.setdefault(monomial, self.variables + len(self.products))
        if code == self.variables + len(self.products):
            self.products.append(monomial)
        return code

    def placed(self, position: Ints, names: Monomials) -> Ints:
        """By number (from -1 on), that of the monomial in `names` when variable i becomes ``position[i]``."""
        moved = [names.code(tuple(sorted(position[list(product)].tolist()))) for product in self.products]
        return np.concatenate(([-1], position, np.array(moved, dtype=np.int64)))

    def monomial(self, code: int) -> Monomial:
        """The sorted tuple of variables with a number."""
        if code < self.variables:
            return (code,) if code >= 0 else ()
        return self.products[code - self.variables]

    def times(self, a: Ints, b: Ints) -> Ints:
        """The numbers of products."""
        result = np.where(a < 0, b, a)
        both = np.flatnonzero((a >= 0) & (b >= 0))
        if len(both):
            span = self.variables + len(self.products)
            low, high = np.minimum(a[both], b[both]), np.maximum(a[both], b[both])
            pairs, which = np.unique(low * span + high, return_inverse=True)
            left, right = (map(self.monomial, side.tolist()) for side in np.divmod(pairs, span))
            codes = [self.code(tuple(sorted(i + j))) for i, j in zip(left, right, strict=True)]
            result[both] = np.array(codes, dtype=np.int64)[which.reshape(-1)]
        return result


@dataclass(frozen=True, eq=False)
class Sums:
    """N sums one after the other: ``counts`` int64 [N] terms each, of ``monomials`` int64 [T] times ``factors`` [T]."""

    counts: Ints
    monomials: Ints
    factors: Rationals

    @functools.cached_property
    def offsets(self) -> Ints:
        """[N + 1]: the terms of sum i are ``offsets[i] : offsets[i + 1]``."""
        return np.concatenate(([0], np.cumsum(self.counts)))

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def joined(cls, parts: Sequence[Sums]) -> Sums:
        """One list after the other."""
        return cls(
            np.concatenate([part.counts for part in parts]),
            np.concatenate([part.monomials for part in parts]),
            Rationals.joined([part.factors for part in parts]),
        )

    @classmethod
    def interleaved(cls, mask: NDArray[np.bool_], these: Sums, others: Sums) -> Sums:
        """The next of `these` where `mask`, else the next of `others`."""
        if not len(others):
            return these
        if not len(these):
            return others
        counts = np.empty(len(mask), dtype=np.int64)
        counts[mask], counts[~mask] = these.counts, others.counts
        inner = np.repeat(mask, counts)
        monomials = np.empty(len(inner), dtype=np.int64)
        monomials[inner], monomials[~inner] = these.monomials, others.monomials
        return cls(counts, monomials, Rationals.interleaved(inner, these.factors, others.factors))

    def take(self, index: Ints | NDArray[np.bool_]) -> Sums:
        """Some of the sums, by index or mask."""
        counts = self.counts[index]
        place = ranges(self.offsets[:-1][index], counts)
        return Sums(counts, self.monomials[place], self.factors[place])

    def signed(self, sign: Ints) -> Sums:
        """Each times 1 or -1."""
        return Sums(self.counts, self.monomials, self.factors.signed(np.repeat(sign, self.counts)))

    def grouped(self, sizes: Ints) -> Sums:
        """The sum of the first ``sizes[0]``, of the next ``sizes[1]``, ..."""
        ends = np.cumsum(sizes)
        return Sums(self.offsets[ends] - self.offsets[ends - sizes], self.monomials, self.factors)

    def times(self, other: Sums, names: Monomials) -> Sums:
        """The products of the first with the first of `other`, and so on."""
        counts = self.counts * other.counts
        outer, inner = np.divmod(ranges(np.zeros_like(counts), counts), np.repeat(other.counts, counts))
        left = np.repeat(self.offsets[:-1], counts) + outer
        right = np.repeat(other.offsets[:-1], counts) + inner
        factors = self.factors[left] * other.factors[right]
        return Sums(counts, names.times(self.monomials[left], other.monomials[right]), factors)

    def merged(self) -> Sums:
        """The same with each monomial once, ascending by number, and no zero factors."""
        owner = np.repeat(np.arange(len(self)), self.counts)
        key = owner * (int(self.monomials.max(initial=0)) + 2) + self.monomials
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.concatenate(([True], key[1:] != key[:-1]))[: len(key)]
        factors = self.factors[order] if first.all() else self.factors[order].grouped(key)
        order = order[first]
        kept = factors.num != 0
        counts = np.bincount(owner[order[kept]], minlength=len(self))
        return Sums(counts, self.monomials[order[kept]], factors[kept])


@dataclass(frozen=True, eq=False)
class SumTable:
    """Polynomials as `Sums.merged` leaves them; ``names`` numbers their monomials."""

    sums: Sums
    names: Monomials

    @classmethod
    def of(cls, polynomials: Iterable[Polynomial], variables: int) -> SumTable:
        """The polynomials as they are."""
        names = Monomials(variables)
        terms = [polynomial.terms for polynomial in polynomials]
        counts = np.array([len(part) for part in terms], dtype=np.int64)
        codes = np.array([names.code(m) for part in terms for m, _ in part], dtype=np.int64)
        factors = Rationals.of((factor for part in terms for _, factor in part), Pool())
        return cls(Sums(counts, codes, factors).merged(), names)

    def polynomial(self, row: int, sign: int) -> Polynomial:
        """`sign` times sum `row`."""
        part = slice(self.sums.offsets[row], self.sums.offsets[row + 1])
        monomials = map(self.names.monomial, self.sums.monomials[part].tolist())
        factors = self.sums.factors[part].exact()
        return Polynomial(tuple(sorted((m, sign * c) for m, c in zip(monomials, factors, strict=True))))


class StoredAtom(Atom):
    """An atom whose polynomial is in a `SumTable` (or its negation is), made when it is asked for."""

    table: SumTable
    row: int
    sign: int

    def __init__(self, table: SumTable, row: int, sign: int, relation: Relation) -> None:
        own = self.__dict__
        own["table"], own["row"], own["sign"], own["relation"] = table, row, sign, relation

    @functools.cached_property
    def expr(self) -> Polynomial:  # type: ignore[override]
        return self.table.polynomial(self.row, self.sign)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Atom) and (self.expr, self.relation) == (other.expr, other.relation)

    __hash__ = Atom.__hash__

    def with_relation(self, relation: Relation) -> StoredAtom:
        if relation in (Relation.GE, Relation.GT):
            return StoredAtom(self.table, self.row, -self.sign, relation.mirrored)
        return StoredAtom(self.table, self.row, self.sign, relation)
