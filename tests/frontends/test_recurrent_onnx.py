"""ONNX's RNN, LSTM and GRU in every form against onnxruntime (or, where it has none, a recurrence in numpy), and the
soundness of their bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from verifier.bounds.alpha import AlphaOptions
from verifier.bounds.compute import compute_bounds
from verifier.errors import UnsupportedError
from verifier.frontends.onnx import OnnxModel, load
from verifier.frontends.replay import check, run
from verifier.ops.repeat import Repeat
from verifier.sets import Box
from verifier.transforms.prepare import prepare

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
TIME, FEATURES, UNITS = 4, 3, 4


@dataclass(frozen=True)
class Form:
    """One layer. `first`: with initial states, constant or as inputs; `outputs` may leave some out (\"\")."""

    op: str
    attributes: dict[str, Any] = field(default_factory=dict)
    batch: int = 1
    lengths: tuple[int, ...] | None = None
    bias: bool = True
    first: str = ""
    peepholes: bool = False
    outputs: tuple[str, ...] = ("y", "h", "c")
    opset: int = 17

    def __str__(self) -> str:
        parts = [f"{k}={v}" for k, v in self.attributes.items()]
        for name in ("batch", "lengths", "first", "peepholes", "outputs"):
            if getattr(self, name) != Form.__dataclass_fields__[name].default:
                parts.append(f"{name}={getattr(self, name)}")
        return (
            "-".join([self.op, *parts, *([] if self.bias else ["plain"])]).replace(" ", "").replace("'", "")
        )

    @property
    def directions(self) -> int:
        return 2 if self.attributes.get("direction") == "bidirectional" else 1

    def constants(self) -> dict[str, np.ndarray]:
        random = np.random.default_rng(len(str(self)))
        rows, many = GATES[self.op] * UNITS, self.directions

        def normal(*shape: int) -> np.ndarray:
            return random.standard_normal(shape).astype(np.float32)

        found = {"W": normal(many, rows, FEATURES), "R": normal(many, rows, UNITS)}
        if self.bias:
            found["B"] = normal(many, 2 * rows)
        if self.lengths is not None:
            found["L"] = np.array(self.lengths, dtype=np.int32)
        if self.first == "constant":
            for k in range(1 + (self.op == "LSTM")):
                found[f"s{k}"] = normal(*self.state)
        if self.peepholes:
            found["P"] = normal(many, 3 * UNITS)
        return found

    @property
    def state(self) -> tuple[int, ...]:
        shape = (self.directions, self.batch, UNITS)
        return (shape[1], shape[0], UNITS) if self.attributes.get("layout") else shape

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, TIME, FEATURES) if self.attributes.get("layout") else (TIME, self.batch, FEATURES)

    def model(self) -> bytes:
        constants = self.constants()
        inputs = {"x": self.shape}
        if self.first == "variable":
            inputs |= {f"s{k}": self.state for k in range(1 + (self.op == "LSTM"))}
        known = constants.keys() | inputs.keys()
        names = [n if n in known else "" for n in ("x", "W", "R", "B", "L", "s0", "s1", "P")]
        while not names[-1]:
            names.pop()
        outputs = self.outputs[: 3 if self.op == "LSTM" else 2]
        node = helper.make_node(self.op, names, outputs, name="cell", hidden_size=UNITS, **self.attributes)
        graph = helper.make_graph(
            [node],
            "layer",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs if o],
            [numpy_helper.from_array(a, n) for n, a in constants.items()],
        )
        opset = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


