"""Train a classifier that can be certified, certify it, and write it out for `verifier bench`.

    python examples/train_certified.py                          (digits, about a minute; needs scikit-learn)
    python examples/train_certified.py --set mnist --data MNIST_FOLDER --eps 0.1 --loss SABR
    python examples/train_certified.py --set cifar10 --data CIFAR_FOLDER --eps 0.00784 --loss MTLIBP --device cuda

Every epoch leaves a checkpoint in `--out`, from which `--resume` goes on as if nothing had happened. TensorBoard gets
its curves in `--out`/logs where it is installed, and where matplotlib is, history.png shows clean and certified
accuracy and tightness. At the end there are model.onnx, a VNN-LIB query for each of the first test images, and
instances.csv:

    verifier bench OUT/benchmark
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from image_data import Images, load
from torch import Tensor, nn

import verifier
from verifier import training
from verifier.options import Options
from verifier.training import CROWNIBP, Linf, Network, Ramp, SmoothRamp, WarmUp, propagation_tightness

CLIP = (0.0, 1.0)
SETTINGS = ("set", "loss", "eps", "epochs", "batch", "rate", "width", "seed")
"""What a training that goes on must have in common with how it began."""
CURVES = ("loss", "clean", "certified", "tightness")
LOSSES = ("IBP", "CROWNIBP", "SABR", "TAPS", "STAPS", "MTLIBP", "CCIBP", "ExpIBP", "Adversarial")


def network(shape: tuple[int, ...], width: int) -> nn.Module:
    """Three convolutions and two linear layers for images [C, H, W] of at least 8 x 8 pixels."""
    channels, height, side = shape
    c = width
    return nn.Sequential(
        nn.Conv2d(channels, c, 3, 1, 1),
        nn.BatchNorm2d(c),
        nn.ReLU(),
        nn.Conv2d(c, 2 * c, 4, 2, 1),
        nn.BatchNorm2d(2 * c),
        nn.ReLU(),
        nn.Conv2d(2 * c, 2 * c, 3, 1, 1),
        nn.BatchNorm2d(2 * c),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * c * (height // 2) * (side // 2), 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


@dataclass
class Run:
    """What a checkpoint holds besides weights and optimiser."""

    epoch: int
    history: list[dict[str, float]]


class Trainer:
    """A training that can be interrupted after any epoch."""

    def __init__(self, given: argparse.Namespace, data: Images) -> None:
        self.given, self.data = given, data
        self.device = torch.device(given.device)
        torch.manual_seed(given.seed)
        self.module = network(tuple(data.x.shape[1:]), given.width)
        training.initialise(self.module)
        self.module.to(self.device)
        self.net: Network = training.trace(self.module, data.x[:1])
        self.loss = getattr(training, given.loss)(near=Linf(clip=CLIP))
        self.radius = SmoothRamp(1, max(2, given.epochs // 2), 0.0, given.eps)
        self.optimiser = torch.optim.Adam(self.module.parameters(), lr=given.rate)
        marks = [round(given.epochs * share) for share in (0.75, 0.9)]
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimiser, marks, 0.2)
        self.run = Run(0, [])

    def batches(self) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Epoch with its fraction, images and labels, in an order that the epoch's number decides."""
        generator = torch.Generator().manual_seed(self.given.seed * 10007 + self.run.epoch)
        order = torch.randperm(len(self.data.x), generator=generator).split(self.given.batch)
        for k, rows in enumerate(order):
            x, y = self.data.x[rows].to(self.device), self.data.y[rows].to(self.device)
            yield self.run.epoch + k / len(order), x, y

    def train_epoch(self) -> float:
        """The mean loss."""
        self.module.train()
        total, steps = 0.0, 0
        for now, x, y in self.batches():
            chosen = self.loss
            if isinstance(chosen, CROWNIBP):
                chosen = replace(chosen, beta=Ramp(1, max(2, self.given.epochs // 2), 1.0, 0.0)(now))
            value = WarmUp(loss=chosen, target=self.given.eps)(self.net, x, y, self.radius(now))
            self.optimiser.zero_grad()
            (value + 1e-6 * training.l1(self.module)).backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 10)
            self.optimiser.step()
            total, steps = total + value.item(), steps + 1
        self.schedule.step()
        self.run.epoch += 1
        return total / steps

    def measure(self) -> dict[str, float]:
        """On the first test images: shares that are right, and that intervals certify at the final radius."""
        self.module.eval()
        x, y = (t[: self.given.count].to(self.device) for t in (self.data.test_x, self.data.test_y))
        with torch.no_grad():
            clean = float((self.module(x).argmax(1) == y).float().mean())
            task = training.Task(self.net, x, y, self.given.eps, Linf(clip=CLIP))
            certified = float((task.margins(task.enclosures).lower.amin(1) > 0).float().mean())
        tight = propagation_tightness(self.net, x, y, self.given.eps, Linf(clip=CLIP), neurons=8)
        return {"clean": clean, "certified": certified, "tightness": tight.margins}

    def save(self, path: Path) -> None:
        state = {
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "epoch": self.run.epoch,
            "history": self.run.history,
            "settings": self.settings,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)  # a checkpoint is whole or the one before

    @property
    def settings(self) -> dict[str, object]:
        return {name: getattr(self.given, name) for name in SETTINGS}

    def restore(self, path: Path) -> None:
        """Ends the script where the checkpoint is of another training."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in self.settings.items():
            if state["settings"][name] != value:
                sys.exit(
                    f"{path} is of --{name} {state['settings'][name]}, not {value}: say the same, or another --out"
                )
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        self.run = Run(state["epoch"], state["history"])


class Board:
    """TensorBoard's curves; nothing where it is not installed."""

    def __init__(self, folder: Path, history: list[dict[str, float]]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print("tensorboard is not installed: no logs are written (pip install tensorboard)")
            self.writer = None
            return
        # A run that was killed may have lost its last points: what it wrote is set aside and written again.
        self.writer = SummaryWriter(str(folder), purge_step=0 if history else None)
        for row in history:
            self.add(row)

    def add(self, row: dict[str, float]) -> None:
        if self.writer is not None:
            for name in CURVES:
                self.writer.add_scalar(name, row[name], int(row["epoch"]))
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def plot(history: list[dict[str, float]], path: Path) -> bool:
    """Accuracies and tightness over the epochs; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    for name in ("clean", "certified", "tightness"):
        axes.plot([row["epoch"] for row in history], [row[name] for row in history], label=name)
    axes.set_xlabel("epoch")
    axes.set_ylim(0, 1)
    axes.legend()
    figure.savefig(path)
    return True


def export(trainer: Trainer, folder: Path, queries: int, seconds: float) -> None:
    """model.onnx, a query for each of the first test images that are classified rightly, and instances.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    module, data = trainer.module.cpu().eval(), trainer.data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is deprecated
        torch.onnx.export(module, (data.test_x[:1],), folder / "model.onnx", dynamo=False)
    right = (module(data.test_x[: 4 * queries]).argmax(1) == data.test_y[: 4 * queries]).nonzero()[:, 0]
    rows = []
    for i in right[:queries].tolist():
        claim = verifier.robust(data.test_x[i : i + 1], int(data.test_y[i]), trainer.given.eps, clip=CLIP)
        claim.to_vnnlib(folder / f"image_{i}.vnnlib", output_shape=(1, 10))
        rows.append(f"model.onnx,image_{i}.vnnlib,{seconds:g}\n")
    (folder / "instances.csv").write_text("".join(rows))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=("digits", "mnist", "cifar10"), default="digits")
    parser.add_argument("--data", type=Path, help="the folder with MNIST's or CIFAR-10's files")
    parser.add_argument("--loss", choices=LOSSES, default="IBP")
    parser.add_argument("--eps", type=float, default=0.1, help="of the pixel range 0..1")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--count", type=int, default=100, help="how many test images are judged")
    parser.add_argument(
        "--timeout", type=float, default=5.0, help="seconds of branch and bound per test image"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("certified"))
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


def main() -> None:
    given = parsed()
    given.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(given, load(given.set, given.data))
    checkpoint = given.out / "checkpoint.pt"
    if given.resume and checkpoint.is_file():
        trainer.restore(checkpoint)
        print(f"resumed after epoch {trainer.run.epoch}")
    board = Board(given.out / "logs", trainer.run.history)
    while trainer.run.epoch < given.epochs:
        row = {"epoch": trainer.run.epoch + 1, "loss": trainer.train_epoch(), **trainer.measure()}
        trainer.run.history.append(row)
        trainer.save(checkpoint)
        words = (f"{k} {v:.3f}" if k != "epoch" else f"epoch {v:3d}" for k, v in row.items())
        print("  ".join(words), flush=True)
        board.add(row)
    board.close()
    (given.out / "history.json").write_text(json.dumps(trainer.run.history))
    if not plot(trainer.run.history, given.out / "history.png"):
        print("matplotlib is not installed: history.json has the curves, and there is no plot")
    export(trainer, given.out / "benchmark", 5, given.timeout)
    loader = zip(trainer.data.test_x.split(50), trainer.data.test_y.split(50), strict=True)
    found = verifier.certify(
        verifier.trace(trainer.module, trainer.data.test_x[:1]),
        loader,
        given.eps,
        clip=CLIP,
        count=given.count,
        options=Options(timeout=given.timeout),
    )
    for cells in found.rows()[1]:
        print("{:<12} {:>7} {:>9} {:>9}".format(*cells))


if __name__ == "__main__":
    main()
