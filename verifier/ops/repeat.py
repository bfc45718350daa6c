"""Loops with a fixed trip count, as one node."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.graph import Builder, Graph, Interval, Value
from verifier.graph.composite import intervals
from verifier.graph.op import Op, Shape


@dataclass(frozen=True, eq=False)
class Repeat(Op):
    """`trips` rounds of a body, as in RNN, LSTM, GRU, Scan and Loop.

    The body's inputs are `states` carried values, then `scanned` slices of sequences, then values that are
    the same in every round; its outputs are the states' next values, then what each round emits. The node's
    arguments are the first states, the sequences (each [trips, *slice]) and the constant values. The result
    is body output number `output`: a state's last value, or an emitted value of all rounds stacked, [trips,
    *shape].

    Bound engines treat loops written out (`transforms.write_out`); a body shared by several nodes is written
    once.
    """

    body: Graph
    trips: int
    states: int
    scanned: int
    output: int
    no_derivative = "it is written out first (transforms.write_out)"

    @property
    def stacked(self) -> bool:
        return self.output >= self.states

    def output_shape(self, *shapes: Shape) -> Shape:
        if (
            self.trips < 1
            or not 0 <= self.output < len(self.body.outputs)
            or len(self.body.outputs) < self.states
        ):
            raise ValueError("A loop has at least one round, and one output per state.")
        expected = [self.body.nodes[i].shape for i in self.body.inputs]
        sequences = range(self.states, self.states + self.scanned)
        expected = [(self.trips, *s) if k in sequences else s for k, s in enumerate(expected)]
        if list(shapes) != expected:
            raise ValueError(
                f"The loop's arguments have shapes {list(shapes)}, its body asks for {expected}."
            )
        for k in range(self.states):
            if self.body.nodes[self.body.outputs[k]].shape != expected[k]:
                raise ValueError(f"State {k} of the loop changes its shape from round to round.")
        shape = self.body.nodes[self.body.outputs[self.output]].shape
        return (self.trips, *shape) if self.stacked else shape

    def forward(self, *xs: Tensor) -> Tensor:
        arguments, emitted = list(xs), []
        results: list[Tensor] = []
        for step in range(self.trips):
            results = self.body.evaluate(self._slices(arguments, step))
            arguments[: self.states] = results[: self.states]
            emitted.append(results[self.output])
        return torch.stack(emitted, 1) if self.stacked else results[self.output]

    def interval(self, *xs: Interval) -> Interval:
        lower, upper = [x.lower for x in xs], [x.upper for x in xs]
        emitted: list[Interval] = []
        for step in range(self.trips):
            ends = zip(self._slices(lower, step), self._slices(upper, step), strict=True)
            results = intervals(self.body, [Interval(low, high) for low, high in ends])
            lower[: self.states] = [r.lower for r in results[: self.states]]
            upper[: self.states] = [r.upper for r in results[: self.states]]
            emitted.append(results[self.output])
        if not self.stacked:
            return emitted[-1]
        return Interval(
            torch.stack([e.lower for e in emitted], 1), torch.stack([e.upper for e in emitted], 1)
        )

    def _slices(self, arguments: Sequence[Tensor], step: int) -> list[Tensor]:
        """The body's inputs in one round."""
        sequences = range(self.states, self.states + self.scanned)
        return [x[:, step] if k in sequences else x for k, x in enumerate(arguments)]

    def tensors(self) -> Iterator[Tensor]:
        for node in self.body.nodes:
            yield from node.op.tensors()

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Repeat:
        return dataclasses.replace(self, body=self.body.to(dtype, device))


def repeat(builder: Builder, body: Graph, trips: int, states: int, *arguments: Value) -> list[Value]:
    """One node per output of the body; `arguments` are states, sequences of `trips` slices, and constant
    values, told apart by their shapes. Raises ValueError where they do not fit."""
    expected = [body.nodes[i].shape for i in body.inputs]
    scanned = 0
    for value, shape in list(zip(arguments, expected, strict=True))[states:]:
        if builder.shape(value) != (trips, *shape):
            break
        scanned += 1
    outputs = range(len(body.outputs))
    return [builder.add(Repeat(body, trips, states, scanned, k), *arguments) for k in outputs]
