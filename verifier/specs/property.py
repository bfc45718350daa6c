"""Properties in Python: `X` and `Y` are the network's input and output, `Property` says what must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from verifier.specs.builder import FormulaBuilder, Item, exact_text
from verifier.specs.errors import SpecError
from verifier.specs.formula import (
    And,
    Atom,
    Formula,
    Or,
    Polynomial,
    Relation,
    conjunction,
    disjunction,
    negation,
    sum_of,
)
from verifier.specs.query import NetworkDecl, Query, Variable, plain_variables

Symbol = tuple[str, tuple[int, ...]]
"""``("Y", (3,))`` is the flat element 3, ``("Y", (0, 3))`` an element of a shaped output."""

_NO_TRUTH = (
    "a property has no truth value here: write (a < b) & (b < c) for a < b < c, and `&`, `|`, `~` (with "
    "parentheses around comparisons) for `and`, `or`, `not`"
)


class BoxLike(Protocol):
    """Anything with the two corners of a box, arrays or tensors of one shape."""

    @property
    def lower(self) -> Any: ...
    @property
    def upper(self) -> Any: ...


class Expression:
    """A polynomial in elements of `X` and `Y`, with exact coefficients (a float is the rational that it is)."""

    __array_ufunc__ = None  # numpy scalars leave the operators to this class
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, polynomial: Polynomial) -> None:
        self.polynomial = polynomial

    def __add__(self, other: object) -> Expression:
        return self._apply(other, lambda a, b: a + b)

    def __sub__(self, other: object) -> Expression:
        return self._apply(other, lambda a, b: a - b)

    def __rsub__(self, other: object) -> Expression:
        return self._apply(other, lambda a, b: b - a)

    def __mul__(self, other: object) -> Expression:
        return self._apply(other, lambda a, b: a * b)

    __radd__ = __add__
    __rmul__ = __mul__

    def __truediv__(self, other: object) -> Expression:
        if isinstance(other, Expression):
            raise TypeError("division by an expression; multiply both sides of the comparison instead")
        return Expression(self.polynomial.scaled(1 / _number(other)))

    def __pow__(self, power: int) -> Expression:
        if not isinstance(power, int) or power < 0:
            raise TypeError("powers of an expression must be non-negative integers")
        result = Polynomial.constant(1)
        for _ in range(power):
            result = result * self.polynomial
        return Expression(result)

    def __neg__(self) -> Expression:
        return Expression(-self.polynomial)

    def __le__(self, other: object) -> Constraint:
        return self._compare(other, Relation.LE)

    def __lt__(self, other: object) -> Constraint:
        return self._compare(other, Relation.LT)

    def __ge__(self, other: object) -> Constraint:
        return self._compare(other, Relation.GE)

    def __gt__(self, other: object) -> Constraint:
        return self._compare(other, Relation.GT)

    def __eq__(self, other: object) -> Constraint:  # type: ignore[override]
        return self._compare(other, Relation.EQ)

    def __ne__(self, other: object) -> Constraint:  # type: ignore[override]
        return self._compare(other, Relation.NE)

    def __bool__(self) -> NoReturn:
        raise TypeError(_NO_TRUTH)

    def _apply(self, other: object, operation: Callable[[Polynomial, Polynomial], Polynomial]) -> Expression:
        return Expression(operation(self.polynomial, _polynomial(other)))

    def _compare(self, other: object, relation: Relation) -> Constraint:
        difference = self.polynomial - _polynomial(other)
        if relation in (Relation.GE, Relation.GT):
            return Constraint(Atom(-difference, relation.mirrored))
        return Constraint(Atom(difference, relation))


def _polynomial(value: object) -> Polynomial:
    return value.polynomial if isinstance(value, Expression) else Polynomial.constant(_number(value))


def _number(value: Any) -> Fraction:
    if isinstance(value, bool | np.bool_ | str | Constraint):
        raise TypeError(f"{value!r} is not a number")
    if isinstance(value, Fraction):
        return value
    if isinstance(value, int | np.integer):
        return Fraction(int(value))
    try:
        return Fraction(float(value))
    except (OverflowError, ValueError):
        raise ValueError(f"{value!r} is not a finite number") from None


@dataclass(frozen=True, eq=False)
class Constraint:
    """A Boolean combination of comparisons; combine with ``&``, ``|``, ``~``."""

    formula: Formula

    def __and__(self, other: object) -> Constraint:
        return Constraint(conjunction((self.formula, _formula(other))))

    def __or__(self, other: object) -> Constraint:
        return Constraint(disjunction((self.formula, _formula(other))))

    def __invert__(self) -> Constraint:
        return Constraint(negation(self.formula))

    def __bool__(self) -> NoReturn:
        raise TypeError(_NO_TRUTH)


def _formula(value: object) -> Formula:
    if not isinstance(value, Constraint):
        raise TypeError(
            f"{value!r} is not a comparison; put parentheses around comparisons joined by & and |"
        )
    return value.formula


@dataclass(frozen=True)
class Classified:
    """The output at flat index ``label`` is larger than every other output."""

    label: int


class Tensor:
    """The network's input or output: ``Y[3]`` is the flat (row-major) element 3, ``Y[0, 3]`` one of a shape."""

    __iter__ = None

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, index: int | tuple[int, ...]) -> Expression:
        indices = index if isinstance(index, tuple) else (index,)
        if not indices or not all(
            isinstance(i, int | np.integer) and not isinstance(i, bool) for i in indices
        ):
            raise TypeError(f"{self.name}[...] takes integers: {self.name}[3] or {self.name}[0, 3]")
        if any(i < 0 for i in indices):
            raise IndexError(f"{self.name} has no negative indices, since its size is not known yet")
        return Expression(Polynomial.variable((self.name, tuple(int(i) for i in indices))))


