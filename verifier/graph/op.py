"""The operator protocol: everything an engine may know of an operator.

An operator is a frozen dataclass (`eq=False`) that holds attributes and constant tensors. Three kinds carry all
networks: `Affine`, `Univariate`, and other `Elementwise` operators of several arguments; composite operators
are rewritten into these on import.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from verifier.graph.coefficients import Coefficients, Dense
from verifier.graph.interval import Interval

if TYPE_CHECKING:
    from verifier.graph.builder import Builder, Value

Shape = tuple[int, ...]


class Op(ABC):
    """An operator. Tensors it takes and returns have the engine's batch dimension in front: [B, *shape]."""

    no_derivative: str = ""
    """Why there is no vector-Jacobian rule, where there is none; differentiation tells the user."""

    @abstractmethod
    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of the result; raises ValueError with a full sentence where the shapes do not fit."""

    @abstractmethod
    def forward(self, *xs: Tensor) -> Tensor:
        """The value, differentiable."""

    @abstractmethod
    def interval(self, *xs: Interval) -> Interval:
        """A sound enclosure of the values, rounding included."""

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        """Append nodes for the vector-Jacobian products, one per input (None where the derivative is zero).

        Where the function has kinks, the nodes' bounds must hold every generalised (Clarke) derivative. Only called
        where `no_derivative` is empty.
        """
        raise NotImplementedError(f"{type(self).__name__} has no vector-Jacobian rule.")

    def ordered(self, shape: Shape) -> Tensor | None:
        """Groups, int64 [*shape], within which two elements of the result compare (<, =, >) exactly as the same
        elements of the one argument, of the same shape, do; None where nothing is known."""
        return None

    def tensors(self) -> Iterator[Tensor]:
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield value

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Self:
        """The operator with its floating tensors cast and all its tensors moved."""
        changes = {}
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                cast = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
                if cast is not value:
                    changes[field.name] = cast
        return dataclasses.replace(self, **changes) if changes else self  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, eq=False)
class Input(Op):
    """A free variable of the graph."""

    shape: Shape
    no_derivative = "it is a variable"

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.shape

    def forward(self, *xs: Tensor) -> Tensor:
        raise ValueError("An Input has no value of its own; Graph.evaluate takes it from the caller.")

    def interval(self, *xs: Interval) -> Interval:
        raise ValueError("An Input has no interval of its own; it comes from the input set.")


@dataclass(frozen=True, eq=False)
class Constant(Op):
    """A fixed tensor, or a module's live parameter. `value` has the node's shape, without the batch dimension, and may
    be off by `doubt` of that shape."""

    value: Tensor
    doubt: Tensor | None = None
    no_derivative = "it is constant"

    def output_shape(self, *shapes: Shape) -> Shape:
        return tuple(self.value.shape)

    def forward(self, *xs: Tensor) -> Tensor:
        return self.value.unsqueeze(0)

    def interval(self, *xs: Interval) -> Interval:
        value = self.value.unsqueeze(0)
        return (
            Interval(value, value)
            if self.doubt is None
            else Interval(value, value).widen(2 * self.doubt).sanitise()
        )

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Constant:
        """A cast that loses digits leaves a doubt."""
        cast = super().to(dtype, device)
        if not self.value.is_floating_point() or self.value.requires_grad:
            return cast
        lost = (cast.value.to(self.value) - self.value).abs().nan_to_num(nan=0.0)
        if not bool(lost.any()):
            return cast
        info = torch.finfo(cast.value.dtype)
        last = (info.eps * self.value.abs() + info.tiny) * (lost > 0)  # less than that would be rounded away
        doubt = last if self.doubt is None else last + self.doubt
        return dataclasses.replace(cast, doubt=doubt.to(cast.value))


class Affine(Op):
    """y = L(x_1, ..., x_k) + c, jointly affine in all variable arguments."""

    exact: bool = False
    """True for operators that only move elements (or fill constants): no rounding happens."""

    increasing: bool = False
    """True where L has no negative entry, so that ends of intervals map to ends: what one end loses by rounding, or an
    infinite one, does not reach the other."""

    elementwise: bool = False
    """True where every element of the argument reaches exactly one element of the result and meets no other
    there (reshapes, permutations, scaling), so that intervals pass through without loss."""

    def fan_in(self, *shapes: Shape) -> int:
        """How many products or terms are summed for one output element; it bounds the rounding error."""
        return 1

    def fan_out(self, *shapes: Shape) -> int:
        """How many products are summed, at most, for one element of `transpose`; the default is always enough."""
        return 1 if self.elementwise else math.prod(self.output_shape(*shapes))

    def absolute(self, *xs: Tensor) -> Tensor:
        """|L|(x_1, ..., x_k) for non-negative arguments. The default is for L without negative entries, c = 0."""
        return self.forward(*xs)

    def offset(self, *shapes: Shape) -> Tensor | None:
        """The constant c, [*shape of the result], or None where it is zero."""
        return None

    def uncertainty(self, *shapes: Shape) -> Tensor | None:
        """How far the value that is meant may be from `forward`, [*shape of the result], or None where it is that."""
        return None

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        """L_index^T applied to [B, R, *result shape], giving [B, R, *shapes[index]]; linear in `coefficients`.

        The default differentiates `forward`; operators on the hot path write it by hand.
        """
        batch, rows = coefficients.shape[:2]
        with torch.enable_grad():
            xs = [coefficients.new_zeros(batch * rows, *s) for s in shapes]
            xs[index].requires_grad_(True)
            y = self.forward(*xs)
            total = (y * coefficients.flatten(0, 1)).sum()
            grad = torch.autograd.grad(total, xs[index], create_graph=coefficients.requires_grad)[0]
        return grad.unflatten(0, (batch, rows))

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        """`transpose` for structured coefficients; operators override it for the kinds they keep structured."""
        return Dense(self.transpose(coefficients.dense(), index, *shapes))

    def interval(self, *xs: Interval) -> Interval:
        if self.exact:
            return Interval(self.forward(*[x.lower for x in xs]), self.forward(*[x.upper for x in xs]))
        if self.increasing:
            return self.between(xs, [x.lower for x in xs], [x.upper for x in xs])
        center = self.forward(*[x.center for x in xs])
        radius = self.absolute(*[x.radius for x in xs])
        error = self._error(xs, [x.magnitude for x in xs], center)
        return Interval(center - radius - error, center + radius + error).sanitise()

    def between(
        self, xs: Sequence[Interval], lowest: Sequence[Tensor], highest: Sequence[Tensor]
    ) -> Interval:
        """The interval where the value is smallest at `lowest` and largest at `highest`, which are ends of `xs`."""
        low, high = self.forward(*lowest), self.forward(*highest)
        return Interval(
            low - self._error(xs, [t.abs() for t in lowest], low),
            high + self._error(xs, [t.abs() for t in highest], high),
        ).sanitise()

    def _error(self, xs: Sequence[Interval], sizes: Sequence[Tensor], value: Tensor) -> Tensor:
        """How far a value computed from arguments of at most these sizes may be off."""
        size = self.absolute(*sizes) + value.abs() + negligible(value.dtype)
        error = rounding_unit(self, xs) * size
        doubt = self.uncertainty(*[tuple(x.lower.shape[1:]) for x in xs])
        return error if doubt is None else error + 2 * doubt  # for casting it rounds

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        shapes = tuple(builder.shape(x) for x in inputs)
        return [
            builder.add(Transposed(self, i, shapes), cotangent) if builder.is_variable(x) else None
            for i, x in enumerate(inputs)
        ]


def rounding_unit(op: Affine, xs: Sequence[Interval]) -> float:
    """A bound on the relative rounding error of one affine step: n + 4 roundings of one unit each, doubled."""
    eps = torch.finfo(xs[0].lower.dtype).eps
    return (op.fan_in(*[tuple(x.lower.shape[1:]) for x in xs]) + 4) * eps


def negligible(dtype: torch.dtype) -> float:
    """Times a rounding unit it bounds what one product may lose by underflow (flushed to zero, even)."""
    info = torch.finfo(dtype)
    return info.tiny / info.eps


@dataclass(frozen=True, eq=False)
class Transposed(Affine):
    """The linear map L_index^T of an affine operator, as an operator of its own (it appears in Jacobians)."""

    of: Affine
    index: int
    shapes: tuple[Shape, ...]

    def tensors(self) -> Iterator[Tensor]:
        return self.of.tensors()

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Transposed:
        return dataclasses.replace(self, of=self.of.to(dtype, device))

    def fan_in(self, *shapes: Shape) -> int:
        return self.of.fan_out(*self.shapes)

    def fan_out(self, *shapes: Shape) -> int:
        return self.of.fan_in(*self.shapes)

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.shapes[self.index]

    def forward(self, *xs: Tensor) -> Tensor:
        return self.of.transpose(xs[0].unsqueeze(1), self.index, *self.shapes).squeeze(1)

    def absolute(self, *xs: Tensor) -> Tensor:
        """Through the vector-Jacobian product of the operator's own |L|."""
        with torch.enable_grad():
            zeros = [xs[0].new_zeros(xs[0].shape[0], *s) for s in self.shapes]
            zeros[self.index].requires_grad_(True)
            y = self.of.absolute(*zeros)
            # Of the product's sum: gradients of given coefficients make torch import sympy, which takes a second.
            return torch.autograd.grad(
                (y * xs[0]).sum(), zeros[self.index], create_graph=xs[0].requires_grad
            )[0]

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        batch, rows = coefficients.shape[:2]
        zeros = [coefficients.new_zeros(1, *s) for s in self.shapes]
        zeros[self.index] = coefficients.flatten(0, 1)
        linear = self.of.forward(*zeros)
        offset = self.of.offset(*self.shapes)
        return (linear if offset is None else linear - offset).unflatten(0, (batch, rows))


