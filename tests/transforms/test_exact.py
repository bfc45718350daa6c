"""Which sums of constants are exact."""

from __future__ import annotations

from fractions import Fraction

import torch

from verifier.transforms.exact import exact_product, exact_sums, faithful_affine, faithful_product, grain


def test_grain() -> None:
    values = torch.tensor(
        [0.0, 1.0, -6.0, 0.75, 2.0**-1074, 3 * 2.0**-1074, -(2.0**1023), 1e300], dtype=torch.float64
    )
    expected = [torch.inf, 1.0, 2.0, 0.25, 2.0**-1074, 2.0**-1074, 2.0**1023]
    found = grain(values)
    assert found[:-1].tolist() == expected
    quotient = Fraction(1e300) / Fraction(float(found[-1]))
    assert quotient.denominator == 1 and quotient.numerator % 2 == 1


def test_products_that_count_as_exact_are() -> None:
    torch.manual_seed(0)
    exact = rounded = 0
    for _ in range(300):
        a = torch.randn(2, 3).bfloat16().double() * 2.0 ** torch.randint(-20, 20, (2, 3))
        b = torch.randn(3, 2).half().double() * 2.0 ** torch.randint(-20, 20, (3, 2))
        marked, product = exact_product(a, b), a @ b
        for i in range(2):
            for j in range(2):
                total = sum(
                    Fraction(x) * Fraction(y) for x, y in zip(a[i].tolist(), b[:, j].tolist(), strict=True)
                )
                if marked[i, j]:
                    assert Fraction(float(product[i, j])) == total
                    exact += 1
                else:
                    rounded += 1
    assert exact > 50 and rounded > 50


def test_cancellation_is_seen() -> None:
    big = 2.0**60
    ones, column = torch.ones(1, 3, dtype=torch.float64), torch.tensor([big, 1, -big], dtype=torch.float64)
    assert not faithful_product(ones, column.unsqueeze(1))
    assert not faithful_affine(ones, column, None)
    assert not exact_sums(column.unsqueeze(0), torch.zeros(3, dtype=torch.int64), 1)
    third = torch.tensor([1 / 3], dtype=torch.float64)
    assert faithful_product(third.unsqueeze(0), third.unsqueeze(0))  # one rounding, relative to the result
    assert faithful_affine(third.unsqueeze(0), third, None)
    assert not faithful_affine(third.unsqueeze(0), third, -third * third)  # which a sum may cancel
    assert faithful_affine(torch.ones(1, 1, dtype=torch.float64), third, -third / 7)
