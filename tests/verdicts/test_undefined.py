"""Networks that have no value (NaN) at some inputs: a bounded function behind hides that, and no proof may."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import verifier
from verifier import Box, Options, Property, Reason, Result, Status, Y
from verifier.bounds.defined import conditions
from verifier.certification import Verdict
from verifier.graph import Interval


class Hidden(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Linear(2, 2, bias=False)
        self.first.weight.data = torch.tensor([[1.0, 0.5], [-0.3, 1.0]])

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.function(self.first(x)))[:, :1]


def ask(function: Callable[[Tensor], Tensor], low: float, high: float, most: float = 3.0) -> Result:
    network = verifier.trace(Hidden(function), torch.full((1, 2), (low + high) / 2))
    box = Box(torch.full((1, 2), low), torch.full((1, 2), high))
    return verifier.verify(network, Property(box, ensures=Y[0] < most), options=Options(timeout=10))


UNDEFINED = {
    "log": (torch.log, -1.0, 1.0),
    "sqrt": (torch.sqrt, -1.0, 1.0),
    "acos": (torch.acos, -2.0, 2.0),
    "atanh": (torch.atanh, -2.0, 2.0),
    "acosh": (torch.acosh, 0.0, 2.0),
    "power": (lambda h: h.abs().neg() ** 0.7, -1.0, 1.0),
    "a corner": (lambda h: torch.log(h + 1.499), -1.0, 1.0),
    "difference of squares": (lambda h: torch.sqrt(h[:, :1] ** 2 - h[:, 1:] ** 2), -1.0, 1.0),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_no_value_is_no_proof(name: str) -> None:
    result = ask(*UNDEFINED[name])
    assert (result.status, result.reason) == (Status.UNKNOWN, Reason.UNDEFINED)
    assert "is defined for" in result.detail


DEFINED = {
    "log": (lambda h: torch.log(h + 1.6), -1.0, 1.0),
    "asin of a sine": (lambda h: torch.asin(torch.sin(h)), -1.0, 1.0),
    "norm": (lambda h: h.norm(dim=1, keepdim=True), -1.0, 1.0),
    "deviation": (lambda h: h.std(1, keepdim=True), -1.0, 1.0),
    "clipped": (lambda h: torch.log(h.clamp(min=0.01)), -1.0, 1.0),
    # Intervals show nothing here: the search does.
    "square written out": (
        lambda h: torch.sqrt(h[:, :1] ** 2 - 2 * h[:, :1] * h[:, 1:] + h[:, 1:] ** 2 + 0.1),
        -1.0,
        1.0,
    ),
    "what cancels": (lambda h: torch.log(2 * h[:, :1] + h[:, 1:] * 0 - 1.9 * h[:, :1] + 0.2), -1.0, 1.0),
}


@pytest.mark.parametrize("name", DEFINED)
def test_values_everywhere_are_proved(name: str) -> None:
    result = ask(*DEFINED[name])
    assert result.status is Status.UNSAT, result


def test_a_counterexample_needs_values_only_where_it_is() -> None:
    assert ask(torch.sqrt, -1.0, 1.0, most=0.3).status is Status.SAT


@pytest.mark.parametrize("seed", range(6))
def test_where_there_are_no_conditions_there_are_values(seed: int) -> None:
    torch.manual_seed(seed)
    functions = [torch.log, torch.sqrt, torch.acos, torch.acosh, torch.atanh, lambda h: h**-0.5]
    shift, scale = 3 * torch.rand(()) - 0.5, 2 * torch.rand(())
    network = Hidden(lambda h: functions[seed](scale * h + shift))
    with torch.no_grad():
        graph = verifier.trace(network, torch.full((1, 2), 0.5)).graph(torch.float64)
        for _ in range(20):
            low = 2 * torch.rand(1, 2).double() - 1
            box = Interval(low, low + torch.rand(1, 2))
            x = low + (box.upper - low) * torch.rand(1000, 2)
            asked = conditions(graph, box)
            found = graph.evaluate([x])[0].isnan().flatten()
            if asked is None:
                assert not found.any()
            else:
                assert (asked.evaluate([x])[0].amin(1) < 0)[found].all()


def test_the_edge_of_a_domain_is_no_disagreement() -> None:
    """The check after tracing moves points by a last digit, here to where there is no value."""
    verifier.trace(Hidden(torch.log), torch.zeros(1, 2))


def test_what_has_no_value_is_not_certified() -> None:
    network = verifier.trace(Pair(), torch.full((1, 2), 0.5))
    data = [(torch.tensor([[0.5, 0.5], [5.0, 5.0]]), torch.tensor([0, 0]))]
    near, far = verifier.certify(network, data, 1.0, options=Options(timeout=5)).samples
    assert near.verdict is Verdict.OPEN and far.verdict is Verdict.CERTIFIED


class Pair(Hidden):
    """Two scores, the first of which is the larger one wherever there are any."""

    def __init__(self) -> None:
        super().__init__(torch.sqrt)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.function(self.first(x))) * 0.1 + torch.tensor([1.0, 0.0])
