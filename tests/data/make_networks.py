"""Train the small networks that tests, the demo and the benchmarks use, on scikit-learn's digits.

    python tests/data/make_networks.py              everything that is committed, into this folder
    python tests/data/make_networks.py --large DIR  digits_mlp_large.onnx (1.6 MB, 784-256x4-10) into DIR

The digits are real 8 x 8 scans, grey values 0..16, here divided by 16. Everything is seeded; on another
processor the trained weights may differ in their last digits, so networks and properties are always remade
together.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent
TEST_IMAGES = 200


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images [1597, 64] in 0..1 and labels, then 200 held-out ones."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.data / 16).float()
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return images[TEST_IMAGES:], labels[TEST_IMAGES:], images[:TEST_IMAGES], labels[:TEST_IMAGES]


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Block(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + skip(x)), the skip a strided 1 x 1 convolution where shapes
    change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (x if self.skip is None else self.skip(x)))


class ResidualCnn(nn.Module):
    """[N, 1, 8, 8] to [N, 10]: a convolution, two residual blocks, average pooling, one linear layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.block1 = Block(width, width, 1)
        self.block2 = Block(width, 2 * width, 2)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(2 * width * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block2(self.block1(functional.relu(self.bn(self.conv(x)))))
        return self.head(self.pool(y).flatten(1))


class Writer:
    """Collects the nodes of an ONNX graph (opset 13, fixed batch of 1); initialisers are named as in the
    module."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        self.module, self.shape = module, shape
        self.nodes: list[onnx.NodeProto] = []
        self.weights = {n: t.numpy() for n, t in module.state_dict().items() if t.dim() > 0}
        self.used: list[str] = []

    def add(self, operator: str, name: str, inputs: list[str], **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        self.used += [i for i in inputs if i in self.weights and i not in self.used]
        return name

    def linear(self, name: str, x: str) -> str:
        return self.add("Gemm", f"{name}.out", [x, f"{name}.weight", f"{name}.bias"], transB=1)

    def conv(self, name: str, x: str) -> str:
        m = self.module.get_submodule(name)
        assert isinstance(m, nn.Conv2d)
        inputs = [x, f"{name}.weight"] + ([f"{name}.bias"] if m.bias is not None else [])
        window = {"kernel_shape": m.kernel_size, "strides": m.stride, "pads": [*m.padding, *m.padding]}
        return self.add("Conv", f"{name}.out", inputs, **window)

    def norm(self, name: str, x: str) -> str:
        m = self.module.get_submodule(name)
        assert isinstance(m, nn.BatchNorm2d)
        inputs = [x] + [f"{name}.{p}" for p in ("weight", "bias", "running_mean", "running_var")]
        return self.add("BatchNormalization", f"{name}.out", inputs, epsilon=m.eps)

    def relu(self, name: str, x: str) -> str:
        return self.add("Relu", f"{name}.relu", [x])

    def save(self, path: Path, output: str) -> None:
        """Write the model and compare it with the module on random points in onnxruntime."""
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, (1, 10))],
            [numpy_helper.from_array(self.weights[n], n) for n in self.used],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="make_networks.py"
        )
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString())
        x = torch.rand(16, *self.shape[1:])
        with torch.no_grad():
            distance = (self.module(x) - run_onnx(path, x)).abs().max()
        assert distance < 1e-4, f"{path.name} differs from its module by {distance}"


def run_onnx(path: Path, x: Tensor) -> Tensor:
    """Outputs [N, 10] of the network in `path` for inputs [N, ...], in onnxruntime, one at a time."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.cat([torch.from_numpy(session.run(None, {"x": row.numpy()})[0]) for row in x.split(1)])


def write_mlp(module: nn.Sequential, path: Path) -> None:
    writer, value = Writer(module, (1, module[0].in_features)), "x"
    for name, layer in module.named_children():
        value = writer.linear(name, value) if isinstance(layer, nn.Linear) else writer.relu(name, value)
    writer.save(path, value)


def write_cnn(module: ResidualCnn, path: Path) -> None:
    writer = Writer(module, (1, 1, 8, 8))
    x = writer.relu("stem", writer.norm("bn", writer.conv("conv", "x")))
    for name in ("block1", "block2"):
        y = writer.relu(f"{name}.inner", writer.norm(f"{name}.bn1", writer.conv(f"{name}.conv1", x)))
        y = writer.norm(f"{name}.bn2", writer.conv(f"{name}.conv2", y))
        skip = x if module.get_submodule(name).skip is None else writer.conv(f"{name}.skip", x)
        x = writer.relu(name, writer.add("Add", f"{name}.sum", [y, skip]))
    x = writer.add("AveragePool", "pool.out", [x], kernel_shape=[2, 2], strides=[2, 2])
    writer.save(path, writer.linear("head", writer.add("Flatten", "flat", [x], axis=1)))


def attack(module: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, step: float) -> Tensor:
    """Projected gradient ascent on the cross-entropy, from a random start, inside the eps-ball and [0, 1]."""
    lower, upper = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    z = lower + (upper - lower) * torch.rand_like(x)
    for _ in range(steps):
        z.requires_grad_(True)
        grad = torch.autograd.grad(functional.cross_entropy(module(z), y, reduction="sum"), z)[0]
        z = (z.detach() + step * eps * grad.sign()).clamp(lower, upper)
    return z.detach()


def train(module: nn.Module, x: Tensor, y: Tensor, eps: float, epochs: int, rate: float = 3e-3) -> None:
    """Adversarial training: eps grows over the first half of the epochs, the rate falls to zero over all of
    them."""
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(module.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for epoch in range(epochs):
        radius = eps * min(1.0, 2 * (epoch + 1) / epochs)
        for batch in torch.randperm(len(x), generator=generator).split(64):
            module.eval()  # the attack uses the running statistics, as the deployed network does
            z = attack(module, x[batch], y[batch], radius, steps=4, step=0.5)
            module.train()
            optimiser.zero_grad()
            functional.cross_entropy(module(z), y[batch]).backward()
            optimiser.step()
        schedule.step()
    module.eval()


class Zonotope:
    """{center + sum_i e_i generators[i], e in [-1, 1]}: a bound of its own, sharing nothing with the package,
    that confirms the `unsat` properties (DeepZ: Singh et al. 2018)."""

    def __init__(self, center: Tensor, generators: Tensor) -> None:
        self.center, self.generators = center, generators

    def affine(self, f: Callable[[Tensor], Tensor]) -> Zonotope:
        """Under an affine map given as a function of batches."""
        zero = f(torch.zeros_like(self.center))
        return Zonotope(f(self.center), f(self.generators) - zero)

    def ends(self) -> tuple[Tensor, Tensor]:
        radius = self.generators.abs().sum(0, keepdim=True)
        return self.center - radius, self.center + radius

    def add(self, other: Zonotope) -> Zonotope:
        """Generators are shared in order; the shorter list lacks the newest ones."""
        count = max(len(self.generators), len(other.generators))
        total = self.center.new_zeros(count, *self.center.shape[1:])
        total[: len(self.generators)] += self.generators
        total[: len(other.generators)] += other.generators
        return Zonotope(self.center + other.center, total)

    def relu(self) -> Zonotope:
        lower, upper = self.ends()
        unstable = (lower < 0) & (upper > 0)
        slope = torch.where(unstable, upper / (upper - lower).clamp(min=1e-30), (upper > 0).to(lower))
        shift = torch.where(unstable, -slope * lower / 2, torch.zeros_like(lower))
        fresh = torch.diag(shift.flatten())[unstable.flatten()].view(-1, *shift.shape[1:])
        return Zonotope(slope * self.center + shift, torch.cat([slope * self.generators, fresh]))


def proved(module: nn.Module, x: Tensor, label: int, eps: float) -> bool:
    """Whether the zonotope proves that no other class reaches the label's score (by more than 1e-3)."""
    module = module.double()
    lower, upper = ((x.double() - eps).clamp(min=0), (x.double() + eps).clamp(max=1))
    radius = ((upper - lower) / 2).flatten()
    z = Zonotope((lower + upper) / 2, torch.diag(radius).view(-1, *x.shape[1:]))
    with torch.no_grad():
        if isinstance(module, ResidualCnn):
            z = z.affine(lambda t: module.bn(module.conv(t))).relu()
            for block in (module.block1, module.block2):
                y = z.affine(lambda t, b=block: b.bn1(b.conv1(t))).relu()
                y = y.affine(lambda t, b=block: b.bn2(b.conv2(t)))
                z = y.add(z if block.skip is None else z.affine(block.skip)).relu()
            z = z.affine(lambda t: module.head(module.pool(t).flatten(1)))
        else:
            for layer in module.children():
                z = z.relu() if isinstance(layer, nn.ReLU) else z.affine(layer)
        margin = z.affine(lambda t: t[:, [label]] - t[:, [j for j in range(10) if j != label]])
    module.float()
    return bool((margin.ends()[0] > 1e-3).all())


def robustness(x: Tensor, label: int, eps: float, comment: str) -> str:
    """VNN-LIB 1: an input within eps of x, in [0, 1], for which some other class scores at least as high."""
    values = x.flatten().double()
    lower, upper = (values - eps).clamp(0, 1), (values + eps).clamp(0, 1)
    lines = [f"; {comment}", ""]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(values))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(10)] + [""]
    for i, (low, high) in enumerate(zip(lower.tolist(), upper.tolist(), strict=True)):
        lines += [f"(assert (>= X_{i} {low:.8f}))", f"(assert (<= X_{i} {high:.8f}))"]
    lines += ["", "(assert (or"]
    lines += [f"    (and (>= Y_{j} Y_{label}))" for j in range(10) if j != label]
    return "\n".join([*lines, "))", ""])


