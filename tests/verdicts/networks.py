"""Random tiny networks and properties, each in three forms: ONNX bytes, VNN-LIB text, and a description for the
oracle of `milp.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True, eq=False)
class Layer:
    """`kind` applied to the values numbered `inputs` (0 is the network's input), with its constants."""

    kind: str
    inputs: tuple[int, ...]
    size: int
    constants: dict[str, NDArray | float] = field(default_factory=dict)

    def windows(self) -> list[range]:
        """Which elements of the argument each element of a pool is made of."""
        kernel, stride = int(self.constants["kernel"]), int(self.constants["stride"])
        return [range(stride * k, stride * k + kernel) for k in range(self.size)]


@dataclass(frozen=True, eq=False)
class Net:
    """Values 0 .. len(layers) are vectors; the last one is the output."""

    inputs: int
    layers: tuple[Layer, ...]

    @property
    def outputs(self) -> int:
        return self.layers[-1].size

    @property
    def kinks(self) -> int:
        """Piecewise-linear neurons; a clip counts twice, a maximum of k values k - 1 times."""
        each = {"affine": 0, "add": 0, "concat": 0, "mean": 0, "clip": 2}
        pools = {
            i: int(layer.constants["kernel"]) - 1
            for i, layer in enumerate(self.layers)
            if layer.kind == "pool"
        }
        return sum(pools.get(i, each.get(layer.kind, 1)) * layer.size for i, layer in enumerate(self.layers))

    def evaluate(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points [N, inputs] to outputs [N, outputs], in float64."""
        values = [x]
        for layer in self.layers:
            values.append(_evaluate(layer, [values[i] for i in layer.inputs]))
        return values[-1]


def _evaluate(layer: Layer, xs: list[NDArray]) -> NDArray:
    c, x = layer.constants, xs[0]
    match layer.kind:
        case "affine":
            return x @ np.asarray(c["weight"], float).T + np.asarray(c["bias"], float)
        case "relu":
            return np.maximum(x, 0)
        case "leaky":
            return np.where(x < 0, float(c["alpha"]) * x, x)
        case "abs":
            return np.abs(x)
        case "clip":
            return np.clip(x, float(c["low"]), float(c["high"]))
        case "sign":
            return np.sign(x)
        case "binary":
            return np.where(x < 0, -1.0, 1.0)
        case "pool" | "mean":
            windows = np.stack([x[:, own] for own in layer.windows()], 1)
            return windows.max(2) if layer.kind == "pool" else windows.mean(2)
        case "add":
            return x + xs[1]
        case "max":
            return np.maximum(x, xs[1])
        case "min":
            return np.minimum(x, xs[1])
        case "concat":
            return np.concatenate(xs, 1)
    raise ValueError(layer.kind)


KINDS = ("relu", "relu", "relu", "leaky", "abs", "clip", "pool", "max", "min")


def random_net(
    random: np.random.Generator, kinks: int = 24, kinds: tuple[str, ...] = KINDS, most_inputs: int = 3
) -> Net:
    """About `kinks` piecewise-linear neurons of the given kinds, with skip connections. "windows" are max and average
    pools of any size and overlap."""
    inputs = int(random.integers(1, most_inputs + 1))
    layers: list[Layer] = []
    sizes = [inputs]

    def add(kind: str, sources: tuple[int, ...], size: int, **constants) -> int:
        layers.append(Layer(kind, sources, size, constants))
        sizes.append(size)
        return len(layers)

    def affine(source: int, size: int) -> int:
        weight = random.standard_normal((size, sizes[source])) / np.sqrt(sizes[source])
        weight *= random.random(weight.shape) < 0.9
        bias = 0.3 * random.standard_normal(size) * (random.random() < 0.9)
        return add("affine", (source,), size, weight=weight.astype(np.float32), bias=bias.astype(np.float32))

    current, left = 0, kinks
    while left > 0:
        width = int(random.integers(2, 7))
        before = current
        current = affine(current, width)
        kind = str(random.choice(kinds))
        if kind == "pool":
            current = affine(before, 2 * width)
            current = add("pool", (current,), width, kernel=2, stride=2)
        elif kind == "windows":
            kernel, stride = int(random.integers(2, 5)), int(random.integers(1, 4))
            current = affine(before, (width - 1) * stride + kernel)
            if random.random() < 0.5:
                current = add("relu", (current,), sizes[current])
                left -= sizes[current]
            pool = str(random.choice(["pool", "mean"]))
            current = add(pool, (current,), width, kernel=kernel, stride=stride)
            left -= (kernel - 2) * width if pool == "pool" else -width  # counted once more below
        elif kind in ("max", "min"):
            current = add(kind, (current, affine(before, width)), width)
        elif kind == "clip":
            low, high = np.sort(random.standard_normal(2)).astype(np.float32)
            current = add("clip", (current,), width, low=float(low), high=float(high))
            left -= width
        else:
            alpha = float(np.float32(random.choice([0.01, 0.2, -0.5, 1.5])))
            current = add(kind, (current,), width, alpha=alpha)
        left -= width
        skip = [i for i in range(len(sizes)) if sizes[i] == width and i != current]
        if skip and random.random() < 0.4:
            current = add("add", (current, int(random.choice(skip))), width)
        elif random.random() < 0.2:
            other = int(random.integers(0, len(sizes)))
            current = add("concat", (current, other), sizes[current] + sizes[other])
    affine(current, int(random.integers(1, 4)))
    return Net(inputs, tuple(layers))


def to_onnx(net: Net) -> bytes:
    """The network as an ONNX model of float32."""
    nodes, stored = [], []

    def constant(name: str, array) -> str:
        stored.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    for i, layer in enumerate(net.layers, 1):
        xs, y, c = [f"v{j}" for j in layer.inputs], f"v{i}", layer.constants
        match layer.kind:
            case "affine" if i % 2:
                weight, bias = constant(f"w{i}", c["weight"]), constant(f"b{i}", c["bias"])
                nodes.append(helper.make_node("Gemm", [xs[0], weight, bias], [y], transB=1))
            case "affine":
                weight, bias = constant(f"w{i}", np.asarray(c["weight"]).T), constant(f"b{i}", c["bias"])
                nodes.append(helper.make_node("MatMul", [xs[0], weight], [f"m{i}"]))
                nodes.append(helper.make_node("Add", [f"m{i}", bias], [y]))
            case "leaky":
                nodes.append(helper.make_node("LeakyRelu", xs, [y], alpha=c["alpha"]))
            case "clip":
                ends = [constant(f"{k}{i}", np.float32(c[k])) for k in ("low", "high")]
                nodes.append(helper.make_node("Clip", [*xs, *ends], [y]))
            case "pool" | "mean":
                shape = constant(f"s{i}", np.array([1, 1, -1], np.int64))
                back = constant(f"t{i}", np.array([1, layer.size], np.int64))
                kind = "MaxPool" if layer.kind == "pool" else "AveragePool"
                sizes = {"kernel_shape": [int(c["kernel"])], "strides": [int(c["stride"])]}
                nodes.append(helper.make_node("Reshape", [xs[0], shape], [f"r{i}"]))
                nodes.append(helper.make_node(kind, [f"r{i}"], [f"p{i}"], **sizes))
                nodes.append(helper.make_node("Reshape", [f"p{i}", back], [y]))
            case "concat":
                nodes.append(helper.make_node("Concat", xs, [y], axis=1))
            case "binary":  # as quantised networks are exported
                nodes.append(helper.make_node("Sign", xs, [f"s{i}"]))
                nodes.append(
                    helper.make_node("Add", [f"s{i}", constant(f"c{i}", np.float32(0.1))], [f"t{i}"])
                )
                nodes.append(helper.make_node("Sign", [f"t{i}"], [y]))
            case kind:
                nodes.append(helper.make_node(kind.capitalize(), xs, [y]))
    last = f"v{len(net.layers)}"
    inputs = [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [1, net.inputs])]
    outputs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, net.outputs])]
    graph = helper.make_graph(nodes, "net", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


@dataclass(frozen=True)
class Leaf:
    """sum of coefficient * variable (inputs first, then outputs) + constant <= 0, or < 0."""

    terms: tuple[tuple[int, float], ...]
    constant: float
    strict: bool = False


@dataclass(frozen=True)
class Join:
    """All (`both`) or one of the children."""

    both: bool
    children: tuple[Join | Leaf, ...]


@dataclass(frozen=True, eq=False)
class Case:
    """A property over the box `lower`, `upper` [inputs]: is there a point of it that satisfies `formula`?"""

    net: Net
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    formula: Join | Leaf

    def text(self) -> str:
        """As VNN-LIB 1."""
        n = self.net.inputs
        names = [f"X_{i}" for i in range(n)] + [f"Y_{i}" for i in range(self.net.outputs)]
        lines = [f"(declare-const {name} Real)" for name in names]
        for i in range(n):
            lines.append(f"(assert (>= X_{i} {self.lower[i]!s}))")
            lines.append(f"(assert (<= X_{i} {self.upper[i]!s}))")
        lines.append(f"(assert {_text(self.formula, names)})")
        return "\n".join(lines)


def _text(formula: Join | Leaf, names: list[str]) -> str:
    if isinstance(formula, Join):
        return f"({'and' if formula.both else 'or'} {' '.join(_text(c, names) for c in formula.children)})"
    sign = "<" if formula.strict else "<="
    (first, a), *rest = formula.terms
    if not rest and a == 1.0:
        return f"({sign} {names[first]} {-formula.constant!s})"
    if not rest and a == -1.0:
        return f"({sign.replace('<', '>')} {names[first]} {formula.constant!s})"
    terms = " ".join(f"(* {c!s} {names[i]})" for i, c in formula.terms)
    return f"({sign} (+ {terms} {formula.constant!s}) 0)"


LARGER_KINDS = ("relu", "relu", "relu", "sign", "windows", "windows", "leaky", "clip")


def larger_case(seed: int) -> Case:
    """At most 60 kinks and 12 inputs, with residual connections, pools of both kinds and signs."""
    random = np.random.default_rng(seed)
    while True:
        net = random_net(random, int(random.integers(8, 56)), LARGER_KINDS, most_inputs=12)
        if net.kinks <= 60:
            return random_case(random, net)


def random_case(random: np.random.Generator, net: Net) -> Case:
    """A property whose thresholds lie near the extremes that a sample shows, so that both verdicts occur."""
    n = net.inputs
    center = random.standard_normal(n)
    radius = random.choice([0.05, 0.3, 1.0, 2.0]) * random.random(n) + 0.01
    lower, upper = np.round(center - radius, 6), np.round(center + radius, 6)
    points = lower + (upper - lower) * random.random((400, n))
    columns = np.concatenate([points, net.evaluate(points)], 1)

    def leaf(inputs: bool) -> Leaf:
        pool = np.arange(n) if inputs else np.arange(n, n + net.outputs)
        chosen = random.choice(pool, min(len(pool), int(random.integers(1, 3))), replace=False)
        signs = random.choice([1.0, -1.0], len(chosen))
        if random.random() < 0.3:
            signs = signs * np.round(random.random(len(chosen)) + 0.5, 3)
        values = columns[:, chosen] @ signs
        spread = float(np.ptp(values))
        if inputs:
            at = float(np.quantile(values, random.uniform(0.05, 0.9)))
        else:
            at = float(values.min()) + spread * random.choice([-0.4, -0.1, -0.03, 0.02, 0.2])
        terms = tuple((int(i), float(s)) for i, s in zip(chosen, signs, strict=True))
        return Leaf(terms, -round(at, 6), bool(random.random() < 0.2))

    def tree(depth: int) -> Join | Leaf:
        if depth == 0 or random.random() < 0.25:
            return leaf(bool(random.random() < 0.25))
        children = tuple(tree(depth - 1) for _ in range(int(random.integers(2, 4))))
        return Join(bool(random.random() < 0.5), children)

    formula = tree(int(random.integers(0, 4)))
    if random.random() < 0.25:  # a disjunction over boxes of inputs, as in VNN-LIB's multi-box files
        boxes = []
        for _ in range(int(random.integers(2, 5))):
            ends = np.sort(random.uniform(lower, upper, (2, n)), axis=0)
            ends = np.round(ends, 6)
            bounds = [Leaf(((i, -1.0),), float(ends[0, i])) for i in range(n)]
            bounds += [Leaf(((i, 1.0),), -float(ends[1, i])) for i in range(n)]
            boxes.append(Join(True, (*bounds, tree(1))))
        several = Join(False, tuple(boxes))
        formula = several if random.random() < 0.5 else Join(True, (formula, several))
    return Case(net, lower, upper, formula)


def score(formula: Join | Leaf, columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """The formula's score at points [N, inputs + outputs]."""
    if isinstance(formula, Leaf):
        return np.sum([a * columns[:, i] for i, a in formula.terms], axis=0) + formula.constant
    parts = np.stack([score(child, columns) for child in formula.children])
    return parts.max(0) if formula.both else parts.min(0)