X = Tensor("X")
Y = Tensor("Y")


@dataclass(frozen=True, eq=False)
class Property:
    """For every input in the box, ``ensures`` must hold.

    ``inputs`` has ``.lower`` and ``.upper``, of the shape of one network input. ``output_shape`` is needed only
    to write a file or when ``ensures`` mixes flat and shaped indices; otherwise it is taken from the indices.
    """

    inputs: BoxLike
    ensures: Constraint | Classified
    output_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.ensures, Constraint | Classified):
            raise TypeError(f"ensures must be a comparison such as Y[3] > Y[1], not {self.ensures!r}")

    def to_query(self, output_shape: tuple[int, ...] | None = None) -> Query:
        """The query whose ``unsat`` proves the property: the box, and the negation of ``ensures``.

        Raises `SpecError` for a box with infinite, NaN or crossing ends, and for indices outside the shapes.
        """
        lower, upper = (_array(end) for end in (self.inputs.lower, self.inputs.upper))
        variables = plain_variables(lower.shape, tuple(output_shape or self.output_shape or self._shape()))
        builder = _box(lower, upper)
        items: list[Item] = [(0, 2 * lower.size)] if lower.size else []
        items.append(_claim(builder, negation(self._claim(variables[1])), variables))
        return Query((NetworkDecl("f"),), variables, builder.finish(items), 1)

    def to_vnnlib(
        self, path: str | Path, output_shape: tuple[int, ...] | None = None, version: int = 1
    ) -> None:
        """Write the query as VNN-LIB `version` 1 or 2 (gzipped when `path` ends in ``.gz``), every number exact."""
        from verifier.specs.writer import write_query

        write_query(self.to_query(output_shape), path, version)

    def _claim(self, output: Variable) -> Formula:
        if isinstance(self.ensures, Constraint):
            return self.ensures.formula
        label = self.ensures.label
        if not 0 <= label < output.size:
            raise SpecError(f"label {label} of {output.size} outputs", hint="labels count from 0")
        if output.size == 1:
            raise SpecError(
                "a single output has no other class", hint="write the bound on Y[0] as a Property"
            )
        others = (k for k in range(output.size) if k != label)
        return conjunction((Y[label] > Y[k]).formula for k in others)

    def _shape(self) -> tuple[int, ...]:
        """The smallest output shape that has all the indices."""
        if isinstance(self.ensures, Classified):
            raise SpecError("the number of outputs is not known", hint="pass output_shape")
        indices = [index for name, index in _symbols(self.ensures.formula) if name == "Y"]
        if not indices:
            return (1,)
        if len({len(index) for index in indices}) > 1:
            raise SpecError(
                "Y is indexed in several ways, so its shape is not known", hint="pass output_shape"
            )
        return tuple(max(column) + 1 for column in zip(*indices, strict=True))


