"""The torch front end: a zoo of modules against their own outputs, live parameters, and refusals."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.bounds.crown import inner_bounds, specification_bound
from verifier.errors import ModelError, UnsupportedError
from verifier.frontends import torch as front_end
from verifier.frontends.onnx import load
from verifier.frontends.torch import check, trace
from verifier.graph import Graph
from verifier.graph.coefficients import identity
from verifier.ops.arithmetic import scale_shift
from verifier.sets import Box


class Lambda(nn.Module):
    """A functional form, with one parameter so that the module has a dtype."""

    def __init__(self, f, *shape: int) -> None:
        super().__init__()
        self.f = f
        self.w = nn.Parameter(torch.randn(shape or (1,)))

    def forward(self, *xs: Tensor) -> Tensor:
        return self.f(self.w, *xs)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding="same")
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu_(self.bn(self.conv1(x)))
        y = functional.relu(self.conv2(y) + y)
        y += 1
        return self.head(y.mean((2, 3)))


def statistics(module: nn.Module) -> nn.Module:
    """Running statistics away from 0 and 1."""
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
            for p in m.parameters():
                nn.init.normal_(p)
    return module


def repeated() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


ZOO = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3)), [(6,)]),
    "no bias": (lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Identity()), [(4,)]),
    "one layer twice": (repeated, [(4,)]),
    "batch norm 1d": (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU()), [(4,)]),
    "batch norm plain": (lambda: nn.BatchNorm2d(3, affine=False), [(3, 2, 2)]),
    "residual": (Residual, [(3, 6, 6)]),
    "flatten": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), [(3, 2, 2)]),
    "unflatten": (lambda: nn.Sequential(nn.Linear(4, 12), nn.Unflatten(1, (3, 2, 2)), nn.ReLU()), [(4,)]),
    "max pool": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, 1, 1)), [(1, 6, 6)]),
    "max pool ceil": (lambda: nn.MaxPool2d(3, 2, ceil_mode=True), [(1, 6, 6)]),
    "max pool 1d": (lambda: nn.MaxPool1d(2), [(2, 6)]),
    "average pool": (lambda: nn.AvgPool2d(3, 2, 1), [(2, 5, 5)]),
    "average pool inside": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), [(2, 5, 5)]),
    "average pool 1d": (lambda: nn.AvgPool1d(2), [(2, 6)]),
    "global pool": (lambda: nn.AdaptiveAvgPool2d(1), [(2, 5, 5)]),
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d((2, 3)), [(2, 5, 4)]),
    "groups, dilation": (lambda: nn.Conv2d(4, 6, (3, 2), 1, (2, 1), (2, 1), groups=2), [(4, 6, 5)]),
    "conv 1d": (lambda: nn.Conv1d(2, 3, 4, padding="same"), [(2, 7)]),
    "conv 3d": (lambda: nn.Conv3d(1, 2, 2), [(1, 3, 3, 3)]),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2), [(4, 3, 3)]),
    "transposed 1d": (lambda: nn.ConvTranspose1d(2, 3, 3, 2), [(2, 4)]),
    "circular": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), [(1, 4, 4)]),
    "leaky": (lambda: nn.LeakyReLU(0.2), [(5,)]),
    "prelu": (lambda: nn.PReLU(), [(5,)]),
    "prelu channels": (lambda: nn.PReLU(3), [(3, 2, 2)]),
    "hardtanh": (lambda: nn.Hardtanh(-0.5, 2.0), [(5,)]),
    "hardtanh defaults": (lambda: Lambda(lambda w, x: torch.ops.aten.hardtanh(x * w)), [(5,)]),
    "relu6": (lambda: nn.ReLU6(), [(5,)]),
    "hard sigmoid": (lambda: nn.Hardsigmoid(), [(5,)]),
    "clamp": (lambda: Lambda(lambda w, x: x.clamp(-1, 1) + x.clamp(max=0.5) + x.clamp(min=0.2)), [(5,)]),
    "clamp ends": (lambda: Lambda(lambda w, x: x.clamp_max(0.5) * w - x.clamp_min(0.2)), [(5,)]),
    "abs": (lambda: Lambda(lambda w, x: (x - w).abs()), [(5,)]),
    "maximum": (lambda: Lambda(lambda w, x: torch.maximum(x, w) - torch.minimum(x, 2 * x)), [(5,)]),
    "signs": (lambda: Lambda(lambda w, x: (x.sign() + 0.1).sign() * w - torch.sgn(x)), [(5,)]),
    "softmax": (lambda: nn.Softmax(1), [(4, 3)]),
    "softmax last": (lambda: Lambda(lambda w, x: (x * w).softmax(-1)), [(4, 3)]),
    "exp, reciprocal": (lambda: Lambda(lambda w, x: x.exp() * w - x.reciprocal()), [(4,)]),
    "amax": (lambda: Lambda(lambda w, x: x.amax(1) - w * x.amin((1, 2))[:, None]), [(3, 4)]),
    "reshape, permute": (lambda: Lambda(lambda w, x: x.permute(0, 2, 1).reshape(-1, 6) * w), [(2, 3)]),
    "transpose": (lambda: Lambda(lambda w, x: x.transpose(1, -1) @ w, 2, 3), [(2, 3)]),
    "cat, split": (lambda: Lambda(lambda w, x: torch.cat([*reversed(x.split([1, 2], 1)), x, w], 1), 1, 2), [(3,)]),
    "chunk, stack": (lambda: Lambda(lambda w, x: torch.stack(x.chunk(2, -1), 1) * w), [(2, 4)]),
    "slices": (lambda: Lambda(lambda w, x: x[:, 1::2, None] + x[:, 0, -1:, None] * w), [(4, 3)]),
    "index": (lambda: Lambda(lambda w, x: x[:, [2, 0, 0]] * w), [(4, 3)]),
    "index select": (lambda: Lambda(lambda w, x: x.index_select(1, torch.tensor([2, 0])) * w), [(4, 3)]),
    "expand, repeat": (lambda: Lambda(lambda w, x: x[:, None].expand(-1, 2, -1).repeat(1, 1, 2) - w), [(3,)]),
    "squeeze": (lambda: Lambda(lambda w, x: x.unsqueeze(1).squeeze() * w.unsqueeze(0)), [(3,)]),
    "pad": (lambda: Lambda(lambda w, x: functional.pad(x, (1, 2), value=0.7) * w), [(3,)]),
    "reflect": (lambda: nn.ReflectionPad2d(1), [(1, 3, 3)]),
    "zero pad": (lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(1, 2, 3)), [(1, 3, 3)]),
    "shuffle": (lambda: nn.PixelShuffle(2), [(4, 2, 2)]),
    "flip, roll": (lambda: Lambda(lambda w, x: x.flip(1).roll(1, 1) * w), [(4,)]),
    "sums": (lambda: Lambda(lambda w, x: x.sum(1) + x.mean(-1, keepdim=True)[:, 0] + w * x.sum()), [(3, 3)]),
    "scalar": (lambda: Lambda(lambda w, x: (x * w).sum()), [(3,)]),
    "scalars": (lambda: Lambda(lambda w, x: 3 - (2 * x / 7 - 1) / w + torch.rsub(x, 1, alpha=2)), [(3,)]),
    "alpha": (lambda: Lambda(lambda w, x: torch.add(x, w, alpha=3) - torch.sub(w, x, alpha=0.1)), [(3,)]),
    "constants": (lambda: Lambda(lambda w, x: x + torch.arange(3) + torch.full((3,), 0.1) + w.sum()), [(3,)]),
    "derived": (lambda: Lambda(lambda w, x: functional.linear(x, w / w.norm(), w.exp()[:, 0]), 2, 3), [(3,)]),
    "like": (lambda: Lambda(lambda w, x: x + torch.ones_like(x) * w + x.new_zeros(3)), [(3,)]),
    "casts": (lambda: Lambda(lambda w, x: (x.double() * 2).to(w.dtype).float() * w.float()), [(3,)]),
    "matrix": (lambda: Lambda(lambda w, x: torch.einsum("bij,jk->bik", x, w) + x @ w, 3, 2), [(4, 3)]),
    "matrix left": (lambda: Lambda(lambda w, x: torch.matmul(w, x), 5, 4), [(4, 3)]),
    "addmm": (lambda: Lambda(lambda w, x: torch.addmm(w[0], x, w), 3, 3), [(3,)]),
    "products": (lambda: Lambda(lambda w, x: x * x[:, :1] * w + x.square() - x**2 * x), [(3, 2)]),
    "matrices": (lambda: Lambda(lambda w, x: (x @ x.mT) @ functional.linear(x, x[0]) * w), [(3, 2)]),
    "bmm": (lambda: Lambda(lambda w, x: torch.bmm(x, x.mT * w)), [(3, 2)]),
    "upsample": (lambda: nn.Upsample(scale_factor=2), [(1, 2, 3)]),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), [(3,)]),
    "two inputs": (lambda: Lambda(lambda w, x, y: x * w - y.relu()), [(3,), (3,)]),
    "item of a parameter": (lambda: Lambda(lambda w, x: x * w.item()), [(3,)]),
    "where on constants": (lambda: Lambda(lambda w, x: x * torch.where(w > 0, w, -w), 3), [(3,)]),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_the_graph_computes_what_the_module_does(name: str) -> None:
    torch.manual_seed(0)
    make, shapes = ZOO[name]
    module = statistics(make()).eval()
    inputs = [3 * torch.randn(5, 1, *s, dtype=torch.float64) for s in shapes]
    model = trace(module, tuple(x[:, 0].float() for x in inputs))
    module.double()
    with torch.no_grad():
        theirs = torch.stack([module(*xs) for xs in zip(*inputs, strict=True)]).double()
        ours = model.graph(torch.float64).evaluate(inputs)
    assert len(ours) == 1
    assert model.output_shapes == (tuple(theirs.shape[1:]),)
    assert model.input_shapes == tuple((1, *s) for s in shapes)
    tolerance = 1e-6 if name in ("casts", "constants") else 1e-12  # float32 is written into the module
    torch.testing.assert_close(ours[0], theirs, atol=tolerance, rtol=tolerance)


def small(activation: nn.Module | None = None) -> nn.Module:
    """A float64 CNN in training mode."""
    torch.manual_seed(0)
    activation = activation or nn.PReLU()
    head = [nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)]
    module = statistics(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), activation, *head)).double()
    for p in module.parameters():  # far enough from zero that few neurons are dead
        nn.init.normal_(p, std=0.7)
    return module


def crown(graph: Graph, box: Box) -> Tensor:
    """CROWN lower bounds of the output, [B, numel]."""
    target = graph.outputs[0]
    bounds = inner_bounds(graph, [box], [target])
    rows = identity(graph.nodes[target].shape, box.lower)
    return specification_bound(graph, [box], target, rows, bounds).minimum(graph, [box])


BOX = Box.around(
    torch.rand(3, 1, 1, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64), 0.1
)


def test_bounds_follow_updates_in_place_and_replaced_parameters() -> None:
    module = small()
    model = trace(module, torch.rand(1, 1, 4, 4))
    before = crown(model.graph(), BOX)
    with torch.no_grad():
        for p in module.parameters():
            p.sub_(0.05 * torch.randn_like(p))
        module[1].running_mean.add_(0.1)
    module[6].bias = nn.Parameter(module[6].bias.detach() + 1)
    after = crown(model.graph(), BOX)
    assert (after - before).abs().min() > 1e-3
    torch.testing.assert_close(
        after, crown(trace(module, torch.rand(1, 1, 4, 4)).graph(), BOX), atol=0, rtol=0
    )


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(), nn.PReLU(2), nn.Hardtanh()], ids=str
)
def test_gradients_of_a_bound_in_every_parameter_match_finite_differences(activation: nn.Module) -> None:
    module = small(activation)
    model = trace(module, torch.rand(1, 1, 4, 4))
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(crown(model.graph(), BOX).sum(), list(parameters.values()))
    step = 1e-6
    for (name, p), gradient in zip(parameters.items(), gradients, strict=True):
        assert gradient.abs().max() > 1e-4, f"{name} has no influence"
        direction = torch.randn_like(p)
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                p.add_(sign * step * direction)
                ends.append(crown(model.graph(), BOX).sum())
                p.sub_(sign * step * direction)
        expected = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), expected, atol=1e-5, rtol=1e-5, msg=name)


def test_bounds_contain_the_outputs_of_every_instance() -> None:
    module = small(nn.LeakyReLU(0.1)).eval()
    graph = trace(module, torch.rand(1, 1, 4, 4)).graph()
    low = crown(graph, BOX)
    width = BOX.upper - BOX.lower
    points = BOX.lower + width * torch.rand(200, *width.shape, dtype=torch.float64)
    with torch.no_grad():
        values = module(points.flatten(0, 2)).view(200, 3, 2)
    assert (values >= low).all()
    spread = values.amax(0) - values.amin(0)
    assert (values.amin(0) - low <= spread + 1e-9).all()  # and the bounds say something


def test_float64_graphs_fold_the_stored_weights_in_float64() -> None:
    module = small().float()
    model = trace(module, torch.rand(1, 1, 4, 4))
    assert model.dtype == model.graph().dtype == torch.float32
    x = torch.randn(4, 1, 1, 4, 4, dtype=torch.float64)
    exact = torch.stack([copy.deepcopy(module).eval().double()(row) for row in x])
    torch.testing.assert_close(model.graph(torch.float64).evaluate([x])[0], exact, atol=1e-13, rtol=1e-13)


def test_run_evaluates_the_module_in_eval_mode_one_by_one_and_restores_its_mode() -> None:
    module = small().float()
    module[1].eval()
    model = trace(module, torch.rand(2, 1, 4, 4))
    assert module.training and not module[1].training
    state = copy.deepcopy(module.state_dict())
    x = torch.rand(5, 1, 1, 4, 4, dtype=torch.float64)
    (result,) = model.run([x])
    assert module.training and not module[1].training
    assert result.dtype == torch.float32 and result.shape == (5, 1, 2)
    expected = torch.stack([copy.deepcopy(module).eval()(row.float()) for row in x])
    torch.testing.assert_close(result, expected, atol=0, rtol=0)
    assert all(bool((state[k] == v).all()) for k, v in module.state_dict().items())


def test_several_outputs_keep_their_order() -> None:
    module = Lambda(lambda w, x, y: {"a": x + y, "b": (x * w, y.relu())})
    model = trace(module, (torch.rand(1, 2), torch.rand(1, 2)))
    assert model.inputs == ("xs_0", "xs_1") and model.outputs == ("output_0", "output_1", "output_2")
    x, y = torch.randn(2, 4, 1, 2)
    with torch.no_grad():
        values = model.graph().evaluate([x, y])
    for ours, theirs in zip(values, model.run([x, y]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_all_unsupported_operators_are_listed_at_once() -> None:
    class Unsupported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), Lambda(lambda w, x: torch.special.bessel_j1(x)))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.special.bessel_j0(self.inner(x)).relu()
            return y.median(1, keepdim=True).values + torch.rand(4)

    with pytest.raises(UnsupportedError) as caught:
        trace(Unsupported(), torch.rand(1, 4))
    rows = {n.operator: n for n in caught.value.nodes}
    assert {"aten.special_bessel_j0.default", "aten.median.dim", "aten.rand.default"} <= set(rows)
    assert "random" in rows["aten.rand.default"].reason
    inner = [n.name for n in caught.value.nodes if n.name.startswith("inner.1.")]
    assert inner, "the refused node of the inner module is named by its place"


@pytest.mark.parametrize(
    ("module", "example", "reason"),
    [
        (
            Lambda(lambda w, x: x if x.sum() > 0 else -x),
            torch.rand(1, 3),
            "whose course does not depend on values",
        ),
        (Lambda(lambda w, x: x * float(x.detach().numpy().max())), torch.rand(1, 3), "cannot trace Lambda"),
        (nn.Linear(4, 2), torch.rand(1, 3), "(1, 3)"),
        (nn.Embedding(5, 2), torch.tensor([[1, 2]]), "start from their embeddings"),
        (nn.Linear(4, 2), (), "holds no tensor"),
        (Lambda(lambda w, x: (x, 3)), torch.rand(1, 3), "something other than a floating tensor"),
        (Lambda(lambda w, x: x > 0), torch.rand(1, 3), "something other than a floating tensor"),
        (Lambda(lambda w, x: x.add_(1)), torch.rand(1, 3), "changes its state or its input"),
    ],
)
def test_what_cannot_be_traced_says_why_and_what_to_do(
    module: nn.Module, example: Tensor, reason: str
) -> None:
    with pytest.raises(ModelError) as caught:
        trace(module, example)
    assert reason in str(caught.value)


def test_state_that_changes_is_refused() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + self.calls

    with pytest.raises(ModelError, match="'calls'"):
        trace(Counter(), torch.rand(1, 3))


def test_nan_weights_are_refused() -> None:
    module = nn.Linear(2, 2)
    nn.init.constant_(module.bias, torch.nan)
    with pytest.raises(ModelError, match="'bias' holds NaN"):
        trace(module, torch.rand(1, 2))


def test_a_wrong_conversion_is_found_and_its_first_node_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trace(small().float(), torch.rand(1, 1, 4, 4))
    real = front_end.aten_converter

    def wrong(name: str):
        if name != "relu.default":
            return real(name)
        return lambda builder, x: scale_shift(builder, real(name)(builder, x), scale=1.01)

    monkeypatch.setattr(front_end, "aten_converter", wrong)
    with pytest.raises(ModelError, match=r"first at node '5\.relu'"):
        check(model)


def test_a_module_that_computes_otherwise_than_its_export_is_found() -> None:
    class Moody(nn.Module):
        scale = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    module = Moody()
    model = trace(module, torch.rand(1, 2))
    module.scale = 2.0
    with pytest.raises(ModelError, match="the export is not what the module computes"):
        check(model)


def test_the_same_network_from_onnx_and_from_torch_has_equal_bounds(networks) -> None:
    """The committed digits networks, rebuilt as modules from the weights in the files."""
    images = np.load(networks.HERE / "digits_test.npz")["images"][:4]
    for name, module, shape in (
        ("digits_mlp", networks.mlp(64, 32, 32, 10), (1, 64)),
        ("digits_cnn", networks.ResidualCnn(), (1, 1, 8, 8)),
    ):
        file = onnx.load(networks.HERE / f"{name}.onnx")
        stored = {
            t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in file.graph.initializer
        }
        missing, unknown = module.load_state_dict(stored, strict=False)
        assert not unknown and all(k.endswith("num_batches_tracked") for k in missing)
        x = torch.from_numpy(images).double().view(-1, *shape)
        box = Box.around(x, 0.02, clip=(0, 1))
        with torch.no_grad():
            ours = crown(trace(module, x[:, 0].float()).graph(torch.float64), box)
            theirs = crown(load(networks.HERE / f"{name}.onnx").graph, box)
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
        assert (ours.amax(1) > -1).all()


@pytest.fixture(scope="module")
def networks(root):
    """tests/data/make_networks.py as a module."""
    spec = importlib.util.spec_from_file_location(
        "make_networks", root / "tests" / "data" / "make_networks.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_float64_module_whose_values_only_float32_cannot_hold() -> None:
    class Far(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (40 * x).exp() / (40 * x - 1).exp()

    assert trace(Far(), torch.zeros(1, 3, dtype=torch.float64)).output_shapes == ((1, 3),)
