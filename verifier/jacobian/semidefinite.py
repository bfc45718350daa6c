"""Global Lipschitz bounds of chains by semidefinite programmes, and by closed forms of the same kind.

Differences of a layer's outputs are kept in ellipsoids y' R^-1 y <= x' X^-1 x. For y = A x + H a with |a| <= |G x| in
every group this follows, by the S-procedure with a multiplier 1 / k per group, from

    [R 0; 0 K] >= [A H; G 0] [X 0; 0 K] [A H; G 0]'    (K holds k once per element of the group)

(a Schur complement of the programmes of Fazlyab et al., NeurIPS 2019, and, for sorting and Householder activations, of
Pauli et al., "Novel quadratic constraints for extending LipSDP beyond slope-restricted activations", ICLR 2024). Layer
by layer these are small inequalities, linear in all R and k. What an activation keeps may have any R: joint multipliers
of all groups' sums, where the publication has one per group.

Whoever proposes R and k, a bound is what `_Front` proves of them: each inequality is checked with its roundings in
float64 and, where it fails, R and k are enlarged until it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from verifier.jacobian.chain import Chain, ChainError, Layer
from verifier.jacobian.chain import slopes as sloped
from verifier.jacobian.definite import (
    EPS,
    Matrix,
    frobenius,
    largest_eigenvalue,
    missing,
    nonnegative,
    product,
    up,
)
from verifier.jacobian.programme import ellipsoids, weighted
from verifier.jacobian.steps import Ellipsoid, Scaled, Step
from verifier.jacobian.steps import scaled as as_steps


def bound(
    chain: Chain,
    norm: float = 2,
    slopes: Sequence[tuple[Tensor, Tensor] | None] | None = None,
    joint: bool = True,
    seconds: float = math.inf,
) -> float:
    """A proved bound on the Lipschitz constant of a chain, by semidefinite programming (extra `sdp`).

    `norm` of inputs and outputs is 1, 2 or inf (for inf, and 1, one programme per output, or input). `slopes` may give,
    per layer, smaller ranges of the difference quotients than the activation's own, as (lower, upper) [n]: the bound
    then holds on a convex set on which they do. Without `joint`, what activations keep is kept group by group, as
    published. A programme that takes more than `seconds` is given up for the layer-wise bound. Raises OptionsError
    where cvxpy or Clarabel are missing, and ChainError for another norm and for layers that are too wide.
    """
    chain = _local(chain, slopes)
    if norm == 1:
        return bound(chain.transposed(), math.inf, joint=joint, seconds=seconds)
    simple = min(product_of_norms(chain, norm), layerwise(chain, norm))
    if norm == 2:
        steps = as_steps(chain)
        found = ellipsoids(steps, joint, seconds)
        return simple if found is None else min(simple, _euclidean(steps, found))
    _known(norm)
    best = 0.0
    for row in chain.last.value.split(1):
        one = Chain(chain.layers, Matrix(row, chain.last.doubt))
        steps = as_steps(one)
        found = weighted(steps, joint, seconds)
        own = product_of_norms(one, norm)
        best = max(best, own if found is None else min(own, _boxed(steps, *found)))
    return min(simple, best)


def layerwise(
    chain: Chain, norm: float = 2, slopes: Sequence[tuple[Tensor, Tensor] | None] | None = None
) -> float:
    """A proved bound without a solver, by one ellipsoid after the other in closed form, for chains of any depth and
    hundreds of neurons per layer.

    With one multiplier per layer (ECLipsE-Fast: Xu, Sivaranjani, NeurIPS 2024), chosen among a few for the smallest
    longest axis. `norm` and `slopes` as in `bound`; for other norms than 2 it is a Euclidean bound times what norms
    differ by, or a product of norms.
    """
    chain = _local(chain, slopes)
    if norm == 1:
        return layerwise(chain.transposed(), math.inf)
    steps = as_steps(chain)
    simple = product_of_norms(chain, norm)
    if norm == 2:
        return min(simple, _euclidean(steps, None))
    _known(norm)
    doubt = steps.last.doubt
    # |J x|_inf <= |J x|_2 row by row, and |x|_2 <= sqrt(n) |x|_inf.
    rows = [_euclidean(replace(steps, last=Matrix(row, doubt)), None) for row in steps.last.value.split(1)]
    return min(simple, up(math.sqrt(chain.inputs) * max(rows, default=0.0)))


def product_of_norms(chain: Chain, norm: float = 2) -> float:
    """The product of the layers' norms (1, 2 or inf) and Lipschitz constants, rounding included."""
    if norm == 1:
        return product_of_norms(chain.transposed(), math.inf)
    _known(norm)

    def size(matrix: Matrix) -> float:
        return matrix.norm if norm == 2 else matrix.row_norm

    total = size(chain.last)
    for layer in chain.layers:
        f = layer.activation
        gain = f.row_gain if norm == math.inf else _gain(layer)
        through = up(size(layer.inner) * gain * (1.0 if layer.outer is None else size(layer.outer)))
        total = up(total * (through if layer.skip is None else up(through + size(layer.skip))))
    return total


