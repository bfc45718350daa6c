"""Whole instances in many dialects, which are decided exactly beside the verifier.

All inputs but one are fixed, so that the outputs are piecewise linear functions of one number; between their kinks and
the roots of the comparisons nothing changes, and a formula is asked at each of these places in rational arithmetic.
"""

from __future__ import annotations

import gzip
import math
import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import verifier
from verifier.results import Status

IR = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
COMPARE: dict[str, Callable[[Fraction, Fraction], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq, "!=": operator.ne
}  # fmt: skip
ROUNDING = Fraction(1, 10**4)
"""A `sat` speaks of what onnxruntime computes, which may be off by less."""
OPEN = 0.01
"""What has this much room has to be decided."""


# ---------------------------------------------------------------------------------------------- networks
@dataclass(frozen=True)
class Layer:
    """Affine, then a function of each value: the identity, relu, leaky (slope 1/4), abs, or clip (to [-1, 1])."""

    weight: list[list[Fraction]]  # [out][in]
    bias: list[Fraction]
    function: str


@dataclass(frozen=True)
class Piece:
    """The values of some nodes on an interval of the free input t: constant + slope t."""

    lower: Fraction
    upper: Fraction
    constants: list[Fraction]
    slopes: list[Fraction]


KINKS = {"": (), "relu": (0,), "leaky": (0,), "abs": (0,), "clip": (-1, 1)}


def through(function: str, constant: Fraction, slope: Fraction, at: Fraction) -> tuple[Fraction, Fraction]:
    """What becomes of a linear function where its value is `at`."""
    scale = {"relu": 0, "leaky": Fraction(1, 4), "abs": -1}
    if function in scale and at < 0:
        return constant * scale[function], slope * scale[function]
    if function == "clip" and not -1 <= at <= 1:
        return Fraction(-1 if at < 0 else 1), Fraction(0)
    return constant, slope


def layer_pieces(layer: Layer, piece: Piece) -> list[Piece]:
    """The piece behind a layer, cut at its kinks."""

    def dots(values: Sequence[Fraction], bias: Sequence[Fraction]) -> list[Fraction]:
        return [
            sum((w * v for w, v in zip(row, values, strict=True)), b)
            for row, b in zip(layer.weight, bias, strict=True)
        ]

    constants = dots(piece.constants, layer.bias)
    slopes = dots(piece.slopes, [Fraction(0)] * len(layer.bias))
    cuts = {piece.lower, piece.upper}
    for c, s in zip(constants, slopes, strict=True):
        cuts |= {(k - c) / s for k in KINKS[layer.function] if s and piece.lower < (k - c) / s < piece.upper}
    ends, found = sorted(cuts), []
    for lower, upper in list(pairwise(ends)) or [(ends[0], ends[0])]:
        middle = (lower + upper) / 2
        parts = [
            through(layer.function, c, s, c + s * middle) for c, s in zip(constants, slopes, strict=True)
        ]
        found.append(Piece(lower, upper, [c for c, _ in parts], [s for _, s in parts]))
    return found


# ---------------------------------------------------------------------------------------------- formulas
@dataclass(frozen=True)
class Atom:
    """sum of coefficients of X and Y, compared with a number."""

    x: dict[int, Fraction]
    y: dict[int, Fraction]
    sign: str
    number: Fraction


@dataclass(frozen=True)
class Junction:
    word: str  # and, or
    children: tuple[Junction | Atom, ...]


def atoms_of(tree: Junction | Atom) -> list[Atom]:
    return [tree] if isinstance(tree, Atom) else [a for child in tree.children for a in atoms_of(child)]


def linear(atom: Atom, x: Piece, y: Piece) -> tuple[Fraction, Fraction]:
    """The left side less the right one, constant and slope."""
    parts = [(v, x, i) for i, v in atom.x.items()] + [(v, y, i) for i, v in atom.y.items()]
    constant = sum((v * p.constants[i] for v, p, i in parts), -atom.number)
    return constant, sum((v * p.slopes[i] for v, p, i in parts), Fraction(0))


def holds(tree: Junction | Atom, x: Piece, y: Piece, t: Fraction) -> bool:
    if isinstance(tree, Atom):
        constant, slope = linear(tree, x, y)
        return COMPARE[tree.sign](constant + slope * t, Fraction(0))
    return (all if tree.word == "and" else any)(holds(child, x, y, t) for child in tree.children)


def relaxed(tree: Junction | Atom, by: Fraction) -> Junction | Atom:
    """What holds of all that nearly satisfies it."""
    if isinstance(tree, Junction):
        return Junction(tree.word, tuple(relaxed(child, by) for child in tree.children))
    if tree.sign in ("==", "!="):
        low, high = (
            replace(tree, sign=">=", number=tree.number - by),
            replace(tree, sign="<=", number=tree.number + by),
        )
        return Junction("and", (low, high)) if tree.sign == "==" else Junction("or", (low, high))
    return replace(tree, number=tree.number + (by if "<" in tree.sign else -by))


@dataclass(frozen=True)
class Instance:
    fixed: list[Fraction]  # the inputs but for the free one, whose entry counts for nothing
    free: int
    lower: Fraction
    upper: Fraction
    layers: tuple[Layer, ...]
    formula: Junction | Atom

    def solutions(self, formula: Junction | Atom) -> tuple[bool, Fraction]:
        """Whether there is one, and the length of the longest interval of such."""
        constants = [Fraction(0) if i == self.free else v for i, v in enumerate(self.fixed)]
        slopes = [Fraction(int(i == self.free)) for i in range(len(self.fixed))]
        pieces = [Piece(self.lower, self.upper, constants, slopes)]
        x = pieces[0]
        for layer in self.layers:
            pieces = [part for piece in pieces for part in layer_pieces(layer, piece)]
        found, longest = False, Fraction(0)
        for y in pieces if self.lower <= self.upper else ():
            cuts = {y.lower, y.upper}
            for atom in atoms_of(formula):
                c, s = linear(atom, x, y)
                cuts |= {-c / s} if s and y.lower < -c / s < y.upper else set()
            ends = sorted(cuts)
            found |= any(holds(formula, x, y, t) for t in ends)
            for a, b in pairwise(ends):
                if holds(formula, x, y, (a + b) / 2):
                    found, longest = True, max(longest, b - a)
        return found, longest


def grid(dice: random.Random, size: int, parts: int = 4) -> Fraction:
    return Fraction(dice.randint(-size * parts, size * parts), parts)


def random_instance(dice: random.Random, signs: Sequence[str]) -> Instance:
    sizes = [dice.randint(1, 3), *[dice.randint(1, 4) for _ in range(dice.randint(0, 2))], dice.randint(1, 3)]
    layers = []
    for i, (n, m) in enumerate(pairwise(sizes)):
        function = dice.choice(list(KINKS)) if i < len(sizes) - 2 else dice.choice(["", "", "", "relu"])
        weight = [[grid(dice, 2) for _ in range(n)] for _ in range(m)]
        layers.append(Layer(weight, [grid(dice, 1) for _ in range(m)], function))
    lower = grid(dice, 2, 8)
    upper = lower + Fraction(dice.choice([-1, 0, 1, 4, 8, 16]), 8)

    def atom() -> Atom:
        def some(count: int, most: int) -> dict[int, Fraction]:
            chosen = dice.sample(range(count), min(count, most))
            return {i: dice.choice([Fraction(1), Fraction(1), Fraction(-1), grid(dice, 2)]) for i in chosen}

        x = some(sizes[0], 1) if dice.random() < 0.25 else {}
        y = some(sizes[-1], dice.choice([1, 1, 2])) if not x or dice.random() < 0.7 else {}
        return Atom(
            x, y, dice.choice(signs), dice.choice([grid(dice, 3), Fraction(dice.randint(-40, 40), 10)])
        )

    def tree(depth: int) -> Junction | Atom:
        if depth == 0 or dice.random() < 0.3:
            return atom()
        return Junction(dice.choice(["and", "or"]), tuple(tree(depth - 1) for _ in range(dice.randint(1, 4))))

    fixed = [grid(dice, 2, 8) for _ in range(sizes[0])]
    return Instance(fixed, dice.randrange(sizes[0]), lower, upper, tuple(layers), tree(3))


# ---------------------------------------------------------------------------------------------- ONNX dialects
@dataclass(frozen=True)
class Shapes:
    """How the inputs and outputs are divided among variables, batch dimension included."""

    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]

    def place(self, letter: str, i: int) -> tuple[str, tuple[int, ...]]:
        """The variable and the index of the i-th element of all."""
        for number, shape in enumerate(self.inputs if letter == "X" else self.outputs):
            if i < math.prod(shape):
                return f"{letter}{number}", tuple(int(k) for k in np.unravel_index(i, shape))
            i -= math.prod(shape)
        raise IndexError(i)