def write_specs(name: str, module: nn.Module, x: Tensor, y: Tensor, holds: float, fails: float) -> None:
    """One property that holds (the zonotope proves it) and one that an attack, replayed in onnxruntime,
    violates."""
    with torch.no_grad():
        right = (module(x).argmax(1) == y).nonzero().flatten().tolist()
    for i in right:
        label = int(y[i])
        starts = x[i : i + 1].expand(64, *x.shape[1:])
        z = attack(module, starts, y[i].expand(64), fails, steps=100, step=0.05)
        scores = run_onnx(HERE / f"{name}.onnx", z)
        others = scores.clone()
        others[:, label] = -torch.inf
        if (others.amax(1) - scores[:, label]).max() > 0.05:
            comment = f"held-out digit {i}, labelled {label}, eps {fails}: an adversarial input exists"
            (HERE / f"{name}_sat.vnnlib").write_text(robustness(x[i], label, fails, comment))
            print(f"{name}_sat.vnnlib: {comment}")
            break
    else:
        raise RuntimeError(f"No attack on {name} succeeds at eps {fails}.")
    for i in right:
        label = int(y[i])
        if proved(module, x[i : i + 1], label, holds):
            comment = f"held-out digit {i}, labelled {label}, eps {holds}: no adversarial input exists"
            (HERE / f"{name}_unsat.vnnlib").write_text(robustness(x[i], label, holds, comment))
            print(f"{name}_unsat.vnnlib: {comment}")
            return
    raise RuntimeError(f"No digit of {name} is proved at eps {holds}.")


