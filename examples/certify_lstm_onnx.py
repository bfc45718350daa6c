"""Train an LSTM, export it to ONNX, write properties as VNN-LIB files, and verify them from the command line.

    python examples/certify_lstm_onnx.py        (about fifteen seconds; needs scikit-learn)

Digits are read row by row. The first property holds, the second does not: a counterexample is printed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import verifier

TRAIN = 1600


class Classifier(nn.Module):
    """Rows [B, 8, 8] to ten scores [B, 10], read from the last state."""

    def __init__(self, units: int = 16) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, units, batch_first=True)
        self.head = nn.Linear(units, 10)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.layer(rows)[0][:, -1])


def train(net: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(100):
            optimiser.zero_grad()
            functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
        schedule.step()


def verify(network: Path, query: Path) -> None:
    """Runs the command; prints its verdict with what was proved, or with the counterexample."""
    words = ["verify", network.name, query.name, "--timeout", "60", "--json", "result.json"]
    print("$ verifier", *words)
    command = [sys.executable, "-m", "verifier", *words, "--no-progress"]
    subprocess.run(command, cwd=network.parent, check=True, capture_output=True)
    result = json.loads((network.parent / "result.json").read_text())
    print(result["verdict"])
    if result["holds"]:
        print(f"the right score exceeds the others by at least {result['bound']:.2f}\n")
    elif found := result["counterexample"]:
        image, scores = (
            np.array(t["values"], dtype=float).reshape(t["shape"][1:])
            for part in ("inputs", "outputs")
            for t in found[part].values()
        )
        print(np.array2string(image, precision=2, suppress_small=True))
        print(f"is read as a {scores.argmax()}; the scores are {np.round(scores, 2)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    x, y = torch.from_numpy(digits.images / 16).float()[order], torch.from_numpy(digits.target)[order]
    net = Classifier()
    train(net, x[:TRAIN], y[:TRAIN], given.epochs)
    net.eval()
    correct = net(x[TRAIN:]).argmax(1) == y[TRAIN:]
    print(f"accuracy on held-out images {correct.float().mean():.3f}\n")
    chosen = TRAIN + int(correct.nonzero()[0])
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder, "lstm.onnx")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a batch that can only be 1, which is meant
            torch.onnx.export(net, (x[:1],), network, dynamo=False)
        for eps in (0.01, 0.1):
            query = Path(folder, f"digit_{eps}.vnnlib")
            claim = verifier.robust(x[chosen : chosen + 1], int(y[chosen]), eps, clip=(0, 1))
            claim.to_vnnlib(query, output_shape=(1, 10))
            print(f"Claim: every image within {eps} of image {chosen} is read as a {y[chosen]}:")
            verify(network, query)


if __name__ == "__main__":
    main()
