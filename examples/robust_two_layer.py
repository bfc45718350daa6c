"""Two ways to a robust network with one hidden layer: a convex program, and certified training.

    python examples/robust_two_layer.py        (half a minute; needs cvxpy and scikit-learn)

Training a two-layer ReLU network is a convex program once its activation patterns on the data are given (Pilanci and
Ergen 2020, arXiv 2002.10553). Bai, Gautam and Sojoudi (2022, arXiv 2201.01965) let every sample lie anywhere in a box:
the worst hinge loss stays convex where each pattern is to hold on the whole of every box,

    minimise  mean_k max(0, 1 - y_k sum_i d_ik x_k'(v_i - w_i) + eps |sum_i d_ik (v_i - w_i)|_1)
                + beta sum_i (|v_i| + |w_i|)
    so that   (2 d_ik - 1) x_k' v_i >= eps |v_i|_1, and the same of w_i.

The patterns are sampled; few hold on all boxes, so the network is small. As none of its neurons changes its sign in a
box, bounds of it are exact on the training data. Beside it stand networks of the same size that gradients trained with
losses of bounds: these may use any pattern, and neurons that change.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import verifier
from verifier.options import Options
from verifier.training import CROWNIBP, IBP, Linf, Loss, SmoothRamp, Task, WarmUp, initialise, trace


@dataclass(frozen=True)
class Solution:
    """The program's value, every sample's worst margin y f [N], the hidden weights [M, D + 1] (the last is the bias)
    and their outgoing ones [M]."""

    value: float
    margins: np.ndarray
    hidden: np.ndarray
    outgoing: np.ndarray


def moons(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 2] in -1..1 and signs [N]."""
    from sklearn.datasets import make_moons

    x, y = make_moons(count, noise=0.06, random_state=seed)
    return (x - [0.5, 0.25]) / 1.6, 2.0 * y - 1


def patterns(x: np.ndarray, count: int, eps: float, seed: int) -> np.ndarray:
    """Distinct activation patterns [P, N] on the data (with its bias, [N, 3]) of random neurons that keep their sign on
    every box."""
    generator = np.random.default_rng(seed)
    neurons = generator.normal(size=(200 * count, x.shape[1]))
    # Lines through the data, not around it: the bias comes from a random point.
    neurons[:, -1] = -np.einsum(
        "nd,nd->n", neurons[:, :-1], generator.uniform(-1, 1, (len(neurons), x.shape[1] - 1))
    )
    reach = eps * np.abs(neurons[:, :-1]).sum(1)
    values = neurons @ x.T
    kept = values[(np.abs(values) >= reach[:, None]).all(1)] > 0
    return np.unique(kept, axis=0)[:count].astype(float)


def solve(x: np.ndarray, y: np.ndarray, eps: float, beta: float, count: int) -> Solution:
    """The convex program on points x [N, 2]. Ends the script without cvxpy."""
    try:
        import cvxpy
    except ImportError:
        sys.exit("this example needs cvxpy: pip install cvxpy")
    points = np.concatenate([x, np.ones((len(x), 1))], 1)
    active = patterns(points, count, eps, seed=0)
    v, w = (cvxpy.Variable((len(active), points.shape[1])) for _ in range(2))
    gap = active.T @ (v - w)  # [N, 3]: the linear map that a sample sees
    margins = cvxpy.multiply(y, cvxpy.sum(cvxpy.multiply(points, gap), axis=1))
    margins = margins - eps * cvxpy.sum(cvxpy.abs(gap[:, :-1]), axis=1)
    signs = 2 * active - 1
    held = []
    for part in (v, w):
        reach = eps * cvxpy.sum(cvxpy.abs(part[:, :-1]), axis=1)
        held.append(
            cvxpy.multiply(signs, part @ points.T) >= cvxpy.reshape(reach, (len(active), 1), order="C")
        )
    size = cvxpy.sum(cvxpy.norm(v, 2, axis=1)) + cvxpy.sum(cvxpy.norm(w, 2, axis=1))
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(cvxpy.pos(1 - margins)) / len(x) + beta * size), held)
    problem.solve(solver=cvxpy.CLARABEL)
    both = np.concatenate([v.value, w.value])
    lengths = np.linalg.norm(both, axis=1)
    used = lengths > 1e-6 * lengths.max()
    ends = np.repeat([1.0, -1.0], len(active))
    scale = np.sqrt(lengths[used])
    return Solution(float(problem.value), margins.value, both[used] / scale[:, None], ends[used] * scale)


def module_of(solution: Solution) -> nn.Module:
    """The network: two scores whose difference is f, in float64."""
    hidden, outgoing = torch.from_numpy(solution.hidden), torch.from_numpy(solution.outgoing)
    module = nn.Sequential(nn.Linear(2, len(hidden)), nn.ReLU(), nn.Linear(len(hidden), 2)).double()
    with torch.no_grad():
        module[0].weight.copy_(hidden[:, :2])
        module[0].bias.copy_(hidden[:, 2])
        module[2].weight.copy_(torch.stack([-outgoing / 2, outgoing / 2]))
        module[2].bias.zero_()
    return module


def fit(loss: Loss, width: int, x: Tensor, y: Tensor, eps: float, epochs: int) -> nn.Module:
    """A network of that width, trained on all points at once."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2)).double()
    initialise(module)
    net, radius = trace(module, x), SmoothRamp(0, epochs / 2, 0.0, eps)
    optimiser = torch.optim.Adam(module.parameters(), lr=2e-2)
    for epoch in range(epochs):
        optimiser.zero_grad()
        WarmUp(loss=loss, target=eps)(net, x, y, radius(epoch)).backward()
        optimiser.step()
    return module


def worst_hinge(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> float:
    """The mean over the samples of max(0, 1 - margin) with margins bounded by CROWN."""
    task = Task(trace(module, x), x, y, eps, Linf())
    with torch.no_grad():
        return float((1 - task.backward(task.rows)).clamp(min=0).mean())


def shares(module: nn.Module, x: Tensor, y: Tensor, eps: float) -> str:
    found = verifier.certify(verifier.trace(module, x), [(x, y)], eps, options=Options(timeout=5))
    return f"{100 * found.clean:6.1f} {100 * found.attacked:9.1f} {100 * found.certified():10.1f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--eps", type=float, default=0.06)
    parser.add_argument("--beta", type=float, default=1e-3)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--patterns", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=400)
    given = parser.parse_args()
    x, signs = moons(given.points, seed=0)
    solution = solve(x, signs, given.eps, given.beta, given.patterns)
    width = len(solution.hidden)
    print(f"{width} neurons; the program's value is {solution.value:.4f}\n")
    held, other = moons(100, seed=1)
    train, test = (
        (torch.from_numpy(a), torch.from_numpy(s > 0).long()) for a, s in ((x, signs), (held, other))
    )
    print("trained by     worst hinge   held out: clean  attacked  certified")
    modules = {"convex program": module_of(solution)}
    for loss in (IBP(), CROWNIBP()):
        modules[type(loss).__name__] = fit(loss, width, *train, given.eps, given.epochs)
    for name, module in modules.items():
        print(
            f"{name:<14} {worst_hinge(module, *train, given.eps):11.4f}   {shares(module, *test, given.eps):>27}"
        )


if __name__ == "__main__":
    main()
