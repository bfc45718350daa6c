"""Networks as chains of layers, as the semidefinite programmes and products of norms take them.

All that a bound of a Lipschitz constant needs to know of an activation is how differences pass it: a linear part that
is the same for all, and a rest no longer than a linear image of the difference (`Activation`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.errors import VerifierError
from verifier.jacobian.definite import EPS, Matrix, up


class ChainError(VerifierError, ValueError):
    """A network is no chain of affine layers and known activations, or its parts do not fit."""


@dataclass(frozen=True, eq=False)
class Activation:
    """How differences d of the argument [n] pass: as fixed d + outer a for some a [k] with, in every group of elements,
    |a| <= |inner d| in the Euclidean norm.

    `group` [k] numbers the elements' groups from 0. Where `kept` is given, fixed = kept[0] kept[1], and what it keeps
    is orthogonal to `outer`; `kept_group` [r] then numbers the groups that its columns belong to. `row_gain` bounds the
    Lipschitz constant for the largest element (l-inf to l-inf).
    """

    fixed: Matrix
    outer: Matrix
    inner: Matrix
    group: Tensor
    row_gain: float
    kept: tuple[Tensor, Tensor] | None = None
    kept_group: Tensor | None = None

    @property
    def size(self) -> int:
        return self.fixed.value.shape[0]


@dataclass(frozen=True, eq=False)
class Layer:
    """y = skip x + outer f(inner x) up to constants; without `skip` and `outer`, f(inner x)."""

    inner: Matrix
    activation: Activation
    outer: Matrix | None = None
    skip: Matrix | None = None

    def __post_init__(self) -> None:
        n = self.activation.size
        if self.inner.value.shape[0] != n or (self.outer is not None and self.outer.value.shape[1] != n):
            raise ChainError(f"The matrices around an activation of {n} elements do not fit.")
        if self.skip is not None and self.skip.value.shape != (self.outputs, self.inputs):
            raise ChainError("What goes around an activation has another shape than what goes through it.")

    @property
    def inputs(self) -> int:
        return self.inner.value.shape[1]

    @property
    def outputs(self) -> int:
        return self.activation.size if self.outer is None else self.outer.value.shape[0]

    @property
    def plain(self) -> bool:
        return self.outer is None and self.skip is None


@dataclass(frozen=True, eq=False)
class Chain:
    """Layers one after another, and the matrix behind them."""

    layers: tuple[Layer, ...]
    last: Matrix

    def __post_init__(self) -> None:
        sizes = [layer.inputs for layer in self.layers] + [self.last.value.shape[1]]
        for k, layer in enumerate(self.layers):
            if layer.outputs != sizes[k + 1]:
                raise ChainError(
                    f"Layer {k} gives {layer.outputs} values, and the next takes {sizes[k + 1]}."
                )

    @property
    def inputs(self) -> int:
        return self.layers[0].inputs if self.layers else self.last.value.shape[1]

    def followed(self, matrix: Tensor) -> Chain:
        """The chain with one more matrix behind it: a chosen output, or a margin, is a row."""
        return Chain(self.layers, Matrix(matrix.to(torch.float64)) @ self.last)

    def transposed(self) -> Chain:
        """The chain of the transposed Jacobians: its constant for one norm is this one's for the dual norms."""
        layers: list[Layer] = []
        before = self.last.T
        for layer in reversed(self.layers):
            if layer.plain:
                layers.append(Layer(before, layer.activation))
                before = layer.inner.T
                continue
            outer = before if layer.outer is None else layer.outer.T @ before
            skip = None if layer.skip is None else layer.skip.T @ before
            layers.append(Layer(outer, layer.activation, layer.inner.T, skip))
            before = Matrix(torch.eye(layer.inputs, dtype=torch.float64))
        return Chain(tuple(layers), before)


def dense(weights: Sequence[Tensor], activations: Sequence[Activation]) -> Chain:
    """W_l f_(l-1)(... f_1(W_1 x)), one activation between each two weights [n, m]."""
    if len(activations) != len(weights) - 1:
        raise ChainError(
            f"{len(weights)} weights need {len(weights) - 1} activations, not {len(activations)}."
        )
    matrices = [Matrix(w.detach().to("cpu", torch.float64)) for w in weights]
    layers = [Layer(w, f) for w, f in zip(matrices, activations, strict=False)]
    return Chain(tuple(layers), matrices[-1])


def slopes(lower: Tensor, upper: Tensor) -> Activation:
    """Functions of one element each, whose difference quotients lie between `lower` and `upper` [n]: 0 and 1 for Relu
    and Tanh, 0 and 1/4 for Sigmoid. Raises ChainError where they are not finite."""
    lower, upper = lower.detach().to("cpu", torch.float64), upper.detach().to("cpu", torch.float64)
    if not bool((lower.isfinite() & upper.isfinite() & (lower <= upper)).all()):
        raise ChainError(
            "The slopes of an activation are not bounded, so that no Lipschitz constant is known."
        )
    center = lower / 2 + upper / 2
    radius = torch.maximum(upper - center, center - lower) * (1 + 2 * EPS)
    free = radius.nonzero()[:, 0]
    one = torch.eye(len(lower), dtype=torch.float64)
    return Activation(
        Matrix(center.diag()),
        Matrix(one[:, free]),
        Matrix(radius.diag()[free]),
        torch.arange(len(free)),
        float(torch.maximum(lower.abs(), upper.abs()).amax()) if len(lower) else 0.0,
    )


