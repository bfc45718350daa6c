"""Users are told where a network may not be defined; bounds there are infinite, never NaN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import verifier
from verifier.bounds.undefined import first_undefined
from verifier.graph import Builder, Interval
from verifier.ops.arithmetic import scale_shift
from verifier.ops.gated import Gated
from verifier.ops.power import log, power
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.trigonometric import Asin, Tan
from verifier.sets import Box


@pytest.mark.parametrize(
    ("make", "bad", "good", "words"),
    [
        (log, -0.5, 0.5, "defined for x > 0"),
        (lambda b, x: power(b, x, 0.5), -0.5, 0.0, "defined for x >= 0"),
        (lambda b, x: power(b, x, -2.0), -0.5, 0.5, "x other than 0"),
        (lambda b, x: b.add(Reciprocal(), x), -0.5, 0.5, "x other than 0"),
        (lambda b, x: b.add(Asin(), x), 0.5, 0.0, "-1 <= x <= 1"),
        (lambda b, x: b.add(Tan(), x), 1.0, 0.2, "between two poles"),
        (
            lambda b, x: b.add(Gated(Reciprocal()), scale_shift(b, x, shift=0.1), x),
            -0.5,
            0.5,
            "x other than 0",
        ),
    ],
)
def test_arguments_outside_of_a_domain(make, bad: float, good: float, words: str) -> None:
    builder = Builder()
    graph = builder.graph(make(builder, builder.input("x", (2,))))
    for start, expected in ((bad, True), (good, False)):
        low = torch.tensor([[start, start]], dtype=torch.float64)
        said = first_undefined(graph, Interval(low, low + 0.9))
        assert (words in said) == expected, said


class _LogNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(self.linear(x) + 0.2)


def test_bounds_are_infinite_there() -> None:
    torch.manual_seed(0)
    x = torch.full((1, 2), 0.3)
    model = verifier.trace(_LogNetwork(), x)
    found = verifier.compute_bounds(model, Box.around(x.unsqueeze(1), 1.0), method="crown")
    assert not found.lower.isnan().any() and not found.upper.isnan().any()
    assert (found.lower == -torch.inf).any()


def test_an_unknown_verdict_says_so() -> None:
    torch.manual_seed(0)
    x = torch.full((1, 2), 0.3)
    y = verifier.Y
    result = verifier.verify(
        verifier.trace(_LogNetwork(), x),
        verifier.Property(inputs=Box.around(x.unsqueeze(1), 1.0), ensures=y[0] < 100),
        timeout=3,
    )
    assert result.holds is None
    assert "(Log) is defined for x > 0, but its argument is only known to lie in [-" in result.explanation
