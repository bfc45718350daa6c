"""Jacobians as networks of their own: what the files compute, and what is proved of them, kinks included."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from verifier import Options, UnsupportedError, VerifierError, export_jacobian, trace, verify
from verifier.bounds.compute import compute_bounds
from verifier.frontends import onnx as onnx_frontend
from verifier.frontends.derivative_nodes import DOMAIN
from verifier.frontends.replay import check, run
from verifier.graph import Interval
from verifier.jacobian.network import jacobian
from verifier.ops.step import Step
from verifier.options import BoundMethod
from verifier.results import Status
from verifier.sets import Box
from verifier.transforms.switches import join_switches, settle_switches

DATA = Path(__file__).resolve().parent.parent / "data"


class Gates(nn.Module):
    """A little of everything smooth."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.first(x)) * torch.tanh(self.second(x))
        h = nn.functional.layer_norm(h, (6,)) + nn.functional.softplus(h) + nn.functional.gelu(h)
        return self.last(torch.sin(h) + nn.functional.silu(h) + nn.functional.elu(h)).softmax(-1)


def cases() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(3)
    conv = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(3)]
    last = [nn.Conv2d(3, 4, 2, stride=2, padding=1), nn.LeakyReLU(), nn.AvgPool2d(2), nn.Flatten()]
    return {
        "relu": (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), (3,)),
        "clip": (nn.Sequential(nn.Linear(3, 8), nn.Hardtanh(-0.2, 0.4), nn.Linear(8, 2)), (3,)),
        "conv": (nn.Sequential(*conv, *last, nn.Linear(4, 2)), (1, 6, 6)),
        "transposed": (nn.Sequential(nn.ConvTranspose2d(1, 2, 3, stride=2, output_padding=1), nn.ReLU6(), nn.Flatten(),
                                     nn.Linear(72, 2)), (1, 2, 2)),
        "one dimension": (nn.Sequential(nn.Conv1d(2, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)), (2, 10)),
        "gates": (Gates(), (3,)),
        "linear": (nn.Linear(3, 2), (3,)),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(cases()))
def test_files_compute_derivatives(name: str) -> None:
    net, shape = cases()[name]
    net = net.eval()
    model = trace(net, torch.zeros(1, *shape))
    x = torch.randn(6, 1, *shape)
    for outputs, inputs in ((None, None), ([1], None), (None, [2])):
        found = export_jacobian(model, outputs, None, inputs)
        loaded = onnx_frontend.load(found.data)
        check(loaded)
        theirs = torch.from_numpy(run(loaded, [x.numpy()])[0])
        truth = torch.stack([torch.func.jacrev(net)(p).flatten(2).flatten(0, 1) for p in x])
        truth = truth[:, outputs or slice(None)][:, :, inputs or slice(None)].detach()
        assert theirs.shape == truth.shape == (6, len(found.rows), len(found.columns))
        assert torch.allclose(theirs, truth, atol=1e-6)


def test_what_the_outputs_are() -> None:
    found = export_jacobian(trace(nn.Linear(3, 2), torch.zeros(1, 3)), margin=(0, 1), inputs=[0, 2])
    assert found.entries() == [("Y_0", "d (Y_0 - Y_1) / d X_0"), ("Y_1", "d (Y_0 - Y_1) / d X_2")]
    assert not found.exact  # the difference of two weights
    assert export_jacobian(trace(nn.Linear(3, 2), torch.zeros(1, 3))).exact


def spec(path: Path, low: list[float], high: list[float], outputs: int, unsafe: str) -> Path:
    lines = [f"(declare-const X_{i} Real)" for i in range(len(low))]
    lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
    for i, (a, b) in enumerate(zip(low, high, strict=True)):
        lines.append(f"(assert (and (>= X_{i} {a}) (<= X_{i} {b})))")
    file = path / "query.vnnlib"
    file.write_text("\n".join([*lines, f"(assert {unsafe})"]) + "\n")
    return file


def enumerated(net: nn.Sequential, radius: float) -> Tensor:
    """Jacobians [P, n_out, n_in] of a one-layer net on all parts that have an inside in a box, by fine sampling."""
    axis = torch.linspace(-radius, radius, 400, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1)
    first, last = net[0], net[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    active = (x @ first.weight.T.double() + first.bias.double() > 0).double().unique(dim=0)
    return torch.einsum("ok,pk,ki->poi", last.weight.double(), active, first.weight.double())


@pytest.mark.parametrize("seed", range(3))
def test_verdicts_are_those_of_all_parts(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))
    data = export_jacobian(trace(net, torch.zeros(1, 2))).data
    with torch.no_grad():
        jacobians = enumerated(net, 1.0)
    most, least = float(jacobians[:, 0, 1].amax()), float(jacobians[:, 0, 1].amin())
    apart = float((jacobians[:, 0, 0] - jacobians[:, 1, 0]).abs().amax())
    for bound, unsafe in (
        (most, lambda b: f"(>= Y_1 {b:.6f})"),
        (-least, lambda b: f"(<= Y_1 {-b:.6f})"),
        (apart, lambda b: f"(or (>= (- Y_0 Y_2) {b:.6f}) (<= (- Y_0 Y_2) {-b:.6f}))"),
    ):
        for shift, status in ((1e-3, Status.UNSAT), (-1e-3, Status.SAT)):
            file = spec(tmp_path, [-1, -1], [1, 1], 4, unsafe(bound + shift))
            assert verify(data, file, timeout=20).status is status


