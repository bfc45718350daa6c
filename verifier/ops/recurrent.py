"""The cells of recurrent layers (RNN, LSTM, GRU), and running one along a sequence.

What enters a cell from the sequence is one matrix product for all rounds; the rest of a round is the body of a
`Repeat`. The functions of the gates are written so that each is read once, by its product: then
`transforms/gates.py` makes one node of both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Value
from verifier.ops.arithmetic import add, negate, scale_shift
from verifier.ops.linear import Linear
from verifier.ops.movement import take
from verifier.ops.near import near
from verifier.ops.piecewise_linear import clip
from verifier.ops.product import multiply
from verifier.ops.repeat import repeat
from verifier.ops.select import concat, flip, pad
from verifier.ops.sigmoid import sigmoid, tanh

Activation = Callable[[Builder, Value], Value]


@dataclass(frozen=True, eq=False)
class Cell(ABC):
    """One round: of x [batch, features] and the states [batch, units] the next states, the first of which is the
    result.

    `weight` [gates * units, features] and `recurrence` [gates * units, size of the first state] hold one block of rows
    per gate, in the order of `order`; `biases` are added to the two products, [gates * units] each or None. `clip`
    bounds the arguments of the gates' functions to [-clip, clip].
    """

    weight: Tensor
    recurrence: Tensor
    biases: tuple[Tensor | None, Tensor | None] = (None, None)
    activations: tuple[Activation, ...] = (sigmoid, tanh, tanh)
    order: str = ""
    clip: float | None = None

    states = 1

    @property
    def units(self) -> int:
        return self.weight.shape[0] // max(len(self.order), 1)

    def project(self, builder: Builder, x: Value) -> Value:
        """What of x [..., features] enters the gates, [..., gates * units]."""
        return builder.add(Linear(self.weight, self.biases[0]), x)

    @abstractmethod
    def step(self, builder: Builder, x: Value, states: Sequence[Value]) -> list[Value]:
        """The next states for what `project` made of x."""

    def limit(self, start: Tensor) -> Tensor | None:
        """What the first state never exceeds in size from `start` [batch, units] on; None where nothing is known."""
        return None

    def _gate(self, builder: Builder, total: Value, gate: str) -> Value:
        """The elements of one gate of [batch, gates * units]."""
        start = self.order.index(gate) * self.units
        return take(builder, total, lambda t: t[..., start : start + self.units])

    def _recurrent(self, builder: Builder, state: Value) -> Value:
        return builder.add(Linear(self.recurrence, self.biases[1]), state)

    def _clipped(self, builder: Builder, x: Value) -> Value:
        return x if self.clip is None else clip(builder, x, -self.clip, self.clip)


@dataclass(frozen=True, eq=False)
class Elman(Cell):
    """h' = f(W x + R h)."""

    def step(self, builder: Builder, x: Value, states: Sequence[Value]) -> list[Value]:
        total = add(builder, x, self._recurrent(builder, states[0]))
        return [self.activations[0](builder, self._clipped(builder, total))]


@dataclass(frozen=True, eq=False)
class Lstm(Cell):
    """c' = f(F) c + f(I) g(G), h' = f(O) h(c'); gates i, o, f, g, each W x + R h.

    `peepholes` [3, units], of i, o and f, times c (c' for o) is added to the gates' arguments. `coupled`: the forget
    gate is 1 - f(I). `projection` [size, units]: the result is that matrix times h'.
    """

    peepholes: Tensor | None = None
    coupled: bool = False
    projection: Tensor | None = None

    states = 2

    def step(self, builder: Builder, x: Value, states: Sequence[Value]) -> list[Value]:
        f, g, h = self.activations
        state, cell = states
        total = add(builder, x, self._recurrent(builder, state))

        def gate(name: str, seen: Value) -> Value:
            value = self._gate(builder, total, name)
            if self.peepholes is not None and name in "iof":
                weight = self.peepholes["iof".index(name)]
                value = add(builder, value, scale_shift(builder, seen, scale=weight))
            return self._clipped(builder, value)

        enter = gate("i", cell)
        keep = _complement(builder, f, enter) if self.coupled else f(builder, gate("f", cell))
        entering = multiply(builder, f(builder, enter), g(builder, gate("g", cell)))
        cell = add(builder, multiply(builder, keep, cell), entering)
        out = multiply(builder, f(builder, gate("o", cell)), h(builder, cell))
        return [out if self.projection is None else builder.add(Linear(self.projection), out), cell]


