"""torch's recurrent layers and cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from verifier.graph import Builder, Value
from verifier.graph.registry import Unsupported, aten_op
from verifier.ops.movement import permute, take
from verifier.ops.piecewise_linear import relu
from verifier.ops.recurrent import Cell, Elman, Gru, Lstm, run
from verifier.ops.select import concat, stack
from verifier.ops.sigmoid import tanh

Weights = Sequence["Tensor | None"]
Make = Callable[[Weights], Cell]
"""A cell of W, R, and, where there are any, their biases and a projection."""


def _lstm(weights: Weights) -> Cell:
    return Lstm(*_products(weights), order="ifgo", projection=weights[4])


def _gru(weights: Weights) -> Cell:
    return Gru(*_products(weights), order="rzn")


def _rnn_tanh(weights: Weights) -> Cell:
    return Elman(*_products(weights), order="n", activations=(tanh,))


def _rnn_relu(weights: Weights) -> Cell:
    return Elman(*_products(weights), order="n", activations=(relu,))


def _products(weights: Weights) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
    weight, recurrence = weights[:2]
    if weight is None or recurrence is None:
        raise Unsupported("its weights are missing")
    return weight, recurrence, (weights[2], weights[3])


@aten_op("lstm.input")
def _aten_lstm(
    builder: Builder, x: Value, hx: Sequence[Value], params: Sequence[Value], *form: bool | float
) -> list[Value]:
    return _layers(builder, _lstm, x, hx, params, *form)  # pyright: ignore[reportArgumentType]


@aten_op("gru.input")
def _aten_gru(
    builder: Builder, x: Value, hx: Value, params: Sequence[Value], *form: bool | float
) -> list[Value]:
    return _layers(builder, _gru, x, [hx], params, *form)  # pyright: ignore[reportArgumentType]


@aten_op("rnn_tanh.input")
def _aten_rnn_tanh(
    builder: Builder, x: Value, hx: Value, params: Sequence[Value], *form: bool | float
) -> list[Value]:
    return _layers(builder, _rnn_tanh, x, [hx], params, *form)  # pyright: ignore[reportArgumentType]


@aten_op("rnn_relu.input")
def _aten_rnn_relu(
    builder: Builder, x: Value, hx: Value, params: Sequence[Value], *form: bool | float
) -> list[Value]:
    return _layers(builder, _rnn_relu, x, [hx], params, *form)  # pyright: ignore[reportArgumentType]


@aten_op("lstm_cell.default")
def _aten_lstm_cell(builder: Builder, x: Value, hx: Sequence[Value], *weights: Value | None) -> list[Value]:
    return _once(builder, _lstm, x, hx, weights)


@aten_op("gru_cell.default")
def _aten_gru_cell(builder: Builder, x: Value, hx: Value, *weights: Value | None) -> Value:
    return _once(builder, _gru, x, [hx], weights)[0]


@aten_op("rnn_tanh_cell.default")
def _aten_rnn_tanh_cell(builder: Builder, x: Value, hx: Value, *weights: Value | None) -> Value:
    return _once(builder, _rnn_tanh, x, [hx], weights)[0]


@aten_op("rnn_relu_cell.default")
def _aten_rnn_relu_cell(builder: Builder, x: Value, hx: Value, *weights: Value | None) -> Value:
    return _once(builder, _rnn_relu, x, [hx], weights)[0]


def _once(
    builder: Builder, make: Make, x: Value, states: Sequence[Value], weights: Sequence[Value | None]
) -> list[Value]:
    cell = make([*_constants(builder, weights), *[None] * (5 - len(weights))])
    return cell.step(builder, cell.project(builder, x), states)


def _layers(
    builder: Builder,
    make: Make,
    x: Value,
    states: Sequence[Value],
    params: Sequence[Value],
    *form: bool | float,
) -> list[Value]:
    """The results [time, batch, directions * units] (batch first where asked for), then the last states
    [layers * directions, batch, units]. `form`: whether there are biases, how many layers, dropout, training, two
    directions, batch first."""
    biased, layers, dropout, training, bidirectional, batch_first = form
    if training and dropout > 0:
        raise Unsupported("dropout in training mode")
    directions = 2 if bidirectional else 1
    sets = int(layers) * directions
    weights, each = _constants(builder, params), len(params) // sets
    if batch_first:
        x = permute(builder, x, (1, 0, 2))
    lasts: list[list[Value]] = []
    for layer in range(int(layers)):
        results = []
        for direction in range(directions):
            k = layer * directions + direction
            own = weights[k * each : (k + 1) * each]
            cell = make(_five(own, bool(biased)))
            first = [take(builder, s, lambda t, k=k: t[k]) for s in states]
            result, last = run(builder, cell, x, first, reverse=direction == 1)
            results.append(result)
            lasts.append(last)
        x = concat(builder, results, 2)
    x = permute(builder, x, (1, 0, 2)) if batch_first else x
    return [x, *[stack(builder, values) for values in zip(*lasts, strict=True)]]


def _five(weights: Weights, biased: bool) -> Weights:
    """W, R, two biases and a projection, None for what is not there."""
    rest = list(weights[2:])
    biases = [rest.pop(0), rest.pop(0)] if biased else [None, None]
    return [*weights[:2], *biases, *rest, *[None] * (1 - len(rest))]


def _constants(builder: Builder, values: Sequence[Value | None]) -> list[Tensor | None]:
    tensors = [None if v is None else builder.tensor(v) for v in values]
    if any(t is None and v is not None for t, v in zip(tensors, values, strict=True)):
        raise Unsupported("weights that depend on the network's input")
    return tensors
