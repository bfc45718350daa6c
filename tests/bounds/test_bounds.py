"""Every method: sound at sampled and attacked points, ordered by tightness, the same in batches and in
chunks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch import Tensor

from verifier.bounds import crown
from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.backward import PassOptions
from verifier.bounds.compute import compute_bounds
from verifier.bounds.crown import Effort, inner_bounds, specification_bound
from verifier.bounds.forward import forward_bounds
from verifier.bounds.interval import interval_bounds
from verifier.graph import Elementwise
from verifier.graph.coefficients import Dense
from verifier.options import BoundMethod
from verifier.sets import Ball, Box, InputSet, Polytope

METHODS = get_args(BoundMethod)
FEW = AlphaOptions(iterations=8)


def sets_around(x: Tensor) -> dict[str, InputSet]:
    box = Box.around(x, 0.2)
    matrix = torch.randn(len(x), 2, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
    bound = (matrix * x.unsqueeze(1)).sum(2) + 0.05
    return {
        "box": box,
        "l2": Ball.around(x, 0.3, 2),
        "l1": Ball.around(x, 0.4, 1, clip=(-1.0, 1.0)),
        "polytope": Polytope(box, matrix, bound),
    }


def points(batch: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return 0.5 * torch.randn(
        batch, 4, generator=torch.Generator().manual_seed(batch), dtype=torch.float64
    ).to(dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["box", "l2", "l1", "polytope"])
def test_sampled_and_attacked_points_are_inside(lab: SimpleNamespace, kind: str, method: BoundMethod) -> None:
    for seed, (name, activation) in enumerate(lab.activations.items()):
        if kind != "box" and name not in ("relu", "concave", "sign"):
            continue
        graph = lab.network(seed, activation)
        inputs = sets_around(points())[kind]
        # alpha-CROWN optimises every named node on its own
        names = tuple(n.name for n in graph.nodes[-3 if method == "alpha-crown" else 0 :])
        found = compute_bounds(graph, [inputs], method, names, FEW)
        at = lab.inside(inputs, 4000)
        if name != "sign":
            rows = torch.cat([torch.eye(3), -torch.eye(3)]).double()
            at = torch.cat([at, lab.attacked(graph, inputs, rows)], 1)
        if isinstance(inputs, Polytope):  # projections end near the half-spaces: keep what is really inside
            left = (at @ inputs.matrix.mT - inputs.bound.unsqueeze(1)).amax(2) <= 0
            assert left.float().mean() > 0.2
            at = torch.where(left.unsqueeze(2), at, at[:, [int(left.all(0).float().argmax())]])
            assert left.all(0).any()
        values = graph.evaluate([at.flatten(0, 1)], keep=[graph.by_name[name] for name in names])
        for node, value in zip(names, values, strict=True):
            lab.assert_contains(found[node], value.view(*at.shape[:2], *value.shape[1:]))


@pytest.mark.parametrize("name", ["relu", "leaky", "abs", "clip", "prelu", "sign"])
def test_tighter_methods_are_tighter(lab: SimpleNamespace, name: str) -> None:
    for seed in range(3):
        graph = lab.network(seed, lab.activations[name])
        inputs = Box.around(points(), 0.2)
        widths = {}
        for method in METHODS:
            found = compute_bounds(graph, [inputs], method, (), FEW)
            widths[method] = found.upper - found.lower
        slack = 1e-9 * (1 + widths["interval"])
        for method in METHODS:
            assert (widths[method] <= widths["interval"] + slack).all(), method
        assert (widths["alpha-crown"] <= widths["crown"] + slack).all()
        assert widths["alpha-crown"].mean() < (0.999 if name != "sign" else 1.0001) * widths["crown"].mean()
        assert widths["crown"].mean() <= widths["crown-ibp"].mean()


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_instances(lab: SimpleNamespace, method: BoundMethod) -> None:
    graph = lab.network(1, lab.activations["prelu"])
    x = points(5)
    together = compute_bounds(graph, [Box.around(x, 0.1)], method, (), FEW)
    for k in range(5):
        alone = compute_bounds(graph, [Box.around(x[k : k + 1], 0.1)], method, (), FEW)
        assert torch.allclose(together.lower[k], alone.lower[0], rtol=1e-6, atol=1e-8)
        assert torch.allclose(together.upper[k], alone.upper[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["box", "l2", "l1", "polytope"])
def test_one_affine_map_is_exact_by_every_method(lab: SimpleNamespace, kind: str) -> None:
    graph = lab.network(2, sizes=(4, 3))
    inputs = sets_around(points())[kind]
    weight = graph.nodes[graph.outputs[0]].op.weight
    exact = inputs.minimum(weight.unsqueeze(0)) + graph.nodes[graph.outputs[0]].op.bias
    for method in ("forward", "crown-ibp", "crown", "alpha-crown"):
        found = compute_bounds(graph, [inputs], method)
        assert torch.allclose(found.lower, exact, atol=1e-10), method


def test_memory_chunks_do_not_change_bounds(lab: SimpleNamespace) -> None:
    graph = lab.network(3, lab.activations["leaky"])
    inputs = Box.around(points(4), 0.3)
    wide = inner_bounds(graph, [inputs], graph.outputs)
    narrow = inner_bounds(graph, [inputs], graph.outputs, effort=Effort(memory=4000))
    for i in wide:
        assert torch.allclose(wide[i].lower, narrow[i].lower, rtol=1e-12, atol=1e-12)
        assert torch.allclose(wide[i].upper, narrow[i].upper, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_float32_bounds_hold_for_exact_values(
    lab: SimpleNamespace, method: BoundMethod, scale: float
) -> None:
    """Rows of weights scaled by 1e-3 to 1e3 per layer (1e-6 to 1e6 for two), evaluated in float64."""
    for seed in range(4):
        graph = lab.network(seed, lab.activations["leaky"], scale=scale).to(torch.float32)
        exact = graph.to(torch.float64)
        for radius in (0.0, 1e-6, 1e-2):
            inputs = Box.around(points(3, torch.float32), radius)
            names = tuple(n.name for n in graph.nodes[-3 if method == "alpha-crown" else 0 :])
            found = compute_bounds(graph, [inputs], method, names, AlphaOptions(iterations=3))
            at = lab.inside(inputs, 200).double()
            values = exact.evaluate([at.flatten(0, 1)], keep=[graph.by_name[name] for name in names])
            for node, value in zip(names, values, strict=True):
                box = found[node].to(torch.float64)
                assert box.lower.isfinite().all()
                lab.assert_contains(box, value.view(3, 200, *value.shape[1:]))


def test_rounding_errors_matter_in_float32(lab: SimpleNamespace) -> None:
    """Without the error terms, single points would not be enclosed: the test above can fail."""
    violations = 0
    for seed in range(4):
        graph = lab.network(seed, scale=3.0).to(torch.float32)
        exact = graph.to(torch.float64)
        x = points(50, torch.float32)
        bounds = inner_bounds(graph, [Box(x, x)], graph.outputs, effort=Effort(rounding=False))
        rows = Dense(torch.eye(3).unsqueeze(0))
        low = specification_bound(
            graph, [Box(x, x)], graph.outputs[0], rows, bounds, how=PassOptions(rounding=False)
        )
        violations += int((low.minimum(graph, [Box(x, x)]).double() > exact.evaluate([x.double()])[0]).sum())
    assert violations > 0


def test_forward_planes_bound_the_values(lab: SimpleNamespace) -> None:
    for seed, activation in enumerate(lab.activations.values()):
        graph = lab.network(seed, activation)
        inputs = Box.around(points(), 0.2)
        keep = range(1, len(graph.nodes))
        bounds, planes = forward_bounds(graph, [inputs], keep=keep)
        loose = interval_bounds(graph, [inputs.box()])
        at = lab.inside(inputs, 300)
        values = graph.evaluate([at.flatten(0, 1)], keep=keep)
        for i, value in zip(keep, values, strict=True):
            value = value.view(*at.shape[:2], *value.shape[1:])
            plane = planes[i]
            below = torch.einsum("bpn,bnk->bpk", at, plane.lower) + (
                plane.lower_bias - plane.error
            ).unsqueeze(1)
            above = torch.einsum("bpn,bnk->bpk", at, plane.upper) + (
                plane.upper_bias + plane.error
            ).unsqueeze(1)
            assert (value >= below - 1e-12).all() and (value <= above + 1e-12).all()
            assert (plane.error < 1e-10).all()
            assert (bounds[i].lower >= loose[i].lower - 1e-12).all()
            assert (bounds[i].upper <= loose[i].upper + 1e-12).all()


def test_known_enclosures_are_used(lab: SimpleNamespace) -> None:
    graph = lab.network(4)
    inputs = [Box.around(points(), 0.3)]
    hidden = [n.name for n in graph.nodes][graph.nodes[graph.outputs[0]].inputs[0]]
    best = compute_bounds(graph, inputs, "alpha-crown", (hidden,))[hidden]
    known = {graph.by_name[hidden]: best}
    for method in METHODS:
        free = compute_bounds(graph, inputs, method, (hidden,), FEW)
        helped = compute_bounds(graph, inputs, method, (hidden,), FEW, known=known)
        assert (helped[hidden].lower >= best.lower - 1e-9).all()
        assert (helped[hidden].upper <= best.upper + 1e-9).all()
        assert (helped.upper - helped.lower <= free.upper - free.lower + 1e-6).all()
        assert (
            method != "interval"
            or (helped.upper - helped.lower).mean() < 0.9 * (free.upper - free.lower).mean()
        )


def test_names_methods_and_several_outputs(lab: SimpleNamespace) -> None:
    from dataclasses import replace

    graph = lab.network(5)
    inputs = [Box.around(points(), 0.1)]
    with pytest.raises(KeyError, match="no node named 'nowhere'"):
        compute_bounds(graph, inputs, "crown", ("nowhere",))
    with pytest.raises(ValueError, match="Unknown method"):
        compute_bounds(graph, inputs, "magic")  # pyright: ignore[reportArgumentType]
    found = compute_bounds(graph, inputs, "crown", (graph.nodes[2].name,))
    with pytest.raises(KeyError, match="asked for"):
        found[graph.nodes[1].name]
    assert isinstance(found.lower, Tensor)
    both = compute_bounds(replace(graph, outputs=(2, graph.outputs[0])), inputs, "crown")
    assert isinstance(both.lower, tuple) and torch.allclose(both.lower[1], found.lower)
    assert torch.allclose(both.upper[0], found[graph.nodes[2].name].upper)


@pytest.mark.parametrize("seed", range(3))
def test_the_nearer_end_settles_what_both_ends_settle(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """With one end for settled neurons the unsettled ones keep both their ends, and the same ones are unsettled."""
    graph = lab.network(seed, sizes=(4, 40, 40, 40, 3))
    monkeypatch.setattr(crown, "SMALL", 0)
    center = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inputs = Box.around(center, 0.02)
    found = []
    for few in (0.0, 1.0):
        monkeypatch.setattr(crown, "FEW", few)
        found.append(crown.inner_bounds(graph, [inputs], graph.outputs))
    both, nearer = found
    saved = 0
    for i in both:
        open_ = [(b[i].lower < 0) & (b[i].upper > 0) for b in found]
        if not any(isinstance(graph.nodes[k].op, Elementwise) for k in graph.users[i]):
            continue
        assert torch.equal(*open_)
        assert torch.allclose(both[i].lower[open_[0]], nearer[i].lower[open_[0]])
        assert torch.allclose(both[i].upper[open_[0]], nearer[i].upper[open_[0]])
        saved += int(
            (nearer[i].upper > both[i].upper + 1e-9).sum() + (nearer[i].lower < both[i].lower - 1e-9).sum()
        )
    assert saved > 0
