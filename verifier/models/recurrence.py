"""The recurrences that the models share, step by step and in parallel.

Parallel means without a state: what a token writes reaches a later one through the decay between them, which is
one exp of a sum of log-decays (an affine function of them), however far the two are apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.models.layer import length


def scan(writes: Tensor, log_decay: Tensor, decay: Tensor | None = None) -> Tensor:
    """h_t = a_t h_(t-1) + w_t from h_0 = 0, stacked [B, T, ...], for w [B, T, ...] and log a that broadcasts.

    `decay` is a where it is known otherwise than as exp of its logarithm.
    """
    steps = (log_decay.exp() if decay is None else decay).unbind(1)
    state, states = None, []
    for a, w in zip(steps, writes.unbind(1), strict=True):
        state = w if state is None else a * state + w
        states.append(state)
    return torch.stack(states, 1)


def spans(steps: int, offset: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs t >= s + offset, sorted by t, of `steps` tokens: t [P], s [P], and [P, T], which sums what comes
    after s, up to t - offset."""
    late, early = torch.tril_indices(steps, steps, -offset)
    times = torch.arange(steps)
    inside = (times > early[:, None]) & (times <= late[:, None] - offset)
    return late, early, inside.to(torch.get_default_dtype())


def decay_between(log_decay: Tensor, sums: Tensor) -> Tensor:
    """exp of sums over time: [B, T, ...] by [P, T] to [B, P, ...]."""
    tail = log_decay.shape[2:]
    return (sums.to(log_decay) @ log_decay.flatten(2)).exp().unflatten(2, tail)


def decayed_sum(writes: Tensor, log_decay: Tensor) -> Tensor:
    """`scan` in parallel form; both [B, T, ...] with axes that broadcast, at least one."""
    steps = length(writes)
    late, early, sums = spans(steps)
    terms = decay_between(log_decay, sums) * writes[:, early]
    return _collected(terms, late, steps)


def _collected(terms: Tensor, late: Tensor, steps: int) -> Tensor:
    """Terms [B, P, ...] summed up at their later token: [B, T, ...]."""
    at = (torch.arange(steps)[:, None] == late).to(terms)
    return (at @ terms.flatten(2)).unflatten(2, terms.shape[2:])