def group_sort(n: int, size: int, index: Tensor | None = None) -> Activation:
    """Groups of `size` elements, each sorted (Anil, Lucas, Grosse, ICML 2019); MaxMin for size 2.

    Groups are adjacent elements, or the rows of `index` [n / size, size]. Sorting keeps the sum of a group and
    lengthens no difference of the rest.
    """
    if index is not None:
        return _moved(group_sort(n, size), index.flatten())
    if size < 1 or n % size:
        raise ChainError(f"{n} elements cannot be sorted in groups of {size}.")
    groups = n // size
    if size > 2:
        return _grouped(torch.ones(groups, size, dtype=torch.float64), summed=True)
    half = torch.full((groups,), 0.5, dtype=torch.float64)  # numbers without rounding
    keep = torch.kron(torch.eye(groups, dtype=torch.float64), torch.ones(size, 1, dtype=torch.float64))
    back = keep.T * (half.unsqueeze(1) if size == 2 else 1.0)
    move = keep.clone() if size == 2 else keep[:, :0]
    move[1::2] *= -1
    order = torch.arange(groups)
    return Activation(
        Matrix(keep @ back),
        Matrix(move),
        Matrix(move.T / 2),
        order[: move.shape[1]],
        1.0,
        (keep, back),
        order,
    )


def householder(directions: Tensor) -> Activation:
    """Groups of adjacent elements x, each reflected to x - 2 v v'x / v'v where v'x < 0; `directions` v [groups, size].

    What is orthogonal to v is kept, and v'x becomes its absolute value (Singla, Singla, Feizi, ICLR 2022).
    """
    v = directions.detach().to("cpu", torch.float64)
    if not bool((v.norm(dim=1) > 0).all()):
        raise ChainError("A Householder activation has a direction that is zero.")
    return _grouped(v / v.abs().amax(1, keepdim=True), summed=False)


def beside(parts: Sequence[Activation]) -> Activation:
    """Activations of elements one after another as one."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> Matrix:
        matrices = [getattr(part, name) for part in parts]
        return Matrix(torch.block_diag(*[m.value for m in matrices]), max(m.doubt for m in matrices))

    groups, count = [], 0
    for part in parts:
        groups.append(part.group + count)
        count += int(part.group.amax()) + 1 if len(part.group) else 0
    gain = max(part.row_gain for part in parts)
    return Activation(joined("fixed"), joined("outer"), joined("inner"), torch.cat(groups), gain)


def _moved(f: Activation, place: Tensor) -> Activation:
    """The activation with its element k at `place[k]`."""
    back = place.argsort()
    kept = None if f.kept is None else (f.kept[0][back], f.kept[1][:, back])
    return replace(
        f,
        fixed=Matrix(f.fixed.value[back][:, back], f.fixed.doubt),
        outer=Matrix(f.outer.value[back], f.outer.doubt),
        inner=Matrix(f.inner.value[:, back], f.inner.doubt),
        kept=kept,
    )


def _grouped(v: Tensor, summed: bool) -> Activation:
    """Groups [groups, size] of which the part along v is kept and the rest no longer than before (`summed`), or the
    other way round. The bases come from QR, and their distance from exact ones is part of the doubt."""
    groups, size = v.shape
    eye = torch.eye(size, dtype=torch.float64).expand(groups, -1, -1)
    basis = torch.linalg.qr(torch.cat([v.unsqueeze(2), eye], 2)).Q
    # A basis that is orthonormal up to e is within e of one that is, which a rotation by the angle of its first column
    # to v takes to one with v in the first place.
    skew = (basis.mT @ basis - eye).norm(dim=(1, 2))
    angle = (v.unsqueeze(1) @ basis[:, :, 1:]).norm(dim=(1, 2)) / v.norm(dim=1)
    doubt = 8 * (float(skew.amax() + angle.amax()) + 8 * (size + 2) * EPS)
    first, rest = basis[:, :, :1], basis[:, :, 1:]
    keep, move = (first, rest) if summed else (rest, first)
    kept, moved = torch.block_diag(*keep), torch.block_diag(*move)
    order = torch.arange(groups)
    return Activation(
        Matrix(kept @ kept.T, doubt),
        Matrix(moved, doubt),
        Matrix(moved.T, doubt),
        order.repeat_interleave(move.shape[2]),
        1.0 if summed else up(math.sqrt(size)),
        (kept, kept.T),
        order.repeat_interleave(keep.shape[2]),
    )
