"""Chains as steps of norm about one, in the form that ellipsoids are passed through."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from verifier.jacobian.chain import Chain, Layer
from verifier.jacobian.definite import Matrix, up


@dataclass(frozen=True, eq=False)
class Step:
    """y = skip x + outer a with |a| <= |inner x| per group: a layer, scaled by powers of two. `kept` as in Activation,
    the second with the layer's matrix."""

    skip: Matrix
    outer: Matrix
    inner: Matrix
    group: Tensor
    kept: tuple[Tensor, Tensor] | None
    kept_group: Tensor | None

    @property
    def groups(self) -> int:
        return int(self.group.amax()) + 1 if len(self.group) else 0

    @property
    def joint(self) -> Matrix:
        """[A H; G 0]"""
        zero = torch.zeros(len(self.group), len(self.group), dtype=torch.float64)
        top = torch.cat([self.skip.value, self.outer.value], 1)
        value = torch.cat([top, torch.cat([self.inner.value, zero], 1)])
        return Matrix(value, up(self.skip.doubt + self.outer.doubt + self.inner.doubt))


class Ellipsoid(NamedTuple):
    """R [n, n] of a layer's outputs, and a multiplier's k per group."""

    shape: Tensor
    radius: Tensor


@dataclass(frozen=True, eq=False)
class Scaled:
    """A chain as steps of norm about one. The chain's Jacobian is theirs times 2^exponent."""

    steps: tuple[Step, ...]
    last: Matrix
    exponent: int


def scaled(chain: Chain) -> Scaled:
    """Scaled by powers of two, which do not round; the products of matrices are in the doubts."""
    chain = _narrowed(chain)
    exponent = 0
    steps = []
    for layer in chain.layers:
        step = _step(layer)
        size = step.skip.size + step.outer.size * step.inner.size
        power = _exponent(_estimate(step) or size)
        exponent += power
        inside = _exponent(_largest_singular(step.inner.value))
        skip = _times(step.skip, -power)
        outer, inner = _times(step.outer, inside - power), _times(step.inner, -inside)
        kept = None if step.kept is None else (step.kept[0], step.kept[1] * 2.0**-power)
        if kept is not None:  # the kept part's and the moved part's lengths stay comparable
            outer, inner = step.outer, _times(step.inner, -power)
        steps.append(replace(step, skip=skip, outer=outer, inner=inner, kept=kept))
    power = _exponent(_largest_singular(chain.last.value))
    return Scaled(tuple(steps), _times(chain.last, -power), exponent + power)


def _narrowed(chain: Chain) -> Chain:
    """The same with every layer's outputs counted behind the next matrix where that gives fewer: smaller ellipsoids."""
    layers, last = list(chain.layers), chain.last
    for k, layer in enumerate(layers):
        after = layers[k + 1] if k + 1 < len(layers) else None
        matrix = last if after is None else after.inner
        rows, columns = matrix.value.shape
        if (
            rows >= columns
            or layer.activation.kept is not None
            or (after is not None and after.skip is not None)
        ):
            continue
        outer = matrix if layer.outer is None else matrix @ layer.outer
        layers[k] = replace(layer, outer=outer, skip=None if layer.skip is None else matrix @ layer.skip)
        one = Matrix(torch.eye(rows, dtype=torch.float64))
        if after is None:
            last = one
        else:
            layers[k + 1] = replace(after, inner=one)
    return Chain(tuple(layers), last)


def _step(layer: Layer) -> Step:
    f, inner = layer.activation, layer.inner
    fixed, outer, kept = f.fixed @ inner, f.outer, None
    if f.kept is not None and layer.plain and f.kept[0].shape[1]:
        kept = (f.kept[0], f.kept[1] @ inner.value)
    if layer.outer is not None:
        fixed, outer = layer.outer @ fixed, layer.outer @ f.outer
    if layer.skip is not None:
        fixed = fixed + layer.skip
    return Step(fixed, outer, f.inner @ inner, f.group, kept, f.kept_group)


def _estimate(step: Step) -> float:
    return _largest_singular(torch.cat([step.skip.value, step.inner.value]))


def _largest_singular(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2)) if matrix.numel() else 0.0


def _exponent(size: float) -> int:
    return round(math.log2(size)) if 0 < size < math.inf else 0


def _times(matrix: Matrix, exponent: int) -> Matrix:
    """Powers of two do not round."""
    return Matrix(matrix.value * 2.0**exponent, matrix.doubt * 2.0**exponent)