def report(name: str, module: nn.Module, x: Tensor, y: Tensor, radii: tuple[float, ...]) -> None:
    """Held-out accuracy, under attack, and certified by the zonotope on the first 50."""
    with torch.no_grad():
        clean = (module(x).argmax(1) == y).float().mean()
    print(f"{name}: held-out accuracy {clean:.3f}")
    for eps in radii:
        z = attack(module, x, y, eps, steps=40, step=0.1)
        with torch.no_grad():
            attacked = (module(z).argmax(1) == y).float().mean()
        certified = sum(proved(module, x[i : i + 1], int(y[i]), eps) for i in range(50)) / 50
        print(f"  eps {eps}: {attacked:.3f} under attack, {certified:.2f} certified")


def make_small() -> None:
    x, y, test_x, test_y = digits()
    np.savez_compressed(HERE / "digits_test.npz", images=test_x.numpy(), labels=test_y.numpy())

    torch.manual_seed(0)
    small = mlp(64, 32, 32, 10)
    train(small, x, y, eps=0.1, epochs=120)
    write_mlp(small, HERE / "digits_mlp.onnx")
    report("digits_mlp", small, test_x, test_y, (0.02, 0.05, 0.1))
    write_specs("digits_mlp", small, test_x, test_y, holds=0.05, fails=0.2)

    torch.manual_seed(0)
    cnn = ResidualCnn()
    train(cnn, x.view(-1, 1, 8, 8), y, eps=0.05, epochs=40)
    write_cnn(cnn, HERE / "digits_cnn.onnx")
    report("digits_cnn", cnn, test_x.view(-1, 1, 8, 8), test_y, (0.005, 0.01, 0.02))
    write_specs("digits_cnn", cnn, test_x.view(-1, 1, 8, 8), test_y, holds=0.01, fails=0.15)


def make_large(folder: Path) -> None:
    """A 784-256x4-10 network on digits upsampled to 28 x 28; input [1, 784] in 0..1."""
    x, y, test_x, test_y = digits()

    def grown(t: Tensor) -> Tensor:
        images = t.view(-1, 1, 8, 8)
        return functional.interpolate(images, (28, 28), mode="bilinear", align_corners=False).flatten(1)

    torch.manual_seed(0)
    large = mlp(784, 256, 256, 256, 256, 10)
    train(large, grown(x), y, eps=0.02, epochs=20, rate=1e-3)
    write_mlp(large, folder / "digits_mlp_large.onnx")
    report("digits_mlp_large", large, grown(test_x), test_y, (0.005,))


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--large", type=Path, metavar="DIR", help="write only the large network, into DIR")
    folder = parser.parse_args().large
    torch.set_num_threads(1)
    if folder is None:
        make_small()
    else:
        folder.mkdir(parents=True, exist_ok=True)
        make_large(folder)


if __name__ == "__main__":
    main()
