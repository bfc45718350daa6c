"""torch's recurrent layers and cells: values, bounds, and the same networks through ONNX."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from verifier.bounds.compute import compute_bounds
from verifier.frontends import onnx
from verifier.frontends.replay import check
from verifier.frontends.torch import trace
from verifier.ops.repeat import Repeat
from verifier.sets import Box
from verifier.transforms.prepare import prepare

TIME, FEATURES, UNITS = 4, 3, 4
HEAD = torch.linspace(-1, 1, UNITS)


class Last(nn.Module):
    """The first result of a layer, and its last states."""

    def __init__(self, layer: nn.Module, states: Tensor | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.states = None if states is None else nn.Parameter(states)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.states is None:
            y, last = self.layer(x)
        else:
            y, last = self.layer(
                x, (self.states, 2 * self.states) if isinstance(self.layer, nn.LSTM) else self.states
            )
        return (y, *last) if isinstance(last, tuple) else (y, last)


class TimeFirst(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1))[0][-1]


class Steps(nn.Module):
    """A cell called in a Python loop."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state[0] if isinstance(state, tuple) else state  # pyright: ignore[reportReturnType]


def layer(kind: type[nn.RNNBase], **form: object) -> nn.RNNBase:
    return kind(FEATURES, UNITS, batch_first=True, **form)  # pyright: ignore[reportArgumentType, reportCallIssue]


MODULES: dict[str, Callable[[], nn.Module]] = {
    "RNN": lambda: Last(layer(nn.RNN)),
    "RNN relu": lambda: Last(layer(nn.RNN, nonlinearity="relu", num_layers=2, dropout=0.5)),
    "LSTM": lambda: Last(layer(nn.LSTM)),
    "LSTM deep": lambda: Last(layer(nn.LSTM, num_layers=2, bidirectional=True, dropout=0.5)),
    "LSTM plain": lambda: Last(layer(nn.LSTM, bias=False), torch.randn(1, 1, UNITS)),
    "LSTM projected": lambda: Last(layer(nn.LSTM, proj_size=2, bidirectional=True)),
    "LSTM projected plain": lambda: Last(layer(nn.LSTM, proj_size=2, bias=False, num_layers=2)),
    "GRU": lambda: Last(layer(nn.GRU)),
    "GRU deep": lambda: Last(layer(nn.GRU, num_layers=2, bidirectional=True), torch.randn(4, 1, UNITS)),
    "GRU plain": lambda: Last(layer(nn.GRU, bias=False)),
    "time first": lambda: TimeFirst(nn.GRU(FEATURES, UNITS, bidirectional=True)),
    "with what is decomposed": lambda: nn.Sequential(
        TimeFirst(nn.LSTM(FEATURES, UNITS)), nn.Threshold(0.125, 0.25)
    ),
    "RNN cell": lambda: Steps(nn.RNNCell(FEATURES, UNITS, nonlinearity="relu")),
    "tanh cell": lambda: Steps(nn.RNNCell(FEATURES, UNITS, bias=False)),
    "LSTM cell": lambda: Steps(nn.LSTMCell(FEATURES, UNITS)),
    "GRU cell": lambda: Steps(nn.GRUCell(FEATURES, UNITS, bias=False)),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_graph_computes_what_the_module_does(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    x = 2 * torch.randn(5, 1, TIME, FEATURES, dtype=torch.float64)
    model = trace(module, x[:, 0].float())
    module.double()
    with torch.no_grad():
        theirs = [module(one) for one in x]
        ours = model.graph(torch.float64).evaluate([x])
    theirs = [(one,) if isinstance(one, Tensor) else one for one in theirs]
    assert model.output_shapes == tuple(tuple(t.shape) for t in theirs[0])
    for value, others in zip(ours, zip(*theirs, strict=True), strict=True):
        torch.testing.assert_close(value, torch.stack(others), atol=1e-12, rtol=1e-12)
    assert any(isinstance(n.op, Repeat) for n in model.graph().nodes) == ("cell" not in name)


def test_bounds_are_differentiable_in_the_weights() -> None:
    torch.manual_seed(0)
    module = MODULES["LSTM plain"]().eval()
    x = torch.randn(1, TIME, FEATURES)
    graph = prepare(trace(module, x).graph(torch.float64))
    width = compute_bounds(graph, [Box.around(x.double().unsqueeze(1), 0.1)], "crown-ibp").outputs[0]
    (width.upper - width.lower).sum().backward()
    for parameter in module.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    assert any(bool(p.grad.any()) for p in module.parameters() if p.grad is not None)


class Classifier(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(UNITS, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_through_onnx_it_is_the_same_network(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    module = Classifier(layer(kind)).eval()
    x = torch.randn(1, TIME, FEATURES)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file, dynamo=False)  # pyright: ignore[reportArgumentType]
    model = onnx.load(file.getvalue())
    check(model)
    box = Box.around(x.double().unsqueeze(1), 0.1)
    ends = []
    for graph in (model.graph, trace(module, x).graph(torch.float64)):
        bounds = compute_bounds(prepare(graph), [box], "crown-ibp").outputs[0]
        ends.append(torch.cat([bounds.lower, bounds.upper]))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-9, rtol=1e-9)
    with torch.no_grad():
        assert ends[0][0].le(module(x)).all() and ends[0][1].ge(module(x)).all()
