"""Bounds of a torch module are differentiable in its parameters: train a certified margin directly.

    python examples/differentiable_bounds.py        (about ten seconds; needs scikit-learn)

A small network learns to tell the digit 3 from the digit 8, first by its clean loss alone, then by a loss of its
certified margins: lower bounds, over all images within eps, of the right score minus the wrong one.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from verifier.bounds.crown import inner_bounds, specification_bound
from verifier.frontends.torch import TorchModel, trace
from verifier.graph.coefficients import identity
from verifier.sets import Box

EPS = 0.1


def data() -> tuple[Tensor, Tensor]:
    """Images [N, 64] in 0..1, and +1 for an 8, -1 for a 3."""
    digits = load_digits()
    chosen = (digits.target == 3) | (digits.target == 8)
    images = torch.from_numpy(digits.data[chosen] / 16).float()
    return images, torch.from_numpy(digits.target[chosen] == 8).float() * 2 - 1


def certified(model: TorchModel, x: Tensor, sign: Tensor) -> Tensor:
    """Certified lower bound of the margin of each image: [N]. One call bounds the whole batch."""
    graph = model.graph()  # the module's parameters as they are now
    box = Box.around(x.unsqueeze(1), EPS, clip=(0, 1))  # values keep the module's batch of 1: [N, 1, 64]
    target = graph.outputs[0]
    bounds = inner_bounds(graph, [box], [target])
    rows = identity(graph.nodes[target].shape, x)
    upward = specification_bound(graph, [box], target, rows, bounds).minimum(graph, [box])[:, 0]
    downward = specification_bound(graph, [box], target, rows.multiply(-torch.ones(1, 1, 1)), bounds)
    return torch.where(sign > 0, upward, downward.minimum(graph, [box])[:, 0])


def report(stage: str, module: nn.Module, model: TorchModel, x: Tensor, sign: Tensor) -> None:
    with torch.no_grad():
        clean = (module(x)[:, 0] * sign > 0).float().mean()
        proved = (certified(model, x, sign) > 0).float().mean()
    print(f"{stage:<26} accuracy {clean:.3f}   certified at eps {EPS}: {proved:.3f}")


def main() -> None:
    torch.manual_seed(0)
    x, sign = data()
    train, held_out = slice(0, 257), slice(257, None)
    module = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 1))
    model = trace(module, x[:1])  # once; the optimiser's updates are seen by every later bound
    optimiser = torch.optim.Adam(module.parameters(), lr=5e-3)
    for stage, steps in (("clean loss", 150), ("loss of certified margins", 150)):
        for _ in range(steps):
            margin = module(x[train])[:, 0] * sign[train]
            if stage != "clean loss":
                margin = certified(model, x[train], sign[train])
            optimiser.zero_grad()
            functional.softplus(-margin).mean().backward()
            optimiser.step()
        report(stage, module, model, x[held_out], sign[held_out])


if __name__ == "__main__":
    main()