class Minus(nn.Module):
    """x, by two kinks: what the chain rule gives at 0 is 0 in files, and anything from 0 to 2 as a set."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) - torch.relu(-x)


class Twice(nn.Module):
    """The inner kink's value is never below the outer one's knot."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.relu(x))


class Distance(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.relu(x) - x


@pytest.mark.parametrize("kind", [Minus, Twice])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.0, 0.0)])
def test_the_value_at_a_kink_counts(kind: type[nn.Module], low: float, high: float, tmp_path: Path) -> None:
    """Almost everywhere in [0, 1] both have slope 1; the file has 0 at 0, as onnxruntime says."""
    data = export_jacobian(trace(kind(), torch.zeros(1, 1))).data
    loaded = onnx_frontend.load(data)
    assert run(loaded, [np.zeros((1, 1, 1), np.float32)])[0].item() == 0.0
    file = spec(tmp_path, [low], [high], 1, "(<= Y_0 0.5)")
    assert verify(data, file, timeout=3).status is Status.SAT
    quiet = verify(data, file, timeout=0.5, options=Options(attack=False))
    assert quiet.status is not Status.UNSAT
    assert verify(data, spec(tmp_path, [low], [high], 1, "(>= Y_0 2.5)"), timeout=3).status is Status.UNSAT


def test_what_is_between_counts(tmp_path: Path) -> None:
    """The slopes of |x| are 1 and -1; at 0 everything between is a generalised derivative, which no run shows."""
    data = export_jacobian(trace(Distance(), torch.zeros(1, 1))).data
    file = spec(tmp_path, [-1], [1], 1, "(and (>= Y_0 -0.5) (<= Y_0 0.5))")
    assert verify(data, file, timeout=2).status not in (Status.UNSAT, Status.SAT)
    off = spec(tmp_path, [0.01], [1], 1, "(and (>= Y_0 -0.5) (<= Y_0 0.5))")
    assert verify(data, off, timeout=5).status is Status.UNSAT
    assert verify(data, spec(tmp_path, [-1], [1], 1, "(>= Y_0 1.001)"), timeout=5).status is Status.UNSAT
    square = "(<= (* Y_0 Y_0) 0.25)"
    head = "(vnnlib-version <2.0>)\n(declare-network f (declare-input X real [1,1]) (declare-output Y real [1,1]))\n"
    box = "(assert (and (>= X[0,0] -1) (<= X[0,0] 1)))\n"
    file.write_text(f"{head}{box}(assert {square.replace('Y_0', 'Y[0,0]')})\n")
    assert verify({"f": data}, file, timeout=2).status not in (Status.UNSAT, Status.SAT)


