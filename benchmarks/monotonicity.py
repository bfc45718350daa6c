"""In which share of samples an output provably grows, or falls, along a whole feature: scikit-learn's tabular data.

    python -m benchmarks.monotonicity [--samples N] [--methods METHOD ...] [--radius R] [--seconds S]

A network of two layers of 32 ReLU neurons is trained (seeded, with weight decay) on diabetes progression (10 features)
and on breast cancer (30 features, the logit), features scaled to [0, 1]. For held-out samples each feature runs over
[0, 1] while the others stay within R of the sample (0). The last columns are of branch and bound after CROWN, within S
seconds: `neither` are samples in which derivatives of both signs were found, `open` those that nothing is known of.
Seconds are for all features and samples together.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

import verifier
from benchmarks.common import machine


def data(name: str) -> tuple[Tensor, Tensor, list[str]]:
    """Features in [0, 1], targets of unit scale, and the features' names."""
    from sklearn import datasets

    found = datasets.load_diabetes(scaled=False) if name == "diabetes" else datasets.load_breast_cancer()
    x, y = torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target, dtype=torch.float32)
    x = (x - x.amin(0)) / (x.amax(0) - x.amin(0))
    y = (y - y.mean()) / y.std() if name == "diabetes" else y
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], y[order], list(found.feature_names)


def trained(x: Tensor, y: Tensor, classes: bool) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    adam = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.3)
    loss = nn.BCEWithLogitsLoss() if classes else nn.MSELoss()
    for _ in range(300):
        for rows in torch.randperm(len(x)).split(64):
            adam.zero_grad()
            loss(net(x[rows])[:, 0], y[rows]).backward()
            adam.step()
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=["interval", "crown", "alpha-crown"])
    parser.add_argument("--radius", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    print(machine())
    for name in ("diabetes", "breast cancer"):
        x, y, names = data(name)
        cut = len(x) - arguments.samples
        net = trained(x[:cut], y[:cut], name != "diabetes")
        model = verifier.trace(net, x[:1])
        found = {
            m: verifier.monotonicity(model, x[cut:], 0.0, 1.0, method=m, radius=arguments.radius)
            for m in arguments.methods
        }
        last = found["branch and bound"] = verifier.monotonicity(
            model, x[cut:], 0.0, 1.0, method="crown", radius=arguments.radius, timeout=arguments.seconds
        )
        print(f"\n{name}: " + ", ".join(f"{m} {f.seconds:.1f} s" for m, f in found.items()))
        head = " | ".join(found)
        counts = ("increasing", "decreasing", "neither", "open")
        print(
            f"\n| feature | {head} | {' | '.join(counts)} |\n| --- |{' ---: |' * (len(found) + len(counts))}"
        )
        for k, feature in enumerate(last.features):
            shares = " | ".join(f"{f.features[k].share:.2f}" for f in found.values())
            numbers = " | ".join(str(getattr(feature, c)) for c in counts)
            print(f"| {names[k]} | {shares} | {numbers} |")


if __name__ == "__main__":
    main()
