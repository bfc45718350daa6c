"""Arrays of rationals and of sums are what Python's fractions and polynomials are."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from verifier.specs.formula import Polynomial, sum_of
from verifier.specs.rationals import Pool, Rationals
from verifier.specs.sums import Sums, SumTable

EDGES = [
    "0",
    "-0.0",
    "1",
    "-1",
    "+3",
    ".5",
    "5.",
    "1e300",
    "-1e-300",
    "1e-999",
    "9e999",
    "-0.1",
    "1/3",
    "-22/7",
]
EDGES += ["123456789012345678", "1234567890123456789", "9007199254740991", "9007199254740993"]
EDGES += ["0.9007199254740993", "4503599627370497.5", "0.000000000000000001"]


def texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    kinds = (
        lambda: f"{rng.uniform(-9, 9):.{rng.randint(0, 8)}f}",
        lambda: repr(rng.gauss(0, 1)),
        lambda: f"{rng.gauss(0, 1):.3e}",
        lambda: rng.choice(EDGES),
        lambda: f"{rng.randint(-3, 3)}.5",
        lambda: str(rng.randint(-(10**17), 10**17)),
    )
    return [rng.choice(kinds)() for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_arithmetic(seed: int) -> None:
    one, two, pool = texts(seed, 2000), texts(seed + 10, 2000), Pool()
    a, b = Rationals.read(one, pool), Rationals.read(two, pool)
    x, y = [Fraction(text) for text in one], [Fraction(text) for text in two]
    assert a.exact() == x and b.exact() == y
    assert (a * b).exact() == [i * j for i, j in zip(x, y, strict=True)]
    assert (a + b).exact() == [i + j for i, j in zip(x, y, strict=True)]
    assert (a + a.signed(np.full(len(a), -1))).num.tolist() == [0] * len(a)
    nonzero = a[a.num != 0]
    assert nonzero.reciprocal().exact() == [1 / i for i in x if i]
    assert Rationals.joined([a, Rationals.read(two, Pool())]).exact() == x + y
    mask = np.arange(4000) % 3 != 0
    mask[np.flatnonzero(mask)[2000:]] = False
    mixed = Rationals.interleaved(mask, a, b).exact()
    assert [v for v, m in zip(mixed, mask, strict=True) if m] == x
    group = np.sort(np.random.default_rng(seed).integers(0, 600, len(a)))
    expected = {k: sum((v for v, g in zip(x, group, strict=True) if g == k), Fraction(0)) for k in set(group)}
    assert a.grouped(group).exact() == [expected[k] for k in sorted(expected)]
    assert a.exact() == x


@pytest.mark.parametrize("seed", range(3))
def test_equal_numbers_are_written_alike(seed: int) -> None:
    pool = Pool()
    a, b = (Rationals.read(texts(seed + i, 1000), pool) for i in (0, 10))
    b = b[np.resize(np.flatnonzero(b.num), len(a))]
    for same in ((a + b) + b.signed(np.full(len(b), -1)), a * b * b.reciprocal()):
        assert (same.num == a.num).all() and (same.den == a.den).all()


@pytest.mark.parametrize("seed", range(3))
def test_nearest_floats(seed: int) -> None:
    pool = Pool()
    a, b = (Rationals.read(texts(seed + i, 2000), pool) for i in (0, 10))
    for numbers in (a, a * b, a + b, b[b.num != 0].reciprocal()):
        near, missing = numbers.nearest()
        for exact, float_, sign in zip(numbers.exact(), near.tolist(), missing.tolist(), strict=True):
            if math.isinf(float_):
                assert abs(exact) > 2**1023 and sign == (-1 if float_ > 0 else 1)
            else:
                assert float_ == exact.numerator / exact.denominator
                assert sign == (exact > Fraction(float_)) - (exact < Fraction(float_))


def polynomials(seed: int, count: int) -> list[Polynomial]:
    rng = random.Random(seed)
    return [
        Polynomial.of(
            {
                tuple(sorted(rng.choices(range(4), k=rng.randint(0, 3)))): Fraction(
                    rng.randint(-3, 3), rng.choice((1, 2, 10**9))
                )
                for _ in range(rng.randint(0, 4))
            }
        )
        for _ in range(count)
    ]


def test_sums() -> None:
    given = polynomials(0, 300)
    table = SumTable.of(given, 4)

    def back(sums: Sums) -> list[Polynomial]:
        merged = SumTable(sums.merged(), table.names)
        return [merged.polynomial(i, 1) for i in range(len(sums))]

    assert [table.polynomial(i, -1) for i in range(300)] == [-p for p in given]
    chosen = np.random.default_rng(0).integers(0, 300, 200)
    assert back(table.sums.take(chosen)) == [given[i] for i in chosen]
    left, right = table.sums.take(chosen[:100]), table.sums.take(chosen[100:])
    pairs = [(given[i], given[j]) for i, j in zip(chosen[:100], chosen[100:], strict=True)]
    assert back(left.times(right, table.names)) == [p * q for p, q in pairs]
    sizes = np.array([0, 3, 1, 0, 96])
    parts = np.split(chosen[:100], np.cumsum(sizes)[:-1])
    assert back(left.grouped(sizes)) == [sum_of(given[i] for i in part) for part in parts]
    assert back(Sums.joined([left, SumTable.of([given[0]], 4).sums]))[:100] == [
        given[i] for i in chosen[:100]
    ]
    mask = np.arange(200) % 2 == 0
    woven = back(Sums.interleaved(mask, left, right))
    assert woven[::2] == [p for p, _ in pairs] and woven[1::2] == [q for _, q in pairs]