def decayed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    parallel: bool,
    decay: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """o_t = S_t^T q_t with S_t = diag(a_t) S_(t-1) + k_t v_t^T.

    q, k and log a are [B, T, H, K], v and o [B, T, H, V]; axes of 1 broadcast. In parallel, at most `chunk` tokens
    at once: between chunks goes the state, with one decay for all of a chunk.
    """
    if not parallel:
        writes = k[..., None] * v[..., None, :]
        states = scan(writes, log_decay[..., None], None if decay is None else decay[..., None])
        return (q[..., None] * states).sum(-2)
    steps = length(v)
    size = steps if chunk is None else chunk
    state: Tensor | None = None
    outputs = []
    for start in range(0, steps, size):
        parts = [x[:, start : start + size] for x in (q, k, v, log_decay)]
        if state is not None:
            since = parts[0] * decay_between(parts[3], torch.ones(length(parts[2]), length(parts[2])).tril())
            outputs.append(_within_chunk(*parts) + (since[..., None] * state[:, None]).sum(-2))
        else:
            outputs.append(_within_chunk(*parts))
        if start + size < steps:
            state = _state_after(parts[1], parts[2], parts[3], state)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def _within_chunk(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """What a chunk's tokens read of each other."""
    steps = length(v)
    late, early, sums = spans(steps)
    scores = q[:, late] * k[:, early] * decay_between(log_decay, sums)
    return _collected(scores.sum(-1, keepdim=True) * v[:, early], late, steps)


def _state_after(k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> Tensor:
    """The state [B, H, K, V] after a chunk, from the one before (None for 0)."""
    ones = torch.ones(length(v), length(v))
    written = k * decay_between(log_decay, ones.triu(1))
    after = (written[..., None] * v[..., None, :]).sum(1)
    if state is None:
        return after
    return decay_between(log_decay, ones[:1])[:, 0, ..., None] * state + after


def bonus_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, parallel: bool
) -> Tensor:
    """o_t = (S_(t-1) + diag(u) k_t v_t^T)^T q_t, with S as in `decayed_attention` and a bonus u [H, K]."""
    now = (q * bonus * k).sum(-1, keepdim=True) * v
    if length(v) == 1:
        return now
    if not parallel:
        writes = k[..., None] * v[..., None, :]
        states = scan(writes, log_decay[..., None])[:, :-1]
        before = (q[:, 1:, ..., None] * states).sum(-2)
        return torch.cat([now[:, :1], now[:, 1:] + before], 1)
    steps = length(v)
    late, early, sums = spans(steps, 1)
    scores = q[:, late] * k[:, early] * decay_between(log_decay, sums)
    return now + _collected(scores.sum(-1, keepdim=True) * v[:, early], late, steps)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, parallel: bool, log_decay: Tensor | None = None
) -> Tensor:
    """o_t = S_t^T q_t, where each token decays S and then makes n corrections S += beta k (v - S^T k)^T.

    q [B, T, H, K], k [B, T * n, H, K], v [B, T * n, H, V], beta [B, T * n, H], log a [B, T, H] or None for 1;
    o [B, T, H, V]. In parallel, corrections u_i = beta_i (v_i - sum over j < i of a_ji (k_i . k_j) u_j) are
    found one after the other from products of keys.
    """
    tokens, corrections = length(q), length(k)
    per = corrections // tokens
    if not parallel:
        return _delta_steps(q, k, v, beta, log_decay, per)
    late, early, _ = spans(corrections, 1)
    _, _, sums = spans(tokens)
    keys = (k[:, late] * k[:, early]).sum(-1) * beta[:, late]
    last, first, _ = spans(tokens)
    reads = (q[:, last, None] * k.unflatten(1, (tokens, per))[:, first]).sum(-1)  # [B, P, n, H]
    if log_decay is not None:
        between = decay_between(log_decay, sums)
        ends, starts = late // per, early // per
        keys = keys * between[:, ends * (ends + 1) // 2 + starts]
        reads = reads * between[:, :, None]
    scaled = beta[..., None] * v
    found = [scaled[:, 0]]
    for i in range(1, corrections):
        row = keys[:, i * (i - 1) // 2 : i * (i + 1) // 2, :, None]
        found.append(scaled[:, i] - (row * torch.stack(found, 1)).sum(1))
    written = torch.stack(found, 1).unflatten(1, (tokens, per))[:, first]  # [B, P, n, H, V]
    return _collected((reads[..., None] * written).sum(2), last, tokens)


def _delta_steps(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, per: int) -> Tensor:
    decays = None if log_decay is None else log_decay.exp().unbind(1)
    corrections = list(zip(k.unbind(1), v.unbind(1), beta.unbind(1), strict=True))
    state, outputs = None, []
    for t, query in enumerate(q.unbind(1)):
        if state is not None and decays is not None:
            state = decays[t][..., None, None] * state
        for key, value, rate in corrections[t * per : (t + 1) * per]:
            state = corrected(state, key, value, rate)
        assert state is not None  # a token makes at least one correction
        outputs.append((query[..., None] * state).sum(-2))
    return torch.stack(outputs, 1)


def corrected(state: Tensor | None, key: Tensor, value: Tensor, rate: Tensor) -> Tensor:
    """S + beta k (v - S^T k)^T for S [..., K, V] (None for 0), k [..., K], v [..., V], beta [...]."""
    if state is None:
        return (rate[..., None] * key)[..., None] * value[..., None, :]
    error = value - (key[..., None] * state).sum(-2)
    return state + (rate[..., None] * key)[..., None] * error[..., None, :]


def low_rank_rule(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, parallel: bool
) -> Tensor:
    """o_t = S_t^T q_t with S_t = diag(w_t) S_(t-1) + b_t (a_t^T S_(t-1)) + k_t v_t^T.

    All [B, T, H, K], v and o [B, T, H, V]. In parallel, p_t = S_(t-1)^T a_t are found one after the other.
    """
    if not parallel:
        state, outputs = k[:, 0, ..., None] * v[:, 0, :, None], []
        decay = log_decay.exp()
        for t in range(length(q)):
            if t:
                read = (a[:, t, ..., None] * state).sum(-2, keepdim=True)
                new = k[:, t, ..., None] * v[:, t, :, None]
                state = decay[:, t, ..., None] * state + b[:, t, ..., None] * read + new
            outputs.append((q[:, t, ..., None] * state).sum(-2))
        return torch.stack(outputs, 1)
    steps = length(q)
    late, early, sums = spans(steps, 1)
    before = a[:, late] * decay_between(log_decay, sums)
    through = (before * b[:, early]).sum(-1, keepdim=True)
    direct = (before * k[:, early]).sum(-1, keepdim=True) * v[:, early]
    found = [torch.zeros_like(v[:, 0])]
    for t in range(1, steps):
        row = slice(t * (t - 1) // 2, t * (t + 1) // 2)
        found.append((direct[:, row] + through[:, row] * torch.stack(found, 1)).sum(1))
    reads = torch.stack(found, 1)
    late, early, sums = spans(steps)
    weighted = q[:, late] * decay_between(log_decay, sums)
    old = (weighted * b[:, early]).sum(-1, keepdim=True) * reads[:, early]
    new = (weighted * k[:, early]).sum(-1, keepdim=True) * v[:, early]
    return _collected(old + new, late, steps)
