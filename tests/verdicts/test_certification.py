"""Certified accuracy of data sets: against single verifications, in every norm, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import verifier
from verifier import Options, Status, VerifierError, training
from verifier.certification import (
    METHODS,
    Certification,
    Verdict,
    certify,
    lower_bounds,
    margin_rows,
)
from verifier.errors import OptionsError
from verifier.frontends.onnx import load
from verifier.sets import Ball, Box

DATA = Path(__file__).parent.parent / "data"
EPS = 0.1


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    loaded = np.load(DATA / "digits_test.npz")
    return torch.from_numpy(loaded["images"][:34]), torch.from_numpy(loaded["labels"][:34])


@pytest.fixture(scope="module")
def found(digits: tuple[Tensor, Tensor]) -> Certification:
    batches = zip(*(t.split(16) for t in digits), strict=True)
    return certify(DATA / "digits_mlp.onnx", batches, EPS, clip=(0.0, 1.0), options=Options(timeout=20.0))


def test_every_sample_is_judged_as_alone(found: Certification, digits: tuple[Tensor, Tensor]) -> None:
    wanted = {Status.UNSAT: Verdict.CERTIFIED, Status.SAT: Verdict.FALSIFIED}
    kinds = {s.verdict for s in found.samples}
    assert {Verdict.CERTIFIED, Verdict.FALSIFIED, Verdict.MISCLASSIFIED} <= kinds
    chosen = [s for s in found.samples if s.verdict in (Verdict.CERTIFIED, Verdict.FALSIFIED)][:12]
    for sample in chosen:
        claim = verifier.robust(digits[0][sample.index], sample.label, EPS, (0.0, 1.0))
        alone = verifier.verify(DATA / "digits_mlp.onnx", claim, timeout=20.0)
        assert wanted[alone.status] is sample.verdict
    assert [s.index for s in found.samples] == list(range(34))
    assert [s.label for s in found.samples] == digits[1].tolist()


def test_accuracies_are_in_order(found: Certification) -> None:
    certified = [found.certified(m) for m in METHODS]
    assert certified == sorted(certified) and certified[-1] <= found.attacked <= found.clean < 1
    assert certified[1] < certified[-1]
    table = found.rows()[1]
    assert [row[0] for row in table] == ["clean", "attacked", *METHODS]
    assert '"verdict": "falsified"' in found.to_json()


def test_the_budget_goes_to_the_largest_margins(found: Certification, digits: tuple[Tensor, Tensor]) -> None:
    """And without one nothing is searched; every sample is told once, when it is settled."""
    told: list[int] = []
    words = {"clip": (0.0, 1.0), "progress": lambda sample: told.append(sample.index)}
    plain = certify(DATA / "digits_mlp.onnx", [digits], EPS, **words, methods=METHODS[:3])
    assert told == list(range(34))
    told.clear()
    none = certify(DATA / "digits_mlp.onnx", [digits], EPS, **words, budget=0.0)
    assert none.certified() == plain.certified() < found.certified() and none.attacked == plain.attacked
    left = [s for s in plain.samples if s.verdict is Verdict.OPEN]
    assert len(left) > 1 and sorted(told) == list(range(34))
    assert told[-len(left) :] == [s.index for s in sorted(left, key=lambda s: -(s.margin or 0.0))]


@pytest.mark.parametrize("norm", ["2", "1"])
def test_balls(norm: str, digits: tuple[Tensor, Tensor]) -> None:
    model, radius = DATA / "digits_mlp.onnx", {"2": 0.4, "1": 1.0}[norm]
    result = certify(model, [digits], radius, norm, options=Options(seed=1))  # pyright: ignore[reportArgumentType]
    assert result.methods == METHODS[:3] and 0 < result.certified() <= result.attacked
    graph = load(model).graph.to(torch.float64)
    held = [s.index for s in result.samples if s.verdict is Verdict.CERTIFIED]
    steps = torch.randn((500, len(held), 64), generator=torch.Generator().manual_seed(0)).double()
    points = digits[0][held].double() + radius * steps / torch.linalg.vector_norm(
        steps, float(norm), 2, keepdim=True
    )
    scores = graph.evaluate([points.view(-1, *graph.nodes[graph.inputs[0]].shape)])[0].view(
        500, len(held), -1
    )
    assert bool((scores.argmax(2) == digits[1][held]).all())


@pytest.mark.parametrize("method", METHODS[:3])
def test_bounds_hold(method: str) -> None:
    """Of margins, whichever the method."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))
    graph = verifier.trace(module, torch.zeros(1, 6)).graph()
    x, labels = torch.randn(3, 1, 6), torch.tensor([0, 3, 1])
    rows = margin_rows(labels, 4)
    assert rows.sum(2).abs().max() == 0 and rows.shape == (3, 3, 4)
    for sets in (Box.around(x, 0.1), Ball.around(x, 0.3, 2)):
        lower = lower_bounds(graph, sets, rows, method)  # pyright: ignore[reportArgumentType]
        points = sets.project(x.unsqueeze(1) + 0.2 * torch.randn(3, 400, 1, 6))
        scores = graph.evaluate([points.flatten(0, 1)])[0].view(3, 400, 4)
        assert bool((torch.einsum("brk,bsk->bsr", rows, scores) >= lower.unsqueeze(1) - 1e-6).all())