def robust(
    x: ArrayLike,
    label: int,
    eps: ArrayLike,
    clip: tuple[float, float] | None = None,
    output_shape: tuple[int, ...] | None = None,
) -> Property:
    """Every input within `eps` of `x` (maximum norm, cut to `clip`) is classified as `label`.

    `eps` is in the units of `x`: a scalar, something that broadcasts to `x`, or one number per channel of
    ``[..., channels, height, width]``. The box is rounded outward, so it has every such input.
    """
    centre = _array(x)
    radius = _array(eps)
    if radius.ndim == 1 and radius.size > 1 and centre.ndim >= 3 and radius.size == centre.shape[-3]:
        radius = radius[:, None, None]
    if not (np.isfinite(radius).all() and (radius >= 0).all()):
        raise ValueError("eps must be finite and not negative")
    lower, upper = _difference(centre, radius, -np.inf), -_difference(-centre, radius, -np.inf)
    if lower.shape != centre.shape:
        raise ValueError(f"eps of shape {radius.shape} does not broadcast to x of shape {centre.shape}")
    if clip is not None:
        lower, upper = np.clip(lower, *clip), np.clip(upper, *clip)
    return Property(_Box(lower, upper), Classified(int(label)), output_shape)


@dataclass(frozen=True, eq=False)
class _Box:
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


def _difference(a: NDArray[np.float64], b: NDArray[np.float64], toward: float) -> NDArray[np.float64]:
    """``a - b`` rounded down, by the exact error of the floating-point subtraction."""
    rounded = a - b
    part = rounded - a
    error = (a - (rounded - part)) + (-b - part)
    return np.where(error < 0, np.nextafter(rounded, toward), rounded)


def _array(values: Any) -> NDArray[np.float64]:
    """An array, or a tensor on any device, as float64."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values).astype(np.float64)


def _box(lower: NDArray[np.float64], upper: NDArray[np.float64]) -> FormulaBuilder:
    """A builder that starts with two rows per input element."""
    if lower.shape != upper.shape:
        raise SpecError(
            f"the box's corners have shapes {lower.shape} and {upper.shape}", hint="use equal shapes"
        )
    bad = ~(np.isfinite(lower) & np.isfinite(upper) & (lower <= upper))
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        message = f"the box is [{lower[index]}, {upper[index]}] at X{list(index)}"
        raise SpecError(message, hint="lower and upper must be finite, and lower at most upper")
    texts = [
        exact_text(value)
        for value in np.stack((lower.reshape(-1), upper.reshape(-1)), 1).reshape(-1).tolist()
    ]
    numerals = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    left = np.repeat(np.arange(lower.size), 2).tolist()
    right = [~numerals[text] for text in texts]
    return FormulaBuilder(left, [int(Relation.GE), int(Relation.LE)] * lower.size, right, numerals)


def _symbols(formula: Formula) -> set[Symbol]:
    if isinstance(formula, And | Or):
        return {symbol for child in formula.children for symbol in _symbols(child)}
    return set(formula.expr.variables) if isinstance(formula, Atom) else set()  # type: ignore[arg-type]


def _claim(builder: FormulaBuilder, formula: Formula, variables: tuple[Variable, ...]) -> Item:
    """`formula` over symbols as an item over flat indices."""
    offsets = {symbol: _offset(symbol, variables) for symbol in _symbols(formula)}

    def item(part: Formula) -> Item:
        if isinstance(part, And | Or):
            return "and" if isinstance(part, And) else "or", [item(child) for child in part.children]
        if not isinstance(part, Atom):
            return part
        # summed, since Y[3] and Y[0, 3] may be the same element
        terms = (Polynomial(((tuple(sorted(offsets[s] for s in m)), c),)) for m, c in part.expr.terms)
        return builder.compare(part.relation, sum_of(terms), "0")

    return item(formula)


def _offset(symbol: Symbol, variables: tuple[Variable, ...]) -> int:
    name, index = symbol
    variable = variables[0] if name == "X" else variables[1]
    if len(index) == 1 and index[0] < variable.size:
        return variable.offset + index[0]
    if len(index) == len(variable.shape) and all(i < n for i, n in zip(index, variable.shape, strict=True)):
        return variable.offset + int(np.ravel_multi_index(index, variable.shape))
    shown = ", ".join(map(str, index))
    hint = f"its shape is {variable.shape}; {name}[i] counts all elements, {name}[i, j ...] gives every axis"
    raise SpecError(f"{name}[{shown}] does not exist", hint=hint)