@dataclass(frozen=True)
class Parameter:
    """A free parameter of a relaxation: any value in [lower, upper] gives sound lines.

    All three are tensors [B, *shape]; where lower equals upper there is nothing to optimise.
    """

    value: Tensor
    lower: Tensor
    upper: Tensor


class Relaxation(NamedTuple):
    """For all x in the box: sum_i lower_slopes[i] x_i + lower_intercept <= f(x) <= the same with upper.

    Slopes and intercepts have the shape of the operator's result with a batch dimension; an intercept that is
    zero everywhere may be None. The lines must hold up to `Elementwise.relaxation_error` units of rounding of
    |slope||x| + |intercept|, which the engine adds; an operator with larger errors inflates its intercepts.
    `finite` where all of them are known to be so.
    """

    lower_slopes: tuple[Tensor, ...]
    lower_intercept: Tensor | None
    upper_slopes: tuple[Tensor, ...]
    upper_intercept: Tensor | None
    finite: bool = False


class Elementwise(Op):
    """f applied element by element to arguments of one shape (broadcasting is written out as Expand)."""

    relaxation_error: int = 8

    stride: float = 1.0
    """What part of a parameter's range the steps of an optimisation are measured by."""

    silent: int = 0
    """How many of the last arguments only say what is known of the value: all lines have slope 0 in them."""

    copies: bool = False
    """True where the value is that of the first argument, of which the others say something. Lines without intercepts
    are that argument, then."""

    jumps: bool = False
    """True where f is discontinuous, at branching points only: there the closed halves do not determine it, but the
    open ones and the point do."""

    decided_by: int | None = None
    """The argument whose parts between branching points leave a function that is linear in the others, if there is
    one."""

    def output_shape(self, *shapes: Shape) -> Shape:
        if any(s != shapes[0] for s in shapes):
            raise ValueError(f"{type(self).__name__} takes arguments of one shape, got {shapes}.")
        return shapes[0]

    valued: tuple[float, float] = (-math.inf, math.inf)
    """Between what ends the one argument must lie for there to be a value at all, not NaN."""

    domain: str = ""
    """For which arguments f is defined, in words ("x > 0"); empty for all."""

    def outside(self, *xs: Interval) -> Tensor | None:
        """Boolean [B, *shape]: where the intervals hold arguments for which f is not defined; None for nowhere."""
        return None

    @abstractmethod
    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """The relaxation's free parameters at good starting values (may be empty)."""

    def ranges(self, *xs: Interval) -> dict[str, Interval]:
        """The parameters' ranges alone, which may cost less than good starting values."""
        return {name: Interval(p.lower, p.upper) for name, p in self.parameters(*xs).items()}

    @abstractmethod
    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        """Sound linear bounds on the box for any parameters in their ranges; differentiable in both."""

    def sketch(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation | None:
        """About what `relax` gives, also for parameters out of their ranges, at a fraction of its cost: for the steps
        of an optimisation, whose results are bounded anew. None where `relax` costs little."""
        return None

    def refinable(self, index: int, *xs: Interval) -> Tensor:
        """Boolean [B, *shape]: where a tighter interval of argument `index` can tighten the relaxation."""
        return xs[index].upper > xs[index].lower

    def derivatives(self, *xs: Interval) -> tuple[Interval, ...] | None:
        """Between what numbers the derivatives in the arguments lie, about, where the lines' slopes do not tell: to
        choose what to split by. None where they do."""
        return None

    def restrict(self, index: Tensor, shape: Shape) -> Elementwise:
        """The operator on the elements `index` [n] (flat positions in `shape`) alone, for arguments of shape [n].
        Raises NotImplementedError where its tensors belong to elements and it does not say how."""
        if any(True for _ in self.tensors()):
            raise NotImplementedError(f"{type(self).__name__} cannot be restricted to some elements.")
        return self

    def branching_point(self, index: int, *xs: Interval) -> Tensor:
        """Where to split argument `index`: [B, *shape], inside the interval wherever it has an inside."""
        return xs[index].center


def some(tensor: Tensor, leading: int, index: Tensor, shape: Shape) -> Tensor:
    """The entries [..., n] of a tensor that belong to the elements `index` [n] (flat positions in `shape`): its first
    `leading` dimensions are its own, the others broadcast to `shape`."""
    head, tail = tensor.shape[:leading], tensor.shape[leading:]
    wide = tensor.reshape(*head, *[1] * (len(shape) - len(tail)), *tail).expand(*head, *shape)
    return wide.reshape(*head, -1)[..., index.to(tensor.device)]


class Univariate(Elementwise):
    """f: R -> R elementwise, known through its support function.

    From `support_max(m, l, u) = max over x in [l, u] of f(x) - m x` and its minimum follow the range (m = 0)
    and a sound line for every slope.
    """

    smooth: bool = False
    """True where the best lines touch the function inside of the interval, and so where depends on the interval."""

    @abstractmethod
    def support_max(self, slope: Tensor, x: Interval) -> Tensor: ...

    @abstractmethod
    def support_min(self, slope: Tensor, x: Interval) -> Tensor: ...

    @abstractmethod
    def parameters(self, *xs: Interval) -> dict[str, Parameter]:
        """`lower_slope` and `upper_slope`."""

    def interval(self, *xs: Interval) -> Interval:
        zero = torch.zeros_like(xs[0].lower)
        return Interval(self.support_min(zero, xs[0]), self.support_max(zero, xs[0])).sanitise()

    def relax(self, parameters: Mapping[str, Tensor], *xs: Interval) -> Relaxation:
        lower, upper = parameters["lower_slope"], parameters["upper_slope"]
        return Relaxation((lower,), self.support_min(lower, xs[0]), (upper,), self.support_max(upper, xs[0]))