def random_shapes(instance: Instance, dice: random.Random) -> Shapes:
    size, last = len(instance.fixed), len(instance.layers[-1].bias)
    cut = dice.randint(1, size - 1) if size > 1 and dice.random() < 0.25 else size
    inputs = [dice.choice([(1, n), (1, n), (n,), (1, 1, n), (1, n, 1, 1)]) for n in (cut, size - cut) if n]
    cut = dice.randint(1, last - 1) if last > 1 and dice.random() < 0.25 else last
    return Shapes(inputs, [(1, n) for n in (cut, last - cut) if n])


def array(values: Sequence, dtype: type) -> np.ndarray:
    return np.array(
        [[float(v) for v in row] if isinstance(row, list) else float(row) for row in values], dtype
    )


class Model:
    """Writes a network in one of many ways: opset, type, batch, how constants are kept and layers are written."""

    def __init__(self, instance: Instance, dice: random.Random, shapes: Shapes) -> None:
        self.dice, self.instance = dice, instance
        self.opset = dice.randint(7, 21)
        self.dtype: type = dice.choice([np.float32, np.float32, np.float64])
        self.kind = TensorProto.FLOAT if self.dtype is np.float32 else TensorProto.DOUBLE
        self.batch: int | str | None = dice.choice([1, 1, "N", None])
        self.listed = dice.random() < 0.3  # initialisers as inputs
        self.shapes = shapes
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def constant(self, values: np.ndarray) -> str:
        name = self.name()
        tensor = numpy_helper.from_array(values, name)
        if self.dice.random() < 0.3:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.constants.append(tensor)
        return name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = self.name()
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def affine(self, layer: Layer, x: str) -> str:
        weight, bias = array(layer.weight, self.dtype), array(layer.bias, self.dtype)
        how = self.dice.choice(["gemm", "transposed", "matmul", "subtract", "conv"])
        if how == "gemm":
            return self.node("Gemm", x, self.constant(weight), self.constant(bias), transB=1)
        if how == "transposed":
            scaled = self.constant(np.ascontiguousarray(weight.T) * 2)
            return self.node("Gemm", x, scaled, self.constant(bias / 2), alpha=0.5, beta=2.0)
        if how == "conv" and self.dtype is np.float32:
            shape = self.constant(np.array([1, weight.shape[1], 1, 1]))
            x = self.node("Reshape", x, shape)
            x = self.node("Conv", x, self.constant(weight[:, :, None, None]), self.constant(bias))
            return self.node("Flatten", x)
        product = self.node("MatMul", x, self.constant(np.ascontiguousarray(weight.T)))
        if how == "subtract":
            return self.node("Sub", product, self.constant(-bias))
        return self.node("Add", self.constant(bias), product)

    def function(self, layer: Layer, x: str) -> str:
        if layer.function == "clip":
            if self.opset < 11:
                if self.dtype is np.float32:
                    return self.node("Clip", x, min=-1.0, max=1.0)
            elif self.dtype is np.float32 or self.opset >= 12:
                ends = [self.constant(np.array(v, self.dtype)) for v in (-1, 1)]
                return self.node("Clip", x, *ends)
            ends = [self.constant(np.array([v], self.dtype)) for v in (-1, 1)]
            one = self.constant(np.array([0.5], self.dtype))  # (|x + 1| - |x - 1|) / 2
            apart = [self.node("Abs", self.node("Sub", x, end)) for end in ends]
            return self.node("Mul", self.node("Sub", *apart), one)
        if layer.function == "leaky":
            if self.dtype is np.float32:
                return self.node("LeakyRelu", x, alpha=0.25)
            parts = [self.constant(np.array([v], self.dtype)) for v in (0.625, 0.375)]
            return self.node(
                "Add", self.node("Mul", x, parts[0]), self.node("Mul", self.node("Abs", x), parts[1])
            )
        if layer.function == "relu":
            if (
                self.dice.random() < 0.2
                and (self.opset >= 12 or self.dtype is np.float32)
                and self.opset >= 8
            ):
                return self.node("Max", x, self.constant(np.zeros(1, self.dtype)))
            return self.node("Relu", x) if self.dtype is np.float32 or self.opset >= 14 else self.wide_relu(x)
        return self.node("Abs", x) if layer.function else x

    def wide_relu(self, x: str) -> str:
        half = self.constant(np.array([0.5], self.dtype))
        return self.node("Mul", self.node("Add", x, self.node("Abs", x)), half)

    def write(self, file: Path) -> None:
        flat = []
        for i, shape in enumerate(self.shapes.inputs):
            row = self.constant(np.array([1, math.prod(shape)]))
            plain = len(shape) == 2 and self.dice.random() < 0.7
            flat.append(f"input{i}" if plain else self.node("Reshape", f"input{i}", row))
        x = flat[0] if len(flat) == 1 else self.node("Concat", *flat, axis=1)
        for layer in self.instance.layers:
            x = self.function(layer, self.affine(layer, x))
        outputs, start = [], 0
        for i, shape in enumerate(self.shapes.outputs):
            places = self.constant(np.arange(start, start := start + math.prod(shape)))
            part = self.node("Gather", x, places, axis=1) if len(self.shapes.outputs) > 1 else x
            self.nodes.append(helper.make_node("Identity", [part], [f"output{i}"]))
            outputs.append(helper.make_tensor_value_info(f"output{i}", self.kind, [self.batch, *shape[1:]]))
        inputs = [
            helper.make_tensor_value_info(
                f"input{i}", self.kind, [self.batch, *shape[1:]] if len(shape) > 1 else shape
            )
            for i, shape in enumerate(self.shapes.inputs)
        ]
        if self.listed:
            inputs += [
                helper.make_tensor_value_info(c.name, c.data_type, list(c.dims)) for c in self.constants
            ]
        graph = helper.make_graph(self.nodes, "tiny", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 3 if self.listed and self.opset < 9 else max(4, IR[self.opset])
        onnx.checker.check_model(model)
        data = model.SerializeToString()
        file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


# ---------------------------------------------------------------------------------------------- VNN-LIB dialects
class Text:
    """Writes a query in one of many ways. Version 2.0 has no exponents."""

    def __init__(self, instance: Instance, dice: random.Random, version: int, shapes: Shapes) -> None:
        self.instance, self.dice, self.version, self.shapes = instance, dice, version, shapes

    def number(self, value: Fraction) -> str:
        plain = f"{float(value):.6f}".rstrip("0")
        plain = plain + "0" if plain.endswith(".") else plain
        assert Fraction(plain) == value
        ways = [plain] + ([str(value.numerator)] if value.denominator == 1 else [])
        if self.version == 1:
            ways += [f"{float(value):.8e}", f"{float(value * 1000):.5f}E-3"]
            ways += [f"(- {plain[1:]})"] if value < 0 else []
        return self.dice.choice(ways)

    def variable(self, letter: str, i: int) -> str:
        if self.version == 1:
            return f"{letter}_{i}"
        name, index = self.shapes.place(letter, i)
        return f"{name}[{','.join(map(str, index))}]"

    def term(self, letter: str, i: int, factor: Fraction) -> str:
        name = self.variable(letter, i)
        if factor == 1:
            return name
        if factor == -1 and self.dice.random() < 0.5:
            return f"(- {name})"
        return (
            f"(* {self.number(factor)} {name})"
            if self.dice.random() < 0.7
            else f"(* {name} {self.number(factor)})"
        )

    def atom(self, atom: Atom) -> str:
        terms = [self.term("X", i, v) for i, v in atom.x.items()] + [
            self.term("Y", i, v) for i, v in atom.y.items()
        ]
        right = [self.number(atom.number)]
        if len(terms) == 2 and self.dice.random() < 0.4 and atom.number == 0:  # a <= b
            factor = [*atom.x.values(), *atom.y.values()][1]
            if factor == -1:
                letter, i = ("Y", list(atom.y)[-1]) if atom.y else ("X", list(atom.x)[-1])
                terms, right = terms[:1], [self.variable(letter, i)]
        left = terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})"
        sign = atom.sign
        if sign in ("==", "!=") and self.version == 1:
            sign = "="
        swapped = sign.replace("<", "#").replace(">", "<").replace("#", ">")
        return f"({sign} {left} {right[0]})" if self.dice.random() < 0.7 else f"({swapped} {right[0]} {left})"

    def tree(self, tree: Junction | Atom) -> str:
        if isinstance(tree, Atom):
            return self.atom(tree)
        space = self.dice.choice([" ", "\n\t", "  "])
        return f"({tree.word}{space}{space.join(self.tree(child) for child in tree.children)})"

    def box(self) -> list[str]:
        found = []
        for i, value in enumerate(self.instance.fixed):
            ends = (self.instance.lower, self.instance.upper) if i == self.instance.free else (value, value)
            for sign, end in zip((">=", "<="), ends, strict=True):
                found.append(self.atom(Atom({i: Fraction(1)}, {}, sign, end)))
        return found

    def whole(self) -> str:
        box, formula = self.box(), self.tree(self.instance.formula)
        how = self.dice.choice(["asserts", "asserts", "one", "disjuncts"])
        if how == "asserts":
            parts = [*box, formula]
            self.dice.shuffle(parts)
        elif how == "one":
            parts = [f"(and {' '.join(box)} {formula})"]
        else:
            parts = [f"(or (and {' '.join(box)} {formula}))"]
        lines = [*self.declarations(), *[f"(assert {part})" for part in parts]]
        if self.dice.random() < 0.3:
            lines = [f"{line} ; (assert (or" for line in lines]
        return self.dice.choice(["\n", "\n", "\r\n"]).join(["; a comment", *lines, ""])

    def declarations(self) -> list[str]:
        sizes = len(self.instance.fixed), len(self.instance.layers[-1].bias)
        if self.version == 1:
            names = [f"{letter}_{i}" for letter, n in zip("XY", sizes, strict=True) for i in range(n)]
            self.dice.shuffle(names)
            return [f"(declare-const {name} Real)" for name in names]
        ends = [
            f"(declare-{kind} {letter}{i} real [{','.join(map(str, shape))}])"
            for kind, letter, parts in (
                ("input", "X", self.shapes.inputs),
                ("output", "Y", self.shapes.outputs),
            )
            for i, shape in enumerate(parts)
        ]
        return ["(vnnlib-version <2.0>)", f"(declare-network f {' '.join(ends)})"]