EVERY = ("RNN", "GRU", "LSTM")
FORMS = [
    *[
        Form(op, {"direction": d}, first=f)
        for op in EVERY
        for d in ("reverse", "bidirectional")
        for f in ("constant", "")
    ],
    *[Form(op, {"direction": "forward"}, batch=2, bias=False, first="variable") for op in EVERY],
    *[
        Form(op, {"direction": d}, batch=4, lengths=(2, 4, 0, 3), first=f)
        for op in EVERY
        for d in ("forward", "reverse", "bidirectional")
        for f in ("", "constant")
    ],
    *[Form(op, {"direction": "reverse"}, lengths=(3,)) for op in EVERY],
    *[Form(op, outputs=("", "h", "c")) for op in EVERY],
    *[Form(op, outputs=("y",)) for op in EVERY],
    Form("LSTM", {"direction": "bidirectional"}, outputs=("", "", "c")),
    *[Form(op, {"clip": c}) for op in EVERY for c in (0.3, 1.5)],
    *[
        Form("GRU", {"linear_before_reset": 1, "direction": d}, bias=b)
        for d in ("forward", "bidirectional")
        for b in (True, False)
    ],
    Form("GRU", {"linear_before_reset": 1, "clip": 0.5}),
    Form("LSTM", peepholes=True),
    Form("LSTM", {"direction": "bidirectional"}, peepholes=True, first="constant", bias=False),
    Form("LSTM", {"clip": 0.5}, peepholes=True),
    Form("LSTM", {"input_forget": 1}),
    Form("LSTM", {"input_forget": 1, "direction": "reverse"}, peepholes=True),
    Form("RNN", {"activations": ["Relu"]}),
    Form("RNN", {"activations": ["LeakyRelu", "Elu"], "activation_alpha": [0.2, 0.7], "direction": "bidirectional"}),
    Form("RNN", {"activations": ["Tanh", "LeakyRelu"], "activation_alpha": [0.3], "direction": "bidirectional"}),
    Form("RNN", {"activations": ["LeakyRelu"]}),
    Form("RNN", {"activations": ["Softsign"]}),
    Form("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.25]}),
    Form("RNN", {"activations": ["ScaledTanh"], "activation_alpha": [1.5], "activation_beta": [0.5]}),
    Form("GRU", {"activations": ["HardSigmoid", "Softsign"], "activation_alpha": [0.3], "activation_beta": [0.4]}),
    Form("GRU", {"activations": ["HardSigmoid", "Softplus"]}),
    Form("LSTM", {"activations": ["HardSigmoid", "Relu", "Tanh"], "activation_alpha": [0.25]}),
    Form("LSTM", {"activations": ["sigmoid", "TANH", "Tanh"]}),
    *[Form(op, opset=7) for op in EVERY],
]  # fmt: skip


def points(model: OnnxModel, count: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.standard_normal((count, *s)).astype(np.float32) for s in model.input_shapes]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_agrees_with_onnxruntime(form: Form) -> None:
    model = load(form.model())
    check(model)
    at = points(model, 5)
    ours = model.graph.evaluate([torch.from_numpy(x).double() for x in at])
    for value, other in zip(ours, run(model, at), strict=True):
        assert tuple(value.shape) == other.shape
        assert np.abs(value.numpy() - other).max() <= 2e-5


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def by_hand(form: Form, x: np.ndarray) -> list[np.ndarray]:
    """Y [batch, time, directions, units] and the last states [batch, directions, units] of a plain layer."""
    constants = {k: v.astype(np.float64) for k, v in form.constants().items()}
    results, lasts = [], []
    for d in range(form.directions):
        backwards = d == 1 or form.attributes.get("direction") == "reverse"
        w, r = constants["W"][d], constants["R"][d]
        wb, rb = np.split(constants["B"][d], 2)
        h, c = (constants[n][:, d] if n in constants else np.zeros((form.batch, UNITS)) for n in ("s0", "s1"))
        emitted = [h] * TIME
        for t in reversed(range(TIME)) if backwards else range(TIME):
            a, b = x[:, t] @ w.T + wb, h @ r.T + rb
            if form.op == "RNN":
                h = np.tanh(a + b)
            elif form.op == "LSTM":
                i, o, f, g = np.split(a + b, 4, axis=1)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
            else:
                z, r_, n = np.split(a, 3, axis=1)
                hz, hr, _ = np.split(b, 3, axis=1)
                z, gate = sigmoid(z + hz), sigmoid(r_ + hr)
                n = np.tanh(n + (gate * h) @ r[2 * UNITS :].T + rb[2 * UNITS :])
                h = (1 - z) * n + z * h
            emitted[t] = h
        results.append(np.stack(emitted, 1))
        lasts.append([h, c])
    states = 2 if form.op == "LSTM" else 1
    return [np.stack(results, 2), *[np.stack([last[k] for last in lasts], 1) for k in range(states)]]


@pytest.mark.parametrize("op", EVERY)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_batch_first(op: str, direction: str) -> None:
    """onnxruntime has no layout 1."""
    form = Form(op, {"direction": direction, "layout": 1}, batch=2, first="constant")
    model = load(form.model())
    (x,) = points(model, 3)
    ours = model.graph.evaluate([torch.from_numpy(x).double()])
    for n in range(len(x)):
        for value, other in zip(ours, by_hand(form, x[n].astype(np.float64)), strict=True):
            assert tuple(value.shape[1:]) == other.shape
            assert np.abs(value[n].numpy() - other).max() <= 1e-9


def test_a_layer_is_one_loop_per_direction() -> None:
    graph = load(Form("LSTM", {"direction": "bidirectional"}).model()).graph
    bodies = {id(n.op.body) for n in graph.nodes if isinstance(n.op, Repeat)}
    assert len(bodies) == 2
    assert all(n.op.trips == TIME for n in graph.nodes if isinstance(n.op, Repeat))


SOUND = [
    Form("RNN"),
    Form("LSTM"),
    Form("GRU", outputs=("", "h")),
    Form("GRU", {"linear_before_reset": 1}, outputs=("", "h")),
    Form("LSTM", {"input_forget": 1, "clip": 0.6}, peepholes=True, first="variable", outputs=("", "h")),
    Form("GRU", {"direction": "reverse"}, batch=2, lengths=(2, 0), first="variable", outputs=("y",)),
]


@pytest.mark.parametrize("form", SOUND, ids=str)
@pytest.mark.parametrize("method", ["interval", "crown", pytest.param("alpha-crown", marks=pytest.mark.full)])
def test_bounds_hold(form: Form, method: str) -> None:
    model = load(form.model())
    centers = [torch.from_numpy(x).double() for x in points(model, 1)]
    sets = [Box.around(x, 0.2) for x in centers]
    graph = prepare(model.graph, centers)
    short = AlphaOptions(iterations=2, intermediate=False)
    bounds = compute_bounds(graph, sets, method, options=short)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(3)
    signs = [
        2 * torch.rand(2000, *c.shape[1:], generator=generator, dtype=torch.float64) - 1 for c in centers
    ]
    signs = [torch.cat([s[:1000], s[1000:].sign()]) for s in signs]
    values = model.graph.evaluate([c + 0.2 * s for c, s in zip(centers, signs, strict=True)])
    for value, box in zip(values, bounds.outputs, strict=True):
        assert box.lower.isfinite().all() and box.upper.isfinite().all()
        assert (value >= box.lower).all() and (value <= box.upper).all()


def test_refusals_say_why() -> None:
    """What is omitted, or clipped to nothing, is another network in every runtime."""
    for attributes, reason in (
        ({"activations": ["ThresholdedRelu"]}, "ThresholdedRelu is not known"),
        ({"activations": ["Nothing"]}, "Nothing is not known"),
        ({"activations": ["Affine"]}, "Affine without activation_alpha"),
        ({"activations": ["ScaledTanh"], "activation_alpha": [2.0]}, "ScaledTanh without activation_beta"),
        ({"clip": 0.0}, "a clip of 0"),
        ({"clip": -1.0}, "a clip of -1"),
    ):
        with pytest.raises(UnsupportedError, match=reason):
            load(Form("RNN", attributes).model())