def test_conjunctions_are_proved_too(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
    data = export_jacobian(trace(net, torch.zeros(1, 2))).data
    with torch.no_grad():
        jacobians = enumerated(net, 1.0)[:, 0]
    most = jacobians.amax(0)
    both = f"(and (>= Y_0 {most[0] + 0.01:.6f}) (>= Y_1 {most[1] - 10:.6f}))"
    assert verify(data, spec(tmp_path, [-1, -1], [1, 1], 2, both), timeout=20).status is Status.UNSAT


def test_two_networks_at_once(tmp_path: Path) -> None:
    """Where the value is above a threshold the slope is positive: VNN-LIB 2.0 with the network and its Jacobian."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    model = trace(net, torch.zeros(1, 1))
    data = export_jacobian(model).data
    x = torch.linspace(-1, 1, 2001).unsqueeze(1).requires_grad_(True)
    y = net(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    level = float(y.detach().mean())
    least = float(slope[y > level].amin())
    file = tmp_path / "query.vnnlib"
    head = "(vnnlib-version <2.0>)\n" + "".join(
        f"(declare-network {n} (declare-input {i} real [1,1]) (declare-output {o} real [1,1]))\n"
        for n, i, o in (("f", "X", "Y"), ("df", "U", "D"))
    )
    box = "(assert (and (>= X[0,0] -1.0) (<= X[0,0] 1.0) (== X[0,0] U[0,0])))\n"
    for shift, status in ((-0.01, Status.UNSAT), (0.01, Status.SAT)):
        atoms = f"(assert (and (>= Y[0,0] {level:.6f}) (<= D[0,0] {least + shift:.6f})))\n"
        file.write_text(head + box + atoms)
        assert verify({"f": model, "df": data}, file, timeout=20).status is status


def test_functions_that_only_share_a_name_are_inlined() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    data = export_jacobian(trace(net, torch.zeros(1, 2))).data
    steps = [n for n in onnx_frontend.load(data).graph.nodes if isinstance(n.op, Step)]
    assert len(steps) == 1
    proto = onnx.ModelProto.FromString(data)
    (function,) = proto.functions
    assert function.domain == DOMAIN
    (compared,) = [n for n in function.node if n.op_type == "Greater"]
    compared.op_type = "GreaterOrEqual"
    changed = onnx_frontend.load(proto.SerializeToString())
    check(changed)
    assert not [n for n in changed.graph.nodes if isinstance(n.op, Step)]


def test_calls_without_their_function_are_refused() -> None:
    node = helper.make_node("Step1", ["x"], ["y"], domain=DOMAIN)
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 2]) for n in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    with pytest.raises(UnsupportedError, match="no function"):
        onnx_frontend.load(model.SerializeToString())


def test_a_step_is_read_with_levels_per_element() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.PReLU(3), nn.Linear(3, 1))
    nn.init.uniform_(net[1].weight, -1, 1)  # pyright: ignore[reportArgumentType]
    loaded = onnx_frontend.load(export_jacobian(trace(net, torch.zeros(1, 2))).data)
    (step,) = [n.op for n in loaded.graph.nodes if isinstance(n.op, Step)]
    at_knot = step.interval(Interval(torch.zeros(1, 1, 3).double(), torch.zeros(1, 1, 3).double()))
    slopes = net[1].weight.detach().double()  # pyright: ignore[reportCallIssue]
    assert torch.equal(at_knot.lower.flatten(), slopes) and bool((at_knot.upper == 1).all())


class Jump(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0.25, x + 1, x)


def test_what_has_no_file_is_told() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(UnsupportedError, match="jump"):
        export_jacobian(trace(Jump(), x))
    with pytest.raises(UnsupportedError, match="no form in ONNX"):
        export_jacobian(trace(nn.Sequential(nn.Linear(2, 2), nn.Mish()), x))
    model = trace(nn.Linear(2, 2), x)
    with pytest.raises(VerifierError, match="0 to 1"):
        export_jacobian(model, inputs=[2])
    with pytest.raises(VerifierError, match="outputs 0 to 1"):
        export_jacobian(model, outputs=[2])
    with pytest.raises(VerifierError, match="exclude"):
        export_jacobian(model, outputs=[0], margin=(0, 1))


def test_proved_signs_hold_at_all_selections(tmp_path: Path) -> None:
    """Every choice of a level on either side at kinks, for inputs at which several neurons are at theirs."""
    torch.manual_seed(0)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
    net = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1))
    net[0].weight.data = weight  # pyright: ignore[reportArgumentType]
    choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)))
    last = net[2].weight.detach()[0]  # pyright: ignore[reportIndexIssue]
    at_zero = (choices * last) @ weight  # all that the chain rule gives at the origin
    most = float(at_zero[:, 0].amax())
    data = export_jacobian(trace(net, torch.zeros(1, 2))).data
    for low, high in (([0.0, 0.0], [0.0, 0.0]), ([-1.0, -1.0], [1.0, 1.0])):
        file = spec(tmp_path, low, high, 2, f"(>= Y_0 {most - 1e-3:.6f})")
        for quiet in (Options(), Options(attack=False)):
            assert verify(data, file, timeout=1, options=quiet).status is not Status.UNSAT
        file = spec(tmp_path, low, high, 2, f"(>= Y_0 {most + 1e-3:.6f})")
        assert verify(data, file, timeout=10).status is Status.UNSAT


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("method", ["interval", "crown", "alpha-crown"])
@pytest.mark.parametrize("kind", [Minus, Twice])
def test_enclosures_that_end_at_a_knot_hold_both_sides(
    kind: type[nn.Module], method: BoundMethod, between: bool
) -> None:
    """In [0, 1] the slope is 1 almost everywhere; at 0 the chain rule gives 0, too."""
    graph = jacobian(trace(kind(), torch.zeros(1, 1)).graph(torch.float64), torch.eye(1), [0])
    for dtype in (torch.float32, torch.float64):
        box = Box(torch.zeros(1, 1, 1, dtype=dtype), torch.ones(1, 1, 1, dtype=dtype))
        almost = compute_bounds(join_switches(graph).to(dtype), [box], method).outputs[0]
        everywhere = compute_bounds(settle_switches(graph, between).to(dtype), [box], method).outputs[0]
        assert everywhere.lower.item() <= 0.0 and everywhere.upper.item() >= 1.0
        if method == "interval" and kind is Twice and not between:
            assert almost.lower.item() > 0.5  # what the difference is about
