"""ONNX's RNN, LSTM and GRU."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from verifier.graph import Builder, Value
from verifier.graph.registry import OnnxNode, Unsupported, onnx_converter, onnx_op
from verifier.ops.arithmetic import scale_shift
from verifier.ops.movement import permute, take
from verifier.ops.recurrent import Activation, Cell, Elman, Gru, Lstm, run
from verifier.ops.select import stack
from verifier.ops.sigmoid import sigmoid, tanh

T = TypeVar("T")
_REVERSED = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
_FIXED: dict[str, Activation] = {"sigmoid": sigmoid, "tanh": tanh}
_NAMES = {
    "relu": "Relu", "leakyrelu": "LeakyRelu", "hardsigmoid": "HardSigmoid", "elu": "Elu", "softsign": "Softsign",
    "softplus": "Softplus",
}  # fmt: skip
_NUMBERS: dict[str, dict[str, float | None]] = {
    "leakyrelu": {"alpha": 0.01},
    "hardsigmoid": {"alpha": 0.2, "beta": 0.5},
    "elu": {"alpha": 1.0},
    "affine": {"alpha": None, "beta": 0.0},
    "scaledtanh": {"alpha": None, "beta": None},
    "thresholdedrelu": {"alpha": 1.0},
}
"""The functions that take numbers from activation_alpha and activation_beta, with what stands for omitted ones; None
where ONNX names no operator to take it from (onnxruntime takes 0)."""


@onnx_op("RNN", note="constant weights and sequence lengths")
def _rnn(builder: Builder, node: OnnxNode) -> list[Value]:
    weights = _Weights(builder, node, "n")
    cells = [
        Elman(*weights.of(k), activations=functions, order="n", clip=_clip(node))
        for k, functions in enumerate(_activations(node, ("Tanh",)))
    ]
    return _layer(builder, node, cells, weights.units)


@onnx_op("LSTM", note="constant weights and sequence lengths")
def _lstm(builder: Builder, node: OnnxNode) -> list[Value]:
    weights = _Weights(builder, node, "iofg")
    seen = node.constant(builder, 7, "P")
    if seen is not None and tuple(seen.shape) != (len(weights.weight), 3 * weights.units):
        raise ValueError(f"Its peepholes have the shape {tuple(seen.shape)}.")
    cells = [
        Lstm(
            *weights.of(k),
            activations=functions,
            order="iofg",
            clip=_clip(node),
            peepholes=None if seen is None else seen[k].view(3, weights.units),
            coupled=bool(node.attributes.get("input_forget", 0)),
        )
        for k, functions in enumerate(_activations(node, ("Sigmoid", "Tanh", "Tanh")))
    ]
    return _layer(builder, node, cells, weights.units)


@onnx_op("GRU", note="constant weights and sequence lengths")
def _gru(builder: Builder, node: OnnxNode) -> list[Value]:
    weights = _Weights(builder, node, "zrn")
    after = bool(node.attributes.get("linear_before_reset", 0))
    cells = [
        Gru(*weights.of(k), activations=functions, order="zrn", clip=_clip(node), reset_after=after)
        for k, functions in enumerate(_activations(node, ("Sigmoid", "Tanh")))
    ]
    return _layer(builder, node, cells, weights.units)


class _Weights:
    """The weights of all directions: W [D, gates * H, I], R [D, gates * H, H] and B [D, 2 * gates * H]."""

    def __init__(self, builder: Builder, node: OnnxNode, gates: str) -> None:
        weight, recurrence = (node.constant(builder, i, name) for i, name in ((1, "W"), (2, "R")))
        if weight is None or recurrence is None:
            raise Unsupported("its weights are missing")
        self.weight, self.recurrence = weight, recurrence
        self.bias = node.constant(builder, 3, "B")
        self.units = recurrence.shape[-1]
        rows = len(gates) * self.units
        directions = len(_reversed(node))
        expected = [(directions, rows, weight.shape[-1]), (directions, rows, self.units)]
        if [tuple(weight.shape), tuple(recurrence.shape)] != expected or (
            self.bias is not None and tuple(self.bias.shape) != (directions, 2 * rows)
        ):
            raise ValueError(
                f"Its weights do not have the shapes of {len(gates)} gates and {self.units} units."
            )

    def of(self, direction: int) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
        bias = None if self.bias is None else self.bias[direction]
        halves = (None, None) if bias is None else tuple(bias.chunk(2))
        return self.weight[direction], self.recurrence[direction], halves  # pyright: ignore[reportReturnType]


def _layer(builder: Builder, node: OnnxNode, cells: Sequence[Cell], units: int) -> list[Value]:
    """Results Y [T, D, B, H], then the last states [D, B, H]; with layout 1, [B, T, D, H] and [B, D, H]."""
    x, batch_first = node.required(0), bool(node.attributes.get("layout", 0))
    if node.attributes.get("hidden_size", units) != units:
        raise ValueError(f"hidden_size is {node.attributes['hidden_size']}, its weights have {units} units.")
    if batch_first:
        x = permute(builder, x, (1, 0, 2))
    batch = builder.shape(x)[1]
    lengths = node.constant(builder, 4, "sequence_lens")
    counts = None if lengths is None else [int(n) for n in lengths.tolist()]
    first = [
        _first(builder, node.input(5 + k), len(cells), batch, units, batch_first)
        for k in range(cells[0].states)
    ]
    results: list[Value] = []
    lasts: list[list[Value]] = []
    for k, (cell, reverse) in enumerate(zip(cells, _reversed(node), strict=True)):
        states = [take(builder, s, lambda t, k=k: t[k]) for s in first]
        result, last = run(builder, cell, x, states, reverse, counts)
        results.append(result)
        lasts.append(last)
    found = [stack(builder, results, 1), *[stack(builder, values) for values in zip(*lasts, strict=True)]]
    if batch_first:
        found = [
            permute(builder, found[0], (2, 0, 1, 3)),
            *[permute(builder, v, (1, 0, 2)) for v in found[1:]],
        ]
    return found


def _first(
    builder: Builder, given: Value | None, directions: int, batch: int, units: int, batch_first: bool
) -> Value:
    """Initial states as [D, B, H], zero where omitted."""
    if given is None:
        return builder.constant(torch.zeros(directions, batch, units, dtype=torch.float64))
    states = permute(builder, given, (1, 0, 2)) if batch_first else given
    if builder.shape(states) != (directions, batch, units):
        raise ValueError(f"Its initial states have shape {builder.shape(given)}.")
    return states


def _reversed(node: OnnxNode) -> tuple[bool, ...]:
    direction = node.attributes.get("direction", "forward")
    if direction not in _REVERSED:
        raise ValueError(f"There is no direction {direction!r}.")
    return _REVERSED[direction]


def _clip(node: OnnxNode) -> float | None:
    """The largest number of float32, and none at all, mean that nothing is clipped. Raises Unsupported where nothing
    is left, of which onnxruntime refuses some and computes others."""
    clip = float(node.attributes.get("clip", torch.inf))
    if clip <= 0:
        raise Unsupported(f"a clip of {clip:g}")
    return clip if clip < torch.finfo(torch.float32).max else None


def _activations(node: OnnxNode, defaults: tuple[str, ...]) -> list[tuple[Activation, ...]]:
    """The functions of each direction. Those that take numbers take them one after the other from the lists."""
    directions = len(_reversed(node))
    names = _list(node, "activations", defaults * directions, str)
    if len(names) != directions * len(defaults):
        raise ValueError(f"It names {len(names)} activations for {directions * len(defaults)} functions.")
    given = {which: iter(_list(node, f"activation_{which}", (), float)) for which in ("alpha", "beta")}
    functions = [_activation(name, node.opset, given) for name in names]
    each = len(defaults)
    return [tuple(functions[k * each : (k + 1) * each]) for k in range(directions)]


def _list(node: OnnxNode, attribute: str, default: Sequence[T], kind: type[T]) -> Sequence[T]:
    given = node.attributes.get(attribute, default)
    if not isinstance(given, Sequence) or not all(isinstance(v, kind) for v in given):
        raise ValueError(f"{attribute} is not a list.")
    return given


def _activation(name: str, opset: int, given: dict[str, Iterator[float]]) -> Activation:
    key = name.lower()
    numbers: dict[str, Any] = {}
    for which, default in _NUMBERS.get(key, {}).items():
        number = next(given[which], default)
        if number is None:
            raise Unsupported(f"the activation {name} without activation_{which}")
        numbers[which] = float(number)
    if key in _FIXED:
        return _FIXED[key]
    if key == "affine":
        return functools.partial(_affine, **numbers)
    if key == "scaledtanh":
        return functools.partial(_scaled_tanh, **numbers)
    if key not in _NAMES:
        raise Unsupported(f"the activation {name} is not known")
    converter = onnx_converter(_NAMES[key])
    if converter is None:  # pragma: no cover - they all are registered
        raise Unsupported(f"the activation {name} is not known")

    def apply(builder: Builder, x: Value) -> Value:
        made = converter(builder, OnnxNode(_NAMES[key], "", (x,), numbers, opset, 1))
        return made if isinstance(made, Value) else made[0]

    return apply


def _affine(builder: Builder, x: Value, alpha: float, beta: float) -> Value:
    return scale_shift(builder, x, scale=alpha, shift=beta)


def _scaled_tanh(builder: Builder, x: Value, alpha: float, beta: float) -> Value:
    return scale_shift(builder, tanh(builder, scale_shift(builder, x, scale=beta)), scale=alpha)