def _gain(layer: Layer) -> float:
    """The activation's Lipschitz constant in the Euclidean norm: 1 where something is kept, else its steepest slope."""
    return 1.0 if layer.activation.kept is not None else layer.activation.row_gain


def _known(norm: float) -> None:
    if norm not in (2, math.inf):
        raise ChainError(f"The norm {norm} is not one of 1, 2 and inf.")


def _local(chain: Chain, ranges: Sequence[tuple[Tensor, Tensor] | None] | None) -> Chain:
    if ranges is None:
        return chain
    if len(ranges) != len(chain.layers):
        raise ChainError(f"{len(ranges)} ranges of slopes were given for {len(chain.layers)} layers.")
    layers = []
    for layer, given in zip(chain.layers, ranges, strict=True):
        layers.append(layer if given is None else replace(layer, activation=sloped(*given)))
    return Chain(tuple(layers), chain.last)


# Proofs


class _Front:
    """The last ellipsoid R, [n, n] or a diagonal [n], that is proved to hold what the layers so far make of the
    first."""

    def __init__(self, start: Tensor) -> None:
        self.shape = start
        self._larger = 1.0

    def advance(self, step: Step, proposed: Ellipsoid) -> None:
        """Goes on to the proposed ellipsoid, enlarged until its inequality is proved.

        By what the one before was enlarged at most, first, since inequalities are homogeneous; then by adding to the
        diagonals, which in the end suffices for any R and k. That a proposal is good is not taken for granted.
        """
        n = len(proposed.shape)
        joint = step.joint
        # Adding t to k adds t H H' to the right-hand side: R gets 1 + |H|^2 times as much.
        outer = 1.0 + up(step.outer.norm**2)
        eye = torch.eye(n, dtype=torch.float64)
        shape = _finite((proposed.shape + proposed.shape.T) / 2) * self._larger
        radius = _finite(proposed.radius).clamp(min=0.0) * self._larger
        added = 0.0
        for _ in range(200):
            raised = shape + added * outer * eye
            gap, error = self._gap(step, joint, raised, radius + added)
            if nonnegative(gap, error):
                self.shape = raised
                lowest = float(torch.linalg.eigvalsh(shape)[0]) if n else 1.0
                relative = added * outer / lowest if lowest > 0 else math.inf
                self._larger *= 1 + relative if relative < 1e-3 else 1.0
                return
            added = max(2 * added, added + 1.01 * missing(gap, error))
            if not math.isfinite(added):
                break
        self.shape = torch.full_like(proposed.shape, math.inf)

    def _gap(self, step: Step, joint: Matrix, shape: Tensor, radius: Tensor) -> tuple[Tensor, float]:
        """What is to have no negative eigenvalue, and its error."""
        each = radius[step.group]
        if self.shape.dim() == 1:
            before = torch.cat([self.shape, each])
        else:
            before = torch.block_diag(self.shape, each.diag())
        value, error = product(joint.value, before)
        size = frobenius(before) if before.dim() == 2 else float(before.abs().amax())
        error = error + up((2 * joint.size + joint.doubt) * joint.doubt * size)
        after = torch.block_diag(shape, each.diag())
        return after - value, up(error + EPS * (frobenius(after) + frobenius(value)))

    def reach(self, last: Matrix) -> float:
        """A bound on |last y|^2 in the ellipsoid."""
        if not bool(self.shape.isfinite().all()):
            return math.inf
        value, error = product(last.value, self.shape)
        size = frobenius(self.shape)
        return largest_eigenvalue(value, up(error + (2 * last.size + last.doubt) * last.doubt * size))


