"""Two networks compared: what joint bounds save beside separate ones, and beside inputs that are not tied either.

    python -m benchmarks.two_networks [--timeout S] [--only WORD]

Networks of random weights (seed 0, normal with variance 2 / inputs): copies with rounded and with pruned weights, to
differ by less than a level, one network on two inputs that differ by little, and networks that rise with an input. Also
the pruned ACAS Xu networks of the VNN-LIB 2.0 samples (in the folder that VERIFIER_SHARED names, as elsewhere),
around a point of their inputs. Levels are multiples of the largest difference among 50 thousand samples. No attack.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.common import exported, instances, machine
from verifier import Options, verify
from verifier.frontends.onnx import load
from verifier.specs import compile as compile_module
from verifier.transforms import prepare

SAMPLES = "vnnlib2_samples_2026/onnx"
ACAS = (("1_1", "pruned30"), ("3_4", "pruned5"))
POINT = (0.64, 0.1, -0.2, 0.475, -0.45)
"""In the middle of the samples' inputs, about."""


@dataclass(frozen=True)
class Case:
    """A query, and its networks by name."""

    name: str
    models: dict[str, bytes | Path]
    text: str


def network(sizes: Sequence[int], act: Callable[[], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(a, b)
        nn.init.normal_(layer.weight, std=(2 / a) ** 0.5)
        nn.init.normal_(layer.bias, std=0.1)
        layers += [layer] if i + 2 == len(sizes) else [layer, act()]
    return nn.Sequential(*layers).eval()


def changed(net: nn.Sequential, change: Callable[[Tensor], Tensor]) -> nn.Sequential:
    """A copy with changed weights."""
    copy = nn.Sequential(
        *[nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in net]
    )
    copy.load_state_dict({n: change(t) if n.endswith("weight") else t for n, t in net.state_dict().items()})
    return copy.eval()


def pruned(weight: Tensor) -> Tensor:
    """Without the smallest tenth."""
    return torch.where(weight.abs() < weight.abs().flatten().quantile(0.1), 0.0, weight)


def rising(net: nn.Sequential, noise: float) -> nn.Sequential:
    """Made to rise with its first input, but for what noise does."""
    for k, layer in enumerate(m for m in net if isinstance(m, nn.Linear)):
        with torch.no_grad():
            part = layer.weight if k else layer.weight[:, :1]
            part.abs_()
            layer.weight += noise * layer.weight.abs().mean() * torch.randn_like(layer.weight)
            layer.bias -= 0.3 * k
    return net


def query(kind: str, inputs: int, outputs: int, assertions: Sequence[str]) -> str:
    return f"""(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [1,{inputs}]) (declare-output Y float32 [1,{outputs}]))
(declare-network g ({kind} f) (declare-input U float32 [1,{inputs}]) (declare-output V float32 [1,{outputs}]))
""" + "\n".join(f"(assert {a})" for a in assertions)


def box(name: str, low: Tensor, high: Tensor) -> list[str]:
    ends = zip(low.tolist(), high.tolist(), strict=True)
    return [f"(and (>= {name}[0,{i}] {a:.8f}) (<= {name}[0,{i}] {b:.8f}))" for i, (a, b) in enumerate(ends)]


def equal(size: int, start: int = 0) -> list[str]:
    return [f"(== X[0,{i}] U[0,{i}])" for i in range(start, size)]


def near(size: int, distance: float) -> list[str]:
    pairs = [(f"X[0,{i}]", f"U[0,{i}]") for i in range(size)]
    return [f"(<= (- {a} {b}) {distance})" for pair in pairs for a, b in (pair, pair[::-1])]


def apart(level: float) -> str:
    return f"(or (>= (- Y[0,0] V[0,0]) {level:.8f}) (<= (- Y[0,0] V[0,0]) -{level:.8f}))"


def copies(name: str, f: nn.Module, g: nn.Module, center: Tensor, radius: float, factor: float) -> Case:
    """Two networks on one input."""
    size = len(center)
    x = center + radius * (2 * torch.rand(50_000, size) - 1)
    y, z = f(x), g(x)
    level = factor * float((y - z)[:, 0].detach().abs().max())
    models = {"f": exported(f, x[:1]), "g": exported(g, x[:1])}
    ends = box("X", center - radius, center + radius)
    return Case(
        f"{name}, {factor:g} times",
        models,
        query("isomorphic-to", size, y.shape[1], [*ends, *equal(size), apart(level)]),
    )


def moved(name: str, f: nn.Module, size: int, radius: float, distance: float, factor: float) -> Case:
    """One network on two inputs."""
    x = radius * (2 * torch.rand(50_000, size) - 1)
    y, z = f(x), f((x + distance * torch.randn_like(x).sign()).clamp(-radius, radius))
    level = factor * float((y - z)[:, 0].detach().abs().max())
    end = torch.full((size,), radius)
    both = [*box("X", -end, end), *box("U", -end, end), *near(size, distance), apart(level)]
    return Case(
        f"{name}, {factor:g} times", {"f": exported(f, x[:1])}, query("equal-to", size, y.shape[1], both)
    )


def monotone(name: str, f: nn.Module, size: int) -> Case:
    """An output that falls, strictly, where an input rises."""
    end = torch.ones(size)
    ends = [
        *box("X", -end, end),
        "(<= X[0,0] U[0,0])",
        "(<= U[0,0] 1.0)",
        *equal(size, 1),
        "(> Y[0,0] V[0,0])",
    ]
    outputs = f(torch.zeros(1, size)).shape[1]
    return Case(name, {"f": exported(f, torch.zeros(1, size))}, query("equal-to", size, outputs, ends))


def acas(factor: float, radius: float) -> Iterator[Case]:
    """The samples' networks, which have 5 inputs and 6 layers of 50 neurons, around one point."""
    folder = instances() / SAMPLES
    center = torch.tensor(POINT, dtype=torch.float64)
    for net, how in ACAS:
        paths = [
            folder / "nets" / f"ACASXU_run2a_{net}_batch_2000.onnx.gz",
            folder / "nets_pruned" / f"ACASXU_run2a_{net}_batch_2000_{how}.onnx.gz",
        ]
        graphs = [load(path).graph.to(torch.float64) for path in paths]
        x = center + radius * (2 * torch.rand(50_000, 5, dtype=torch.float64) - 1)
        feeds = [x.view(-1, *g.nodes[g.inputs[0]].shape) for g in graphs]
        y, z = (g.evaluate([feed])[0].flatten(1) for g, feed in zip(graphs, feeds, strict=True))
        level = factor * float((y - z)[:, 0].detach().abs().max())
        ends = box("X", center - radius, center + radius)
        text = query("isomorphic-to", 5, 5, [*ends, *equal(5), apart(level)])
        name = f"ACAS Xu {net} and {how}, radius {radius:g}, {factor:g} times"
        yield Case(name, dict(zip("fg", paths, strict=True)), text)


def cases() -> Iterator[Case]:
    torch.manual_seed(0)

    def rounded(w: Tensor) -> Tensor:
        return (64 * w).round() / 64

    for sizes, act, factor in (
        ((5, 30, 30, 3), nn.ReLU, 1.5),
        ((5, 50, 50, 50, 50, 3), nn.ReLU, 4),
        ((5, 30, 30, 3), nn.Tanh, 1.5),
        ((5, 50, 50, 50, 50, 3), nn.Sigmoid, 1.5),
    ):
        net, shape = network(sizes, act), "-".join(map(str, sizes))
        name = f"{act.__name__} {shape}"
        yield copies(f"{name}, rounded to 1/64", net, changed(net, rounded), torch.zeros(5), 0.1, factor)
        yield copies(f"{name}, pruned by 10 %", net, changed(net, pruned), torch.zeros(5), 0.1, factor)
    for sizes, act, factor in (
        ((5, 30, 30, 3), nn.ReLU, 4),
        ((3, 20, 20, 2), nn.ReLU, 2),
        ((3, 20, 20, 2), nn.Tanh, 2),
    ):
        name = f"{act.__name__} {'-'.join(map(str, sizes))}, inputs 0.01 apart"
        yield moved(name, network(sizes, act), sizes[0], 0.1, 0.01, factor)
    for sizes, act, noise in (
        ((4, 20, 20, 2), nn.ReLU, 0.0),
        ((4, 20, 20, 2), nn.Tanh, 0.0),
        ((4, 20, 20, 2), nn.Tanh, 0.1),
    ):
        name = f"{act.__name__} {'-'.join(map(str, sizes))}, rising{', with noise' if noise else ''}"
        yield monotone(name, rising(network(sizes, act), noise), sizes[0])
    yield from acas(1.5, 0.05)


def run(case: Case, how: str, timeout: float) -> str:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        spec = Path(folder) / "query.vnnlib"
        spec.write_text(case.text)
        if how != "joint":
            stack.enter_context(mock.patch.object(prepare, "carry_differences", lambda graph: graph))
        if how == "not tied":
            stack.enter_context(mock.patch.object(compile_module, "untie", return_value=None))
        began = time.perf_counter()
        found = verify(case.models, spec, timeout, Options(attack=False))
        seconds = time.perf_counter() - began
    return f"{found.status.value} {found.stats.domains} {seconds:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--only", default="", help="only cases whose name has this word")
    arguments = parser.parse_args()
    print(machine())
    ways = ("joint", "separate", "not tied")
    print(f"\nverdict, subdomains, seconds; limit {arguments.timeout:g} s\n")
    print(f"| case | {' | '.join(ways)} |\n|---|{'---|' * len(ways)}")
    for case in cases():
        if arguments.only in case.name:
            row = [run(case, how, arguments.timeout) for how in ways]
            print(f"| {case.name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
