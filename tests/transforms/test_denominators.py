"""Margins behind a normalisation, multiplied by its deviation or not: the same signs, and tighter bounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import verifier
from verifier.bounds.compute import compute_bounds
from verifier.frontends.torch import trace
from verifier.graph import Builder, Graph
from verifier.ops.linear import Linear
from verifier.ops.movement import take
from verifier.ops.norms import Standardised
from verifier.sets import Box
from verifier.transforms.denominators import multiply_by_deviation
from verifier.transforms.prepare import prepare


class Normed(nn.Module):
    """[1, 3, 6] to the scores of the last token: a nonlinear map, a norm, an affine head."""

    def __init__(self, tokens: slice = slice(-1, None), epsilon: float = 1e-5, rms: bool = False) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 4)
        self.norm = nn.RMSNorm(6, epsilon) if rms else nn.LayerNorm(6, epsilon)
        self.tokens = tokens
        for p in self.parameters():
            nn.init.normal_(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x + torch.tanh(self.first(x))))[:, self.tokens].flatten(1)


def margins(module: nn.Module, minus_label: bool = True) -> Graph:
    """What a query makes of a network: differences to the first score, as [K]."""
    graph = trace(module.eval(), torch.zeros(1, 3, 6)).graph(torch.float64)
    builder = Builder()
    placed = builder.embed(graph, {graph.inputs[0]: builder.input("x", (1, 3, 6))})
    scores = take(builder, placed[graph.outputs[0]], lambda t: t.flatten())
    weight = -torch.eye(builder.shape(scores)[0], dtype=torch.float64)
    weight[:, 0] += float(minus_label)
    weight = torch.cat([weight[1:], torch.zeros(1, weight.shape[1])])
    shift = torch.zeros(len(weight), dtype=torch.float64)
    shift[-1] = -1.0  # an atom that always holds
    return builder.graph(builder.add(Linear(weight, shift), scores))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("rms", [False, True])
def test_signs_stay_and_bounds_do_not_depend_on_the_deviation(rms):
    before = margins(Normed(rms=rms))
    after = multiply_by_deviation(before)
    assert not any(isinstance(n.op, Standardised) for n in after.nodes)
    x = torch.randn(400, 1, 3, 6, dtype=torch.float64)
    plain, scaled = before.evaluate([x])[0], after.evaluate([x])[0]
    assert torch.equal(plain.sign(), scaled.sign())
    ratios = scaled / plain  # one deviation for all margins of an input
    torch.testing.assert_close(ratios, ratios[:, -1:].expand_as(ratios))

    box = Box.around(x[:40], 0.3)
    bound, other = (compute_bounds(prepare(g), [box], "crown").lower for g in (before, after))
    ratio = ratios[:40, :1]
    gap, closer = ((m - b)[:, :-1] for m, b in ((plain[:40], bound), (scaled[:40] / ratio, other / ratio)))
    assert (gap >= 0).all() and (closer >= 0).all()
    assert closer.median() < 0.8 * gap.median()


@pytest.mark.parametrize(
    "module", [Normed(slice(None)), Normed(slice(1, None)), Normed(epsilon=0.0), nn.Flatten()]
)
def test_other_networks_stay_as_they_are(module):
    graph = margins(module)
    assert multiply_by_deviation(graph) is graph


def test_verdicts():
    module = Normed()
    x = torch.randn(50, 3, 6)
    best = module(x).topk(2, 1).values
    x = x[[int((best[:, 0] - best[:, 1]).argmax())]]
    label = int(module(x).argmax())
    model = verifier.trace(module, x)
    holds = verifier.verify(model, verifier.robust(x, label, 0.02), timeout=20)
    fails = verifier.verify(model, verifier.robust(x, label, 3.0), timeout=20)
    assert holds.holds is True and fails.holds is False
