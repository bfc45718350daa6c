"""What the losses bound is the network of the clean pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from verifier.errors import ModelError
from verifier.training import IBP, trace


def test_the_graph_is_the_network_of_the_clean_pass(images, batches) -> None:
    """Statistics and masks of that pass: the graph gives its scores, which differ from evaluation's."""
    module, (x, _) = images(), batches(image=True)
    net = trace(module, x)
    module.train()
    clean = net.clean(x)
    (scores,) = clean.graph.evaluate([x.unsqueeze(1)])
    assert torch.allclose(scores.flatten(1), clean.scores, atol=1e-12)
    module.eval()
    assert not torch.allclose(clean.scores, module(x), atol=1e-3)
    (scores,) = net.graph(x).evaluate([x.unsqueeze(1)])
    assert torch.allclose(scores.flatten(1), module(x), atol=1e-12)


def test_running_statistics_move_once_per_step(images, batches) -> None:
    module, (x, y) = images(), batches(image=True)
    net, once = trace(module, x), images()
    module.train(), once.train()
    IBP(clean=0.5)(net, x, y, 0.1)
    once(x)
    for a, b in zip(module.buffers(), once.buffers(), strict=True):
        assert torch.equal(a, b)


def test_evaluation_leaves_no_hooks_and_changes_nothing(images, batches) -> None:
    module, (x, y) = images(), batches(image=True)
    net = trace(module, x)
    module.eval()
    before = [b.clone() for b in module.buffers()]
    IBP()(net, x, y, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True))
    module.train()
    IBP()(net, x, y, 0.1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_dropout_bounds_hold_the_scores_with_the_same_mask(batches) -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 4)).double()
    x, y = batches()
    net = trace(module, x)
    module.train()
    clean = net.clean(x)
    margins = functional.cross_entropy(clean.scores, y)
    torch.manual_seed(3)
    other = IBP()(net, x, y, 0.0)
    torch.manual_seed(3)
    same = functional.cross_entropy(net.clean(x).scores, y)
    assert torch.allclose(other, same, atol=1e-12)
    assert not torch.allclose(margins, same, atol=1e-6)


def test_frozen_batch_normalisation_keeps_its_running_statistics(images, batches) -> None:
    module, (x, y) = images(), batches(image=True)
    net = trace(module, x)
    module.eval()
    frozen = IBP()(net, x, y, 0.1)
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.Dropout):
            layer.eval()
    assert torch.equal(IBP()(net, x, y, 0.1), frozen)


def test_parameters_are_the_modules_own(modules, batches) -> None:
    """A step of the module's parameters is seen by the next loss without tracing again."""
    module, (x, y) = modules(), batches()
    net = trace(module, x)
    before = IBP()(net, x, y, 0.1)
    before.backward()
    assert all(p.grad is not None for p in module.parameters())
    with torch.no_grad():
        for p in module.parameters():
            p.sub_(0.1 * p.grad)
    after = IBP()(net, x, y, 0.1)
    assert after < before
    assert torch.equal(after, IBP()(trace(module, x), x, y, 0.1))


def test_any_batch_size(images, batches) -> None:
    """Traced for one example, called with others; in evaluation the mean over a batch is that of its parts."""
    module = images().eval()
    x, y = batches(9, image=True)
    net = trace(module, x[:1])
    whole = IBP()(net, x, y, 0.05)
    parts = IBP()(net, x[:7], y[:7], 0.05) * 7 / 9 + IBP()(net, x[7:], y[7:], 0.05) * 2 / 9
    assert torch.allclose(whole, parts, atol=1e-12)
    module.train()
    for count in (9, 2, 5):
        IBP(clean=0.5)(net, x[:count], y[:count], 0.05).backward()


def test_what_only_a_layer_could_tell_is_refused() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.dropout(self.linear(x), 0.5, self.training)

    with pytest.raises(ModelError, match=r"nn\.Dropout"):
        trace(Functional(), torch.rand(2, 4))
    with pytest.raises(ModelError, match=r"nn\.Dropout"):
        trace(nn.Sequential(nn.Linear(4, 4), nn.AlphaDropout(), nn.Linear(4, 2)), torch.rand(2, 4))
    with pytest.raises(ModelError, match=r"scores \[N, K\]"):
        trace(nn.Conv2d(1, 2, 3), torch.rand(2, 1, 4, 4))


def test_a_layer_called_another_number_of_times_is_an_error() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.drop(self.linear(x))
            return self.drop(y) if self.training else y

    module = Twice()
    net = trace(module, torch.rand(2, 4))
    module.train()
    with pytest.raises(ModelError, match="called 2 times"):
        IBP()(net, torch.rand(3, 4), torch.tensor([0, 1, 2]), 0.1)


def test_labels_must_be_one_number_per_example(modules, batches) -> None:
    module, (x, y) = modules(), batches()
    with pytest.raises(ModelError, match="one class number per example"):
        IBP()(trace(module, x), x, y.unsqueeze(1), 0.1)


def test_a_kept_graph_follows_the_module(images, batches) -> None:
    """In-place steps, loaded weights, other types and new parameters: always the loss of the module as it is."""
    module, (x, y) = images(), batches(image=True)
    net = trace(module, x)

    def check(values: torch.Tensor = x) -> None:
        module.eval()
        assert torch.equal(IBP()(net, values, y, 0.1), IBP()(trace(module, values), values, y, 0.1))

    check()
    assert net._unfilled() is net._unfilled()
    with torch.no_grad():
        module[0].weight.mul_(1.5)
    check()
    module.load_state_dict({k: 0.5 * v for k, v in module.state_dict().items()})
    check()
    module[4].weight = nn.Parameter(module[4].weight.detach() * 2)
    check()
    module[8] = nn.Linear(10, 4).double()
    check()
    for p in module[0].parameters():
        p.requires_grad_(False)
    check()
    with torch.no_grad():
        module[0].weight.mul_(2)
        check()
    check()


def test_graphs_of_computed_weights_are_not_kept(batches) -> None:
    """The transposed matrix of a recurrent layer, and slopes whose values decide the operator."""
    x, y = batches()

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4).double())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (2 * self.weight)

    for module in (Transposed(), nn.Sequential(nn.Linear(6, 4), nn.PReLU()).double()):
        net = trace(module, x)
        before = IBP()(net, x, y, 0.1)
        with torch.no_grad():
            for p in module.parameters():
                p.mul_(-1.5)
        after = IBP()(net, x, y, 0.1)
        assert before != after and torch.equal(after, IBP()(trace(module, x), x, y, 0.1))