@dataclass(frozen=True, eq=False)
class Gru(Cell):
    """h' = (1 - f(Z)) n + f(Z) h with n = g(N); gates z and r (in any order), then n; each W x + R h, but
    N = W x + R (f(r) h), or W x + f(r) (R h) where `reset_after`."""

    activations: tuple[Activation, ...] = (sigmoid, tanh)
    reset_after: bool = True

    def step(self, builder: Builder, x: Value, states: Sequence[Value]) -> list[Value]:
        f, g = self.activations[:2]
        state, both = states[0], 2 * self.units
        total = add(
            builder, take(builder, x, lambda t: t[..., :both]), self._product(builder, state, slice(both))
        )
        update, reset = (self._clipped(builder, self._gate(builder, total, gate)) for gate in "zr")
        last, through = slice(both, None), f(builder, reset)
        if self.reset_after:
            inner = multiply(builder, through, self._product(builder, state, last))
        else:
            inner = self._product(builder, multiply(builder, through, state), last)
        new = g(builder, self._clipped(builder, add(builder, self._gate(builder, x, "n"), inner)))
        kept = multiply(builder, f(builder, update), state)
        return [add(builder, multiply(builder, _complement(builder, f, update), new), kept)]

    def limit(self, start: Tensor) -> Tensor | None:
        """Every state lies between the last one and one of tanh, element by element."""
        return start.abs().clamp(min=1.0) if self.activations[:2] == (sigmoid, tanh) else None

    def _product(self, builder: Builder, x: Value, rows: slice) -> Value:
        """Some rows of the product with the recurrent weights."""
        bias = self.biases[1]
        return builder.add(Linear(self.recurrence[rows], None if bias is None else bias[rows]), x)


def _complement(builder: Builder, f: Activation, x: Value) -> Value:
    """1 - f(x)."""
    if f is sigmoid:
        return sigmoid(builder, negate(builder, x))
    return scale_shift(builder, f(builder, x), scale=-1.0, shift=1.0)


def run(
    builder: Builder,
    cell: Cell,
    x: Value,
    states: Sequence[Value],
    reverse: bool = False,
    lengths: Sequence[int] | None = None,
) -> tuple[Value, list[Value]]:
    """A cell along x [time, batch, features] from `states`: its results of all rounds [time, batch, units], and its
    last states.

    With `lengths`, one for each of the batch, sequence b ends after lengths[b] elements: results behind are zero,
    and so are the last states of an empty one (as in onnxruntime; ONNX does not say).
    `reverse` begins with a sequence's last element; its results stand where their elements do.
    """
    time, batch, _ = builder.shape(x)
    projected = cell.project(builder, x)
    if lengths is None or set(lengths) == {time}:
        return _rounds(builder, cell, projected, states, reverse)
    if len(lengths) != batch or not 0 <= min(lengths) <= max(lengths) <= time:
        raise ValueError(
            f"The sequence lengths {list(lengths)} do not fit {batch} sequences of {time} elements."
        )
    members = torch.tensor(list(lengths))
    results, lasts, order = [], [], []
    for length in sorted(set(lengths)):
        rows = (members == length).nonzero()[:, 0]
        order.append(rows)
        if length == 0:
            results.append(_zeros(builder, time, len(rows), builder.shape(states[0])[-1]))
            lasts.append([_zeros(builder, len(rows), builder.shape(s)[-1]) for s in states])
            continue
        part = take(builder, projected, lambda t, n=length, r=rows: t[:n, r])
        own = [take(builder, s, lambda t, r=rows: t[r]) for s in states]
        emitted, last = _rounds(builder, cell, part, own, reverse)
        results.append(pad(builder, emitted, (0, 0, 0), (time - length, 0, 0)))
        lasts.append(last)
    back = torch.cat(order).argsort()
    joined = [concat(builder, [last[k] for last in lasts], 0) for k in range(len(states))]
    return (
        take(builder, concat(builder, results, 1), lambda t: t[:, back]),
        [take(builder, v, lambda t: t[back]) for v in joined],
    )


def _rounds(
    builder: Builder, cell: Cell, projected: Value, states: Sequence[Value], reverse: bool
) -> tuple[Value, list[Value]]:
    """All elements of `projected` [time, batch, gates * units] in a loop."""
    time, *row = builder.shape(projected)
    body = Builder()
    carried = [body.input(f"state_{k}", builder.shape(s)) for k, s in enumerate(states)]
    after = cell.step(body, body.input("x", tuple(row)), carried)
    start = builder.tensor(states[0])
    limit = None if start is None else cell.limit(start)
    if limit is not None:
        after[0] = near(body, after[0], torch.zeros_like(limit), body.constant(limit))
    sequence = flip(builder, projected) if reverse else projected
    *last, emitted = repeat(builder, body.graph(*after, after[0]), time, len(states), *states, sequence)
    return flip(builder, emitted) if reverse else emitted, last


def _zeros(builder: Builder, *shape: int) -> Value:
    return builder.constant(torch.zeros(shape, dtype=torch.float64))