def _euclidean(scaled: Scaled, proposed: Iterable[Ellipsoid] | None) -> float:
    """The bound for the Euclidean norm from proposed ellipsoids, or from closed forms."""
    inputs = scaled.steps[0].skip.value.shape[1] if scaled.steps else scaled.last.value.shape[1]
    front = _Front(torch.ones(inputs, dtype=torch.float64))
    if proposed is None:
        for step in scaled.steps:
            front.advance(step, closed_form(step, front.shape))
    else:
        for step, ellipsoid in zip(scaled.steps, proposed, strict=True):
            front.advance(step, ellipsoid)
    return _root(front.reach(scaled.last), scaled.exponent)


def _boxed(scaled: Scaled, start: Tensor, proposed: Sequence[Ellipsoid]) -> float:
    """The bound for one output and the largest norm: |x|_inf <= 1 lies in the ellipsoid sum x_i^2 / start_i <= their
    sum of 1 / start_i."""
    front = _Front(start)
    for step, ellipsoid in zip(scaled.steps, proposed, strict=True):
        front.advance(step, ellipsoid)
    room = float((1 / start).sum()) * (1 + (len(start) + 4) * EPS)
    return _root(up(front.reach(scaled.last) * room), scaled.exponent)


def _root(square: float, exponent: int) -> float:
    try:
        return math.ldexp(up(math.sqrt(square)), exponent)
    except OverflowError:
        return math.inf


def _finite(proposed: Tensor) -> Tensor:
    return torch.nan_to_num(proposed, nan=0.0, posinf=0.0, neginf=0.0)


# Closed forms

_FACTORS = (1.001, 1.01, 1.05, 1.2, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 4.0, 6.0)
"""Multiples of the least possible multiplier that are tried; without anything kept, 2 is best for the longest axis."""

Weights = Callable[[Tensor], Tensor]


def closed_form(step: Step, before: Tensor) -> Ellipsoid:
    """For the ellipsoid `before` of the inputs one of the outputs, with one multiplier up to a factor per group: the
    smallest R that the inequality allows, which is a Schur complement."""
    a, h, g = step.skip.value, step.outer.value, step.inner.value
    through = a * before if before.dim() == 1 else a @ before
    inside = g * before if before.dim() == 1 else g @ before
    passing, cross, moved = through @ a.T, through @ g.T, inside @ g.T
    ones = torch.ones(step.groups, dtype=torch.float64)
    sums = torch.zeros(step.groups, dtype=torch.float64).scatter_reduce(
        0, step.group, moved.abs().sum(1), "amax"
    )
    best = Ellipsoid(passing, ones[:0])
    if not len(step.group):
        return best
    least = math.inf
    for weights in (ones, sums.clamp(min=1e-9 * float(sums.amax()) + 1e-300)):
        root = weights[step.group].rsqrt()
        top = float(torch.linalg.eigvalsh(root.unsqueeze(1) * moved * root)[-1])
        for factor in _FACTORS:
            k = weights * max(top * factor, 1e-300)
            rest = k[step.group].diag() - moved
            found = passing + (h * k[step.group]) @ h.T + cross @ torch.linalg.solve(rest, cross.T)
            axis = float(torch.linalg.eigvalsh((found + found.T) / 2)[-1])
            if axis < least:
                least, best = axis, Ellipsoid((found + found.T) / 2, k)
    return best