def check(seed: int, folder: Path) -> Status:
    """Raises AssertionError where the verdict is wrong, or missing though it is clear."""
    dice = random.Random(seed)
    version = dice.choice([1, 1, 2])
    instance = random_instance(dice, ["<=", ">="] if version == 1 else ["<=", ">=", "<", ">", "==", "!="])
    model = folder / dice.choice(["net.onnx", "net of some kind.onnx", "net.onnx.gz"])
    spec = folder / dice.choice(["q.vnnlib", "q.vnnlib.gz"])
    shapes = random_shapes(instance, dice)
    Model(instance, dice, shapes).write(model)
    text = Text(instance, dice, version, shapes).whole().encode()
    spec.write_bytes(gzip.compress(text) if spec.suffix == ".gz" else text)
    true, room = instance.solutions(instance.formula)
    near = instance.solutions(relaxed(instance.formula, Fraction(1, 100)))[0]
    networks = model if version == 1 else {"f": model}
    result = verifier.verify(
        networks, spec, timeout=20, options=verifier.Options(seed=seed, attack=dice.random() < 0.7)
    )
    if result.status is Status.UNSAT:
        assert not true, seed
    elif result.status is Status.SAT:
        assert true or instance.solutions(relaxed(instance.formula, ROUNDING))[0], seed
    else:
        assert near and room < OPEN, (seed, result.status, result.reason)
    return result.status


@pytest.mark.parametrize("block", range(4))
def test_verdicts_are_those_of_exact_arithmetic(block: int, tmp_path: Path) -> None:
    found = [check(seed, tmp_path) for seed in range(25 * block, 25 * block + 25)]
    assert {Status.SAT, Status.UNSAT} <= set(found)


@pytest.mark.full
@pytest.mark.parametrize("block", range(20))
def test_many_verdicts_are_those_of_exact_arithmetic(block: int, tmp_path: Path) -> None:
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        check(seed, tmp_path)
