"""Reference models: both forms agree, they read from left to right, and they are imported and bounded."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from verifier.bounds.compute import BoundMethod, compute_bounds
from verifier.frontends.onnx import load
from verifier.frontends.torch import trace
from verifier.graph import Graph
from verifier.models import FAMILIES, SequenceLayer, small
from verifier.models.catalogue import forms, hidden_size
from verifier.sets import Box
from verifier.transforms.prepare import prepare

BOTH = [name for name in FAMILIES if len(forms(name)) == 2]
ALL = [(name, form) for name in FAMILIES for form in forms(name)]
SOME = [
    ("Gated DeltaNet", "recurrent"),
    ("RWKV-6", "recurrent"),
    ("mLSTM", "parallel"),
]


def instance(name: str, form: str | None = None) -> SequenceLayer:
    """Parameters away from zeros and ones, the same in every form."""
    torch.manual_seed(0)
    model = small(name, form)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def tokens(name: str, batch: int, steps: int) -> Tensor:
    return torch.randn(batch, steps, hidden_size(name), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("steps", [1, 7])
def test_both_forms_compute_the_same(name: str, steps: int) -> None:
    x = 2 * tokens(name, 2, steps)
    with torch.no_grad():
        ours, theirs = instance(name, "recurrent")(x), instance(name, "parallel")(x)
    assert ours.isfinite().all() and ours.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["RetNet", "GLA", "simple GLA", "Mamba", "Mamba-2", "HGRN2", "mLSTM, sigmoid gates"]
)
def test_chunks_compute_the_same(name: str) -> None:
    model, x = instance(name, "parallel").double(), 2 * tokens(name, 2, 7).double()
    with torch.no_grad():
        whole = model(x)
        for model.chunk in (1, 3, 7, 9):
            torch.testing.assert_close(model(x), whole, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("name", "form"), ALL)
def test_a_token_reads_what_came_before_it_and_its_own_sequence(name: str, form: str) -> None:
    model, x = instance(name, form).double(), tokens(name, 2, 5).double()
    changed = x.clone()
    changed[0, 3] += 1
    with torch.no_grad():
        difference = (model(changed) - model(x)).abs().amax(-1)
    assert difference[1].max() == 0 and difference[0, :3].max() < 1e-12
    assert difference[0, 3] > 1e-6 and difference[0, 4] > 1e-12


def check_bounds(
    graph: Graph, model: SequenceLayer, center: Tensor, method: BoundMethod = "interval", radius: float = 0.01
) -> None:
    """Bounds around one sequence are finite and contain the module's outputs."""
    x = center.double()
    if method != "interval":
        graph = prepare(graph, [x[None]])
    result = compute_bounds(graph, [Box.around(x[None], radius)], method=method)
    lower, upper = result.lower, result.upper
    assert isinstance(lower, Tensor) and isinstance(upper, Tensor)
    assert lower.isfinite().all() and upper.isfinite().all()
    points = x + radius * (2 * torch.rand(64, *x.shape[1:], dtype=torch.float64) - 1)
    with torch.no_grad():
        y = model.double()(points)
    assert (lower[0] <= y + 1e-6).all() and (y - 1e-6 <= upper[0]).all()


def from_torch(name: str, form: str, method: BoundMethod = "interval") -> None:
    model, x = instance(name, form), tokens(name, 1, 4)
    check_bounds(trace(model, x).graph(torch.float64), model, x, method)  # trace compares with the module


def from_onnx(name: str, form: str, folder: Path) -> None:
    model, x = instance(name, form), tokens(name, 1, 4)
    path = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is deprecated
        torch.onnx.export(model, (x,), str(path), dynamo=False, opset_version=17)
    graph = load(path).graph  # load compares with onnxruntime
    with torch.no_grad():
        torch.testing.assert_close(
            graph.evaluate([x[None].double()])[0][0].float(), model(x), atol=1e-4, rtol=1e-4
        )
    check_bounds(graph, model, x)


@pytest.mark.parametrize(("name", "form"), SOME)
def test_some_are_imported_from_torch_and_bounded(name: str, form: str) -> None:
    from_torch(name, form)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_imported_from_onnx_and_bounded(name: str, tmp_path: Path) -> None:
    from_onnx(name, forms(name)[-1], tmp_path)


@pytest.mark.full
@pytest.mark.parametrize(("name", "form"), ALL)
def test_every_form_is_imported_and_bounded(name: str, form: str, tmp_path: Path) -> None:
    from_torch(name, form, "crown")
    from_onnx(name, form, tmp_path)


def test_a_form_that_a_model_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="SLSTM has no parallel form; choose from recurrent"):
        small("sLSTM", "parallel")
