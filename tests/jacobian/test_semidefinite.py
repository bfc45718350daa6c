"""Semidefinite, layer-wise and product bounds: against sampled Jacobians, a programme written down another way, known
constants, and proposals that are wrong."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from verifier.jacobian import chain as chains
from verifier.jacobian import semidefinite
from verifier.jacobian.chain import Chain, ChainError, Layer, Matrix, dense, group_sort, householder, slopes
from verifier.jacobian.semidefinite import _Front
from verifier.jacobian.steps import Ellipsoid
from verifier.jacobian.steps import scaled as as_steps

KINDS = ["relu", "tanh", "sigmoid", "maxmin", "sort3", "householder", "leaky"]


@pytest.fixture
def solver():
    pytest.importorskip("cvxpy", reason="semidefinite programmes need cvxpy (extra sdp)")
    pytest.importorskip("clarabel", reason="semidefinite programmes need Clarabel (extra sdp)")


def activation(kind: str, n: int, rng: torch.Generator):
    """The function [B, n] -> [B, n] and its description."""
    zero, one = torch.zeros(n), torch.ones(n)
    if kind == "relu":
        return torch.relu, slopes(zero, one)
    if kind == "leaky":
        return lambda x: torch.nn.functional.leaky_relu(x, 0.3), slopes(0.3 * one.double(), one)
    if kind == "tanh":
        return torch.tanh, slopes(zero, one)
    if kind == "sigmoid":
        return torch.sigmoid, slopes(zero, one / 4)
    if kind in ("maxmin", "sort3"):
        size = 2 if kind == "maxmin" else 3
        return lambda x: x.unflatten(1, (-1, size)).sort(2).values.flatten(1), group_sort(n, size)
    v = torch.randn(n // 3, 3, generator=rng, dtype=torch.float64)

    def reflect(x: Tensor) -> Tensor:
        parts = x.unflatten(1, (-1, 3))
        along = (parts * v).sum(2, keepdim=True) / (v * v).sum(1, keepdim=True)
        return (parts - 2 * v * along.clamp(max=0)).flatten(1)

    return reflect, householder(v)


def network(kinds: list[str], sizes: list[int], seed: int, residual: bool = False):
    """A random chain and the function that it describes."""
    rng = torch.Generator().manual_seed(seed)

    def random(n: int, m: int) -> Tensor:
        return torch.randn(n, m, generator=rng, dtype=torch.float64) / m**0.5

    layers, functions = [], []
    for kind, m, n in zip(kinds, sizes, sizes[1:], strict=False):
        f, facts = activation(kind, n, rng)
        inner, shift = random(n, m), torch.randn(n, generator=rng, dtype=torch.float64)
        if residual:
            outer, skip = random(n + 1, n), random(n + 1, m)
            layers.append(Layer(Matrix(inner), facts, Matrix(outer), Matrix(skip)))
            functions.append(lambda x, f=f, a=inner, b=shift, h=outer, s=skip: x @ s.T + f(x @ a.T + b) @ h.T)
        else:
            layers.append(Layer(Matrix(inner), facts))
            functions.append(lambda x, f=f, a=inner, b=shift: f(x @ a.T + b))
    last = random(sizes[-1], layers[-1].outputs)

    def forward(x: Tensor) -> Tensor:
        for f in functions:
            x = f(x)
        return x @ last.T

    return Chain(tuple(layers), Matrix(last)), forward


def steepest(forward, inputs: int, norm: float, samples: int = 300, scale: float = 2.0) -> float:
    x = scale * torch.randn(samples, inputs, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    x.requires_grad_(True)
    y = forward(x)
    rows = [torch.autograd.grad(y[:, k].sum(), x, retain_graph=True)[0] for k in range(y.shape[1])]
    return float(torch.linalg.matrix_norm(torch.stack(rows, 1), norm).amax())


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_and_are_ordered(kind: str, norm: float, solver) -> None:
    chain, forward = network([kind, kind], [4, 6, 6, 3], seed=KINDS.index(kind))
    sampled = steepest(forward, 4, norm)
    product = semidefinite.product_of_norms(chain, norm)
    layerwise = semidefinite.layerwise(chain, norm)
    found = semidefinite.bound(chain, norm)
    published = semidefinite.bound(chain, norm, joint=False)
    assert sampled <= found <= published * (1 + 1e-6) and published <= layerwise * (1 + 1e-6)
    assert layerwise <= product
    assert found < 0.98 * product


@pytest.mark.parametrize("kind", KINDS)
def test_residual_layers(kind: str, solver) -> None:
    chain, forward = network([kind], [5, 6, 4], seed=11, residual=True)
    sampled = steepest(forward, 5, 2)
    found, product = semidefinite.bound(chain), semidefinite.product_of_norms(chain)
    assert sampled <= found <= min(product, semidefinite.layerwise(chain)) * (1 + 1e-9)
    assert steepest(forward, 5, 1) <= semidefinite.bound(chain, 1)
    assert steepest(forward, 5, math.inf) <= semidefinite.bound(chain, math.inf)


def test_many_random_chains_without_a_solver() -> None:
    for seed in range(len(KINDS) * 2):
        kinds = [KINDS[(seed + k) % len(KINDS)] for k in range(3)]
        chain, forward = network(kinds, [5, 6, 12, 6, 2], seed)
        for norm in (1, 2, math.inf):
            sampled = steepest(forward, 5, norm, samples=50)
            assert (
                sampled <= semidefinite.layerwise(chain, norm) <= semidefinite.product_of_norms(chain, norm)
            )


def test_one_neuron_is_exact(solver) -> None:
    chain = dense(
        [torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]])], [slopes(torch.zeros(1), torch.ones(1))]
    )
    assert semidefinite.bound(chain) == pytest.approx(10.0, rel=1e-6) and semidefinite.bound(chain) >= 10
    assert semidefinite.bound(chain, math.inf) == pytest.approx(14.0, rel=1e-6)
    assert semidefinite.bound(chain, 1) == pytest.approx(8.0, rel=1e-6)


@pytest.mark.parametrize(
    "facts", [group_sort(2, 2), group_sort(6, 3), householder(torch.tensor([[1.0, 2.0]]))]
)
def test_an_activation_alone_has_constant_one(facts, solver) -> None:
    """MaxMin as two Relus would have the square root of 2."""
    eye = torch.eye(facts.size)
    for joint in (False, True):
        assert semidefinite.bound(dense([eye, eye], [facts]), joint=joint) == pytest.approx(1.0, abs=1e-6)
    assert semidefinite.layerwise(dense([eye, eye], [facts])) == pytest.approx(1.0, abs=1e-6)


def test_sums_that_sorting_keeps_cancel(solver) -> None:
    """max(a, b) + min(a, b) - (a + b) is known to be constant: multipliers of sums have any sign."""
    first = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    chain = dense([first, torch.tensor([[1.0, 1, -1, -1]])], [group_sort(4, 2)])
    assert semidefinite.bound(chain) < 1e-3 and semidefinite.bound(chain, joint=False) < 1e-3
    assert semidefinite.product_of_norms(chain) > 2.8


def test_joint_multipliers_gain_on_those_per_group(solver) -> None:
    chain, forward = network(["maxmin"] * 3, [4, 8, 8, 8, 2], seed=1)
    joint, apart = semidefinite.bound(chain), semidefinite.bound(chain, joint=False)
    assert steepest(forward, 4, 2) <= joint < 0.95 * apart


def lipsdp_neuron(weights: list[Tensor]) -> float:
    """The whole matrix of Fazlyab et al. for Relu at once."""
    import cvxpy as cp
    import numpy as np

    ws = [w.numpy() for w in weights]
    hidden = [w.shape[0] for w in ws[:-1]]
    total, n0 = sum(hidden), ws[0].shape[1]
    a = np.zeros((total, n0 + total))
    row, column = 0, 0
    for w in ws[:-1]:
        a[row : row + w.shape[0], column : column + w.shape[1]] = w
        row, column = row + w.shape[0], column + w.shape[1]
    b = np.hstack([np.zeros((total, n0)), np.eye(total)])
    multiplier, rho = cp.diag(cp.Variable(total, nonneg=True)), cp.Variable()
    m = a.T @ multiplier @ b + b.T @ multiplier @ a - 2 * b.T @ multiplier @ b
    first = np.hstack([np.eye(n0), np.zeros((n0, total))])
    end = np.zeros((ws[-1].shape[0], n0 + total))
    end[:, -hidden[-1] :] = ws[-1]
    m = m - rho * (first.T @ first) + end.T @ end
    problem = cp.Problem(cp.Minimize(rho), [(m + m.T) / 2 << 0])
    problem.solve(solver="CLARABEL")
    return float(rho.value) ** 0.5


@pytest.mark.parametrize("sizes", [[3, 5, 2], [4, 6, 5, 3], [2, 5, 5, 5, 2]])
def test_layer_by_layer_loses_nothing(sizes: list[int], solver) -> None:
    rng = torch.Generator().manual_seed(sum(sizes))
    weights = [torch.randn(n, m, generator=rng, dtype=torch.float64) for m, n in pairwise(sizes)]
    chain = dense(weights, [slopes(torch.zeros(n), torch.ones(n)) for n in sizes[1:-1]])
    assert semidefinite.bound(chain) == pytest.approx(lipsdp_neuron(weights), rel=1e-5)


def test_wrong_proposals_still_give_bounds() -> None:
    """The proof enlarges what a solver might return: too small, negative, not numbers, without symmetry."""
    rng = torch.Generator().manual_seed(3)
    for seed, kind in enumerate(KINDS * 2):
        chain, forward = network([kind, kind], [4, 6, 6, 3], seed)
        sampled = steepest(forward, 4, 2)
        scaled = as_steps(chain)
        for wrong in (0.0, -1.0, 1e-9, 1.0, math.nan):
            proposed = []
            for step in scaled.steps:
                n = step.skip.value.shape[0]
                shape = wrong * torch.randn(n, n, generator=rng, dtype=torch.float64)
                proposed.append(Ellipsoid(shape, wrong * torch.ones(step.groups, dtype=torch.float64)))
            found = semidefinite._euclidean(scaled, proposed)
            assert sampled <= found < 1e6


def test_a_proposal_below_the_optimum_is_not_believed(solver) -> None:
    from verifier.jacobian.programme import ellipsoids

    chain, _ = network(["relu", "maxmin"], [4, 6, 6, 3], seed=5)
    scaled = as_steps(chain)
    proposed = ellipsoids(scaled, True)
    assert proposed is not None
    best = semidefinite._euclidean(scaled, proposed)
    for factor in (1 - 1e-6, 0.9, 0.5):
        smaller = [Ellipsoid(e.shape * factor**2, e.radius * factor**2) for e in proposed]
        assert semidefinite._euclidean(scaled, smaller) >= best * (1 - 1e-7)


def test_proofs_hold_where_the_inequality_is_tight() -> None:
    """|W x|^2 <= |W|^2: the last digit counts."""
    for seed in range(20):
        w = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        exact = float(torch.linalg.svdvals(w)[0])
        front = _Front(torch.ones(7, dtype=torch.float64))
        assert exact * (1 - 1e-14) <= front.reach(Matrix(w)) ** 0.5 <= exact * (1 + 1e-10)
        assert exact <= semidefinite.product_of_norms(dense([w], [])) <= exact * (1 + 1e-10)


def test_narrower_slopes_give_smaller_bounds(solver) -> None:
    chain, _ = network(["relu", "relu"], [4, 6, 6, 3], seed=9)
    whole = semidefinite.bound(chain)
    on, off = torch.ones(6), torch.zeros(6)
    half = torch.tensor([1.0, 1, 1, 0, 0, 0])
    local = semidefinite.bound(chain, slopes=[(half, half), None])
    assert local < whole
    fixed = semidefinite.bound(chain, slopes=[(half, half), (on, on)])
    w1, w2 = [layer.inner.value for layer in chain.layers]
    exact = float(torch.linalg.matrix_norm(chain.last.value @ w2 @ (half.double().unsqueeze(1) * w1), 2))
    assert fixed == pytest.approx(exact, rel=1e-6) and fixed >= exact * (1 - 1e-12)
    assert semidefinite.bound(chain, slopes=[(off, off), None]) == pytest.approx(0.0, abs=1e-3)


def test_weights_that_are_known_up_to_a_doubt() -> None:
    w = torch.eye(3, dtype=torch.float64)
    chain = Chain((Layer(Matrix(w, 0.1), slopes(torch.zeros(3), torch.ones(3))),), Matrix(w, 0.1))
    for f in (semidefinite.layerwise, semidefinite.product_of_norms):
        assert f(chain) >= 1.21


def test_errors_say_what_is_wrong() -> None:
    w = torch.eye(4)
    with pytest.raises(ChainError, match="need 1 activations"):
        dense([w, w], [])
    with pytest.raises(ChainError, match="groups of 3"):
        group_sort(4, 3)
    with pytest.raises(ChainError, match="not bounded"):
        slopes(torch.zeros(2), torch.tensor([1.0, math.inf]))
    with pytest.raises(ChainError, match="norm 3"):
        semidefinite.product_of_norms(dense([w], []), 3)
    with pytest.raises(ChainError, match="do not fit"):
        Layer(Matrix(torch.eye(3)), group_sort(4, 2))
    with pytest.raises(ChainError, match="direction that is zero"):
        chains.householder(torch.zeros(1, 2))


def test_deep_wide_chains_need_no_solver() -> None:
    rng = torch.Generator().manual_seed(0)
    weights = [torch.randn(128, 128, generator=rng, dtype=torch.float64) / 128**0.5 for _ in range(10)]
    chain = dense(weights, [slopes(torch.zeros(128), torch.ones(128))] * 9)
    found, product = semidefinite.layerwise(chain), semidefinite.product_of_norms(chain)
    assert found < 0.5 * product
