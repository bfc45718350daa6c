"""The shared recurrences, in both forms, against their equations written out in numpy; single models likewise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from verifier.bounds.compute import compute_bounds
from verifier.bounds.interval import interval_bounds
from verifier.frontends.torch import trace
from verifier.models import LSSL, MLSTM, RWKV4, S4D, GatedAttention, LipschitzRNN, small
from verifier.models.layer import rotated
from verifier.models.lipschitz_rnn import _contraction
from verifier.models.lssl import discretised
from verifier.models.recurrence import bonus_attention, decayed_attention, delta_rule, low_rank_rule
from verifier.sets import Box
from verifier.transforms.prepare import prepare

T, H, K, V = 5, 2, 3, 4


def draw(*sizes: int) -> Tensor:
    return torch.randn(1, *sizes, generator=torch.Generator().manual_seed(sum(sizes)), dtype=torch.float64)


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t[0].numpy() for t in tensors]


PARALLEL = pytest.mark.parametrize("parallel", [False, True])


@PARALLEL
@pytest.mark.parametrize("bonus", [False, True])
def test_decayed_attention(parallel: bool, bonus: bool) -> None:
    q, k, v, g = draw(T, H, K), draw(T, H, K) + 1, draw(T, H, V), -draw(T, H, K).square()
    u = draw(H, K)
    if bonus:
        ours = bonus_attention(q, k, v, g, u[0], parallel)
    else:
        ours = decayed_attention(q, k, v, g, parallel)
    nq, nk, nv, ng, nu = arrays(q, k, v, g, u)
    for h in range(H):
        state = np.zeros((K, V))
        for t in range(T):
            write = np.outer(nk[t, h], nv[t, h])
            before, state = state, np.exp(ng[t, h])[:, None] * state + write
            read = before + nu[h][:, None] * write if bonus else state
            np.testing.assert_allclose(ours[0, t, h], read.T @ nq[t, h], atol=1e-12)


@PARALLEL
@pytest.mark.parametrize("per", [1, 3])
@pytest.mark.parametrize("gated", [False, True])
def test_delta_rule(parallel: bool, per: int, gated: bool) -> None:
    q, k, v = draw(T, H, K), draw(T * per, H, K), draw(T * per, H, V)
    beta, g = draw(T * per, H).sigmoid(), -draw(T, H).square()
    ours = delta_rule(q, k, v, beta, parallel, g if gated else None)
    nq, nk, nv, nb, ng = arrays(q, k, v, beta, g)
    for h in range(H):
        state = np.zeros((K, V))
        for t in range(T):
            state = np.exp(ng[t, h]) * state if gated else state
            for i in range(t * per, (t + 1) * per):
                state = state + nb[i, h] * np.outer(nk[i, h], nv[i, h] - state.T @ nk[i, h])
            np.testing.assert_allclose(ours[0, t, h], state.T @ nq[t, h], atol=1e-12)


@PARALLEL
def test_low_rank_rule(parallel: bool) -> None:
    q, k, v, g = draw(T, H, K), draw(T, H, K) + 1, draw(T, H, V), -draw(T, H, K).square()
    a, b = draw(T, H, K) - 0.5, draw(T, H, K) + 0.5
    ours = low_rank_rule(q, k, v, a, b, g, parallel)
    nq, nk, nv, na, nb, ng = arrays(q, k, v, a, b, g)
    for h in range(H):
        state = np.zeros((K, V))
        for t in range(T):
            read = state.T @ na[t, h]
            state = (
                np.exp(ng[t, h])[:, None] * state + np.outer(nb[t, h], read) + np.outer(nk[t, h], nv[t, h])
            )
            np.testing.assert_allclose(ours[0, t, h], state.T @ nq[t, h], atol=1e-11)


@pytest.mark.parametrize("form", ["recurrent", "parallel"])
def test_mlstm_is_the_same_without_its_stabiliser(form: str) -> None:
    plain, model = MLSTM(8, 2, stabilised=False, form=form).double(), MLSTM(8, 2, form=form).double()
    model.load_state_dict(plain.state_dict())
    x = 3 * draw(T, 8)
    torch.testing.assert_close(model(x), plain(x), atol=1e-4, rtol=1e-4)


def test_rwkv4_is_a_weighted_mean_of_values() -> None:
    model, x = RWKV4(4, form="parallel").double(), draw(T, 4)
    k, v = draw(T, 4), draw(T, 4) + 2
    rate = model.time_decay.exp().detach().numpy()
    nk, nv = arrays(k, v)
    bonus = model.time_first.detach().numpy()
    for form in (model._parallel, model._steps):
        ours = form(k, v).detach()
        a = b = np.zeros(4)
        for t in range(T):
            now = np.exp(bonus + nk[t])
            np.testing.assert_allclose(ours[0, t], (a + now * nv[t]) / (b + now), atol=1e-12)
            a, b = (np.exp(-rate) * old + np.exp(nk[t]) * new for old, new in ((a, nv[t]), (b, 1.0)))
    assert model(x).shape == x.shape


def test_s4d_is_the_complex_recurrence() -> None:
    model, x = S4D(3, 4).double(), draw(T, 3)
    kernel = model.kernel
    dt, c = kernel.log_dt.exp()[:, None], torch.view_as_complex(kernel.C)
    a = torch.complex(-kernel.log_A_real.exp(), kernel.A_imag)
    step, read = (dt * a).exp(), c * ((dt * a).exp() - 1) / a
    state, outputs = torch.zeros_like(step), []
    for u in x[0]:
        state = step * state + u[:, None]
        outputs.append(2 * (read * state).sum(-1).real)
    torch.testing.assert_close(model._steps(x)[0], torch.stack(outputs))
    torch.testing.assert_close(kernel(T)[:, 0], 2 * read.sum(-1).real)


def test_lssl_is_discretised_hippo() -> None:
    """With tiny steps the transition is the identity plus a step of HiPPO-LegS, whose first column is known."""
    transition, control = discretised(4, torch.tensor([1e-6], dtype=torch.float64))
    slope = (transition[0] - torch.eye(4)) / 1e-6
    root = (2 * torch.arange(4.0) + 1).sqrt().double()
    torch.testing.assert_close(slope[:, 0], -torch.cat([root.new_ones(1), root[1:]]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(slope.diagonal(), -torch.arange(1.0, 5.0).double(), atol=1e-4, rtol=1e-4)
    assert slope.triu(1).abs().max() < 1e-6
    torch.testing.assert_close(control[0] / 1e-6, root, atol=1e-4, rtol=1e-4)
    assert isinstance(LSSL(3, 4).transition, Tensor)


def test_the_lipschitz_rnn_is_convex_and_its_matrices_are_contractions() -> None:
    model = LipschitzRNN(4, 6).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 2 * torch.randn_like(p)
        x, y = draw(T, 4), draw(T + 0, 4).flip(1)
        assert (model((x + y) / 2) <= (model(x) + model(y)) / 2 + 1e-12).all()
        for weight in (model.U, model.W, model.V):
            assert torch.linalg.matrix_norm(_contraction(weight), 2) <= 1 + 1e-12


@pytest.mark.parametrize("norm", [True, False])
def test_gated_attention_is_scaled_dot_product_attention(norm: bool) -> None:
    model, x = GatedAttention(8, 2, "headwise", norm, rotary=0).double(), draw(T, 8)
    both = model.q_proj(x).unflatten(-1, (2, 5))
    k, v = (p(x).unflatten(-1, (2, 4)) for p in (model.k_proj, model.v_proj))
    q, gate = both[..., :4], both[..., 4:]
    if norm:
        q, k = model.q_norm(q), model.k_norm(k)
    o = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
    )
    torch.testing.assert_close(model(x), model.o_proj((o.transpose(1, 2) * gate.sigmoid()).flatten(-2)))


def test_products_of_rotated_vectors_depend_on_their_distance() -> None:
    q, k = draw(1, 1, 6).expand(-1, T, -1, -1), draw(1, 1, 6).flip(-1).expand(-1, T, -1, -1)
    products = rotated(q)[0, :, 0] @ rotated(k)[0, :, 0].T
    for lag in range(T):
        along = products.diagonal(lag)
        torch.testing.assert_close(along, along[:1].expand_as(along))
    torch.testing.assert_close(products[0, 0], (q[0, 0, 0] * k[0, 0, 0]).sum())
    turn = torch.polar(torch.ones(3), 10000.0 ** (-torch.arange(3) / 3)).to(torch.complex128)
    first, second = (torch.complex(x[0, 0, 0, :3], x[0, 0, 0, 3:]) for x in (q, k))
    torch.testing.assert_close(
        products[1, 0], (turn * first * second.conj()).sum().real, atol=1e-6, rtol=1e-6
    )


def test_a_mixture_uses_the_two_likeliest_memories_with_shares_of_one() -> None:
    model = small("mixture of memories")
    shares, chosen = model._route(draw(T, 8).float())
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, T))
    assert (chosen.sum(-1) == 2).all() and bool(((shares > 0) == chosen).all())
    logits = model.gate(draw(T, 8).float()).softmax(-1)
    two = logits.topk(2, -1)
    torch.testing.assert_close(shares.gather(-1, two.indices), two.values / two.values.sum(-1, keepdim=True))


def test_a_router_is_decided_in_a_small_box() -> None:
    """The second likeliest memory is not below itself, in bounds and in float32 as well."""

    class Router(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = small("mixture of memories")

        def forward(self, x: Tensor) -> Tensor:
            return self.layer._route(x)[0]

    router, x = Router(), draw(T, 8).float()
    graph = trace(router, x).graph(torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(graph.evaluate([x[None]])[0][0], router(x))
        exact = prepare(trace(router, x).graph(torch.float64))
        (shares,) = compute_bounds(exact, [Box.around(x[None].double(), 1e-4)], "crown").outputs
    assert float((shares.upper - shares.lower).max()) < 1e-3


def test_the_weight_of_an_slstm_stays_away_from_zero() -> None:
    """Else its states, which are divided by it, have no bounds."""
    torch.manual_seed(0)
    x = draw(4, 8)
    graph = prepare(trace(small("sLSTM"), x.float()).graph(torch.float64))
    with torch.no_grad():
        found = interval_bounds(graph, [Box.around(x[None], 0.1).box()])
    assert all(b.lower.isfinite().all() and b.upper.isfinite().all() for b in found.values())
