"""Arrays of exact rationals: numerators and denominators as integers, Python's integers where those are too small."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_LIMIT = 2**53
_DIGITS = 18
"""An int64 holds so many decimal digits."""

Ints = NDArray[np.int64]
Pair = tuple[int, int]


class Pool:
    """Positive numbers that do not fit, as (numerator, denominator) in lowest terms, each once."""

    def __init__(self) -> None:
        self.values: list[Pair] = []
        self.index: dict[Pair, int] = {}

    def code(self, numerator: int, denominator: int) -> Pair:
        """How `Rationals` writes a number in lowest terms."""
        size = abs(numerator)
        if size < _LIMIT and denominator < _LIMIT:
            return numerator, denominator
        place = self.index.setdefault((size, denominator), len(self.values))
        if place == len(self.values):
            self.values.append((size, denominator))
        return (place + 1 if numerator > 0 else -place - 1), 0


@dataclass(frozen=True, eq=False)
class Decimals:
    """Words ``mantissa / 10**places`` with so many ``digits``, int64 [n] each. Those that are not ``plain`` (bool [n])
    are longer, or made of more than digits, a point and a sign."""

    mantissa: Ints
    places: Ints
    digits: Ints
    plain: NDArray[np.bool_]

    @classmethod
    def read(cls, data: NDArray[np.uint8], starts: NDArray, stops: NDArray) -> Decimals:
        """The words ``data[starts[i] : stops[i]]``, ASCII."""
        length = stops - starts
        mantissa, places, digits = np.zeros((3, len(starts)), dtype=np.int64)
        pointed, plain = np.zeros(len(starts), dtype=bool), np.ones(len(starts), dtype=bool)
        for i in range(min(int(length.max(initial=0)), _DIGITS + 2)):
            letter = data[np.minimum(starts + i, len(data) - 1)]
            inside = length > i
            digit = inside & (letter >= ord("0")) & (letter <= ord("9"))
            point = inside & (letter == ord(".")) & ~pointed
            signed = (letter == ord("-")) | (letter == ord("+"))
            mantissa = np.where(digit, mantissa * 10 + (letter - ord("0")), mantissa)
            digits += digit
            places += digit & pointed
            pointed |= point
            plain &= digit | point | ~inside | (signed & (i == 0))
        plain &= (digits > 0) & (digits <= _DIGITS) & (length <= _DIGITS + 2)
        negative = data[np.minimum(starts, len(data) - 1)] == ord("-")
        return cls(np.where(negative, -mantissa, mantissa), places, digits, plain)

    def __getitem__(self, index: NDArray) -> Decimals:
        return Decimals(self.mantissa[index], self.places[index], self.digits[index], self.plain[index])


class Rationals:
    """Numbers ``num / den`` in lowest terms, int64 [n] each and less than 2**53 in magnitude.

    Where ``den`` is 0, ``num`` is ``k + 1`` or ``-(k + 1)`` for plus or minus entry k of the pool. Numbers of one
    pool are equal iff both arrays are. Arithmetic is elementwise, between arrays of one pool.
    """

    __slots__ = ("den", "num", "pool")

    def __init__(self, num: Ints, den: Ints, pool: Pool) -> None:
        self.num, self.den, self.pool = num, den, pool

    @classmethod
    def of(cls, values: Iterable[Fraction], pool: Pool) -> Rationals:
        """The same numbers."""
        codes = [pool.code(*value.as_integer_ratio()) for value in values]
        num, den = np.array(codes, dtype=np.int64).reshape(-1, 2).T
        return cls(num.copy(), den.copy(), pool)

    @classmethod
    def of_decimals(cls, decimals: Decimals, long: Iterable[str], pool: Pool) -> Rationals:
        """The same numbers; those that are not plain are the texts `long`: decimals, or ``p/q``."""
        plain = decimals.plain
        num, den = np.where(plain, decimals.mantissa, 0), 10 ** np.where(plain, decimals.places, 0)
        common = np.gcd(num, den)
        result = cls(num // common, den // common, pool)
        large = np.flatnonzero((np.abs(result.num) >= _LIMIT) | (result.den >= _LIMIT))
        result._put(large, zip(result.num[large].tolist(), result.den[large].tolist(), strict=True))
        result._put(np.flatnonzero(~plain), map(_ratio, long))
        return result

    @classmethod
    def read(cls, texts: Sequence[str], pool: Pool) -> Rationals:
        """Decimals, with or without exponents, or ``p/q``."""
        length = np.array([len(text) for text in texts], dtype=np.int64)
        data = np.frombuffer("".join(texts).encode(), dtype=np.uint8)
        stops = np.cumsum(length)
        decimals = Decimals.read(data, stops - length, stops)
        return cls.of_decimals(decimals, [texts[i] for i in np.flatnonzero(~decimals.plain).tolist()], pool)

    @classmethod
    def joined(cls, parts: Sequence[Rationals]) -> Rationals:
        """One array after the other, of any pools."""
        pool = parts[0].pool
        moved = [part if part.pool is pool else cls.of(part.exact(), pool) for part in parts]
        return cls(np.concatenate([p.num for p in moved]), np.concatenate([p.den for p in moved]), pool)

    @classmethod
    def interleaved(cls, mask: NDArray[np.bool_], these: Rationals, others: Rationals) -> Rationals:
        """The next of `these` where `mask`, else the next of `others`."""
        num, den = np.empty((2, len(mask)), dtype=np.int64)
        num[mask], den[mask], num[~mask], den[~mask] = these.num, these.den, others.num, others.den
        return cls(num, den, these.pool)

    def __len__(self) -> int:
        return len(self.num)

    def __getitem__(self, index: NDArray | slice) -> Rationals:
        return Rationals(self.num[index], self.den[index], self.pool)

    def exact(self) -> list[Fraction]:
        """The numbers one by one."""
        return [Fraction(*pair) for pair in self._pairs()]

    def signed(self, sign: Ints) -> Rationals:
        """Multiplied by 1 or -1 (or 0)."""
        return Rationals(self.num * sign, np.where(sign == 0, 1, self.den), self.pool)

    def __mul__(self, other: Rationals) -> Rationals:
        num, den = self.num * other.num, self.den * other.den
        near_num, near_den = (
            a.astype(np.float64) * b for a, b in ((self.num, other.num), (self.den, other.den))
        )
        fits = (self.den > 0) & (other.den > 0) & (np.abs(near_num) < _LIMIT) & (near_den < _LIMIT)
        fits |= self._small(1) | other._small(1)
        return self._combined(other, operator.mul, num, den, fits)

    def __add__(self, other: Rationals) -> Rationals:
        common = np.maximum(np.gcd(self.den, other.den), 1)
        left, right = other.den // common, self.den // common
        num, den = self.num * left + other.num * right, self.den * left
        near = np.abs(self.num * left.astype(np.float64)) + np.abs(other.num * right.astype(np.float64))
        fits = (
            (self.den > 0) & (other.den > 0) & (near < _LIMIT) & (self.den * left.astype(np.float64) < _LIMIT)
        )
        for one, two in ((self, other), (other, self)):
            zero = two._small(0)
            num[zero], den[zero] = one.num[zero], one.den[zero]
            fits |= zero
        return self._combined(other, operator.add, num, den, fits)

    def reciprocal(self) -> Rationals:
        """One divided by each; none may be zero."""
        result = Rationals(np.sign(self.num) * self.den, np.abs(self.num), self.pool)
        large = np.flatnonzero(self.den == 0)
        result._put(large, ((1 / value).as_integer_ratio() for value in self[large].exact()))
        return result

    def grouped(self, group: Ints) -> Rationals:
        """The sums of those with equal numbers in `group`, which ascends."""
        values = Rationals(self.num.copy(), self.den.copy(), self.pool)
        while True:
            first = np.concatenate(([True], group[1:] != group[:-1]))
            start = np.maximum.accumulate(np.where(first, np.arange(len(group)), 0))
            kept = (np.arange(len(group)) - start) % 2 == 0
            pairs = np.flatnonzero(~kept)
            if not len(pairs):
                break
            added = values[pairs - 1] + values[pairs]
            values.num[pairs - 1], values.den[pairs - 1] = added.num, added.den
            values, group = values[kept], group[kept]
        return values

    def nearest(self) -> tuple[NDArray[np.float64], Ints]:
        """The nearest floats (infinite beyond their range), and the signs of what is missing to the exact values."""
        near = self.num / np.maximum(self.den, 1)
        mantissa, exponent = np.frexp(near)
        # near is an integer over 2**shift; the difference of the cross products, at most den / 2, is right modulo 2**64
        shift = 53 - exponent.astype(np.int64)
        whole = (mantissa * 2.0**53).astype(np.int64).view(np.uint64) * self.den.view(np.uint64)
        scaled = self.num.view(np.uint64) << np.minimum(shift, 63).astype(np.uint64)
        scaled[shift > 63] = 0
        sign = np.sign((scaled - whole).view(np.int64))
        large = np.flatnonzero(self.den == 0)
        if len(large):
            near[large], sign[large] = zip(*map(_nearest, self[large]._pairs()), strict=True)
        return near, sign

    def _pairs(self) -> list[Pair]:
        """Numerators and denominators as Python's integers."""
        pairs = list(zip(self.num.tolist(), self.den.tolist(), strict=True))
        for i in np.flatnonzero(self.den == 0).tolist():
            code = pairs[i][0]
            num, den = self.pool.values[abs(code) - 1]
            pairs[i] = (num if code > 0 else -num, den)
        return pairs

    def _small(self, size: int) -> NDArray[np.bool_]:
        return (np.abs(self.num) == size) & (self.den == 1)

    def _reduced(self) -> Rationals:
        common = np.where(self.den > 0, np.gcd(self.num, self.den), 1)
        zero = self.num == 0
        return Rationals(self.num // common, np.where(zero, 1, self.den // common), self.pool)

    def _combined(
        self, other: Rationals, operation: Callable, num: Ints, den: Ints, fits: NDArray[np.bool_]
    ) -> Rationals:
        """`num` / `den` where it `fits`; the others one by one."""
        hard = np.flatnonzero(~fits)
        num[hard], den[hard] = 0, 1
        result = Rationals(num, den, self.pool)._reduced()
        if len(hard):
            values = map(operation, self[hard].exact(), other[hard].exact())
            result._put(hard, (value.as_integer_ratio() for value in values))
        return result

    def _put(self, places: NDArray[np.intp], ratios: Iterable[Pair]) -> None:
        """Set some numbers, in lowest terms."""
        for place, ratio in zip(places.tolist(), ratios, strict=True):
            self.num[place], self.den[place] = self.pool.code(*ratio)


def _ratio(text: str) -> Pair:
    top, slash, bottom = text.partition("/")
    return (Fraction(int(top), int(bottom)) if slash else Decimal(text)).as_integer_ratio()


def _nearest(pair: Pair) -> tuple[float, int]:
    num, den = pair
    try:
        near = num / den
    except OverflowError:
        return (math.inf, -1) if num > 0 else (-math.inf, 1)
    top, bottom = near.as_integer_ratio()
    left, right = num * bottom, top * den
    return near, (left > right) - (left < right)