def test_intervals_bound_the_margins_and_not_the_scores() -> None:
    """The affine end of the network and the margins are one map, as in a loss of intervals; rounding apart."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 8), nn.Linear(8, 4))
    x, labels = torch.rand(5, 1, 5, 5), torch.tensor([0, 3, 1, 2, 2])
    net = training.trace(module, x)
    task = training.Task(net, x, labels, 0.05, training.Linf())
    wanted = task.margins(task.enclosures).lower
    graph, rows = verifier.trace(module, x).graph(), margin_rows(labels, 4)
    found = lower_bounds(graph, Box.around(x.unsqueeze(1), 0.05), rows, "interval")
    assert bool((found <= wanted + 1e-6).all()) and torch.allclose(found, wanted, atol=1e-4)
    least, most = (t.flatten(1).unsqueeze(2) for t in task.enclosures[task.graph.outputs[0]])
    apart = rows.clamp(min=0) @ least + rows.clamp(max=0) @ most
    assert bool((found > apart.squeeze(2)).all())


def test_infinite_intervals_are_no_bounds() -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(200 * x) @ torch.eye(3)

    found = certify(verifier.trace(Steep(), torch.rand(1, 3)), [(torch.eye(3), torch.arange(3))], 1.0)
    assert found.certified() == 0.0


def test_what_does_not_fit_is_refused(digits: tuple[Tensor, Tensor]) -> None:
    model, (x, y) = DATA / "digits_mlp.onnx", digits
    for data, words in (
        ([(x[:, :60], y)], "samples have shape"),
        ([((x * 16).to(torch.uint8), y)], "real numbers"),
        ([(x, y + 10)], "labels must be from 0 to 9"),
        ([(x, y[:3])], "a batch is"),
        ([], "no samples"),
    ):
        with pytest.raises(VerifierError, match=words):
            certify(model, data, 0.01)
    with pytest.raises(OptionsError, match="eps"):
        certify(model, [digits], -1.0)
    with pytest.raises(OptionsError, match="methods"):
        certify(model, [digits], 0.1, methods=["best"])  # pyright: ignore[reportArgumentType]


def test_memory_that_runs_out_halves_the_batch(
    monkeypatch: pytest.MonkeyPatch, digits: tuple[Tensor, Tensor]
) -> None:
    from verifier import certification

    honest, sizes = certification.lower_bounds, []

    def small(graph: object, sets: Box, *rest: object) -> Tensor:
        sizes.append(sets.batch)
        if sets.batch > 3:
            raise MemoryError
        return honest(graph, sets, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(certification, "lower_bounds", small)
    got = certify(DATA / "digits_mlp.onnx", [(digits[0][:8], digits[1][:8])], 0.01, methods=["crown"])
    assert max(sizes) > 3 and [s.index for s in got.samples] == list(range(8)) and got.certified() > 0.8
