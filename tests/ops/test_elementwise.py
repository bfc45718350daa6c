"""Every elementwise operator: sound lines, intervals, parameters, branching points; and that the harness can
fail.

A new operator is entered in ENTRIES; the registry test says so if it is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import verifier.ops  # noqa: F401 - registers all operators
from tests.ops.curve_entries import CURVES
from verifier.graph import Builder, Elementwise, Interval, Relaxation
from verifier.ops.alternatives import Alternatives, alternatives
from verifier.ops.choice import Choice
from verifier.ops.comparison import Equals
from verifier.ops.difference import Difference, Rate, Secant
from verifier.ops.exponential import Exp
from verifier.ops.gated import Gated
from verifier.ops.integers import Stored, Truncate
from verifier.ops.lookup import Lookup
from verifier.ops.matmul import matmul
from verifier.ops.maximum import Maximum
from verifier.ops.movement import permute, reshape
from verifier.ops.near import Near
from verifier.ops.piecewise_linear import PiecewiseLinear, PRelu, Relu, absolute, piecewise_linear, prelu
from verifier.ops.product import Product, Square, multiply
from verifier.ops.reciprocal import Reciprocal
from verifier.ops.sigmoid import Sigmoid, Tanh
from verifier.ops.sign import Sign
from verifier.ops.sorting import Ranked
from verifier.ops.step import Step
from verifier.ops.switched import Switched
from verifier.ops.within import Within


def _slopes(n: int) -> Tensor:
    """Negative, positive, zero, one and large slopes."""
    generator = torch.Generator().manual_seed(1)
    slopes = 3 * torch.randn(n, generator=generator, dtype=torch.float64)
    slopes[::7], slopes[1::7], slopes[2::7] = 0.0, 1.0, 1e4 * slopes[2::7]
    return slopes


def _step(knots: list[float], levels: list[float]) -> Step:
    return Step(torch.tensor(knots, dtype=torch.float64), torch.tensor(levels, dtype=torch.float64))


def _inside(low: float, high: float) -> Callable:
    """Only points in a range count."""
    return lambda xs, at: (xs, [torch.where((p >= low) & (p <= high), p, torch.nan) for p in at])


def _off(*knots: float) -> Callable:
    """Only points whose first coordinate is no knot count."""

    def adapt(xs: list[Interval], at: list[Tensor]) -> tuple[list[Interval], list[Tensor]]:
        on = torch.stack([at[0] == k for k in knots]).any(0)
        return xs, [at[0], torch.where(on, torch.nan, at[1])]

    return adapt


def _switched(knots: list[float], levels: list[float]) -> Switched:
    return Switched(torch.tensor(knots, dtype=torch.float64), torch.tensor(levels, dtype=torch.float64))


def _around(center: float) -> Callable:
    """Only points count whose first argument is at most the second one from the center."""
    return lambda xs, at: (xs, [torch.where((at[0] - center).abs() <= at[1], p, torch.nan) for p in at])


def _ranked(rank: int) -> Callable:
    """The first argument is the one of that rank among the others."""

    def adapt(xs: list[Interval], at: list[Tensor]) -> tuple[list[Interval], list[Tensor]]:
        found = torch.stack(torch.broadcast_tensors(*at[1:])).sort(0, descending=True)[0][rank]
        inside = (found >= xs[0].lower) & (found <= xs[0].upper)
        return xs, [torch.where(inside, found, torch.nan), *at[1:]]

    return adapt


def _truths(xs: list[Interval], at: list[Tensor]) -> tuple[list[Interval], list[Tensor]]:
    """The first argument is 0 or 1, or either."""
    c = xs[0].map(lambda t: (t > 0).to(t.dtype))
    return [c, *xs[1:]], [(at[0] > 0).to(at[0].dtype), *at[1:]]


def _differences(xs: list[Interval], at: list[Tensor]) -> tuple[list[Interval], list[Tensor]]:
    """The second argument is the first one plus the third. Only points count where float64 has the sum exactly, and the
    third is not so small that values in float64 are rounded by as much as a line may be off by."""
    dtype = at[0].dtype
    first, other = at[0].clamp(-1e5, 1e5).double(), at[2].clamp(-1e5, 1e5).double()
    second = first + other
    moved = second - first
    other = moved.to(dtype).double()
    second = first + other
    step = second - first
    large = 1e8 if dtype == torch.float32 else 0.5
    exact = (other == step) & (large * other.abs() >= first.abs() + second.abs() + 1)
    found = [torch.where(exact, p, torch.nan) for p in (first, second, other)]
    boxes = []
    for p in found:
        low, high = (
            p.nan_to_num(torch.inf).amin(0, keepdim=True),
            p.nan_to_num(-torch.inf).amax(0, keepdim=True),
        )
        low, high = torch.where(low <= high, low, 0.0), torch.where(low <= high, high, 0.0)
        boxes.append(Interval(low, high).narrow(dtype))
    return boxes, found


# class to its forms: (name, how to make it for arguments of shape [n], other fields of harness.Entry)
ENTRIES: dict[type[Elementwise], list[tuple[str, Callable[[int], Elementwise], dict]]] = {
    Relu: [("relu", lambda n: Relu(), {})],
    PRelu: [
        ("leaky", lambda n: PRelu(torch.tensor(0.01)), {}),
        ("abs", lambda n: PRelu(torch.tensor(-1.0)), {}),
        ("concave", lambda n: PRelu(torch.tensor(2.5)), {}),
        ("per element", lambda n: PRelu(_slopes(n)), {}),
    ],
    PiecewiseLinear: [
        ("clip", lambda n: piecewise_linear([-0.5, 0.7], [0.0, 1.0, 0.0], -0.5), {"kinks": (-0.5, 0.7)}),
        ("relu6", lambda n: piecewise_linear([0.0, 6.0], [0.0, 1.0, 0.0], 0.0), {"kinks": (0.0, 6.0)}),
        (
            "zigzag",
            lambda n: piecewise_linear([-1.0, 0.1, 2.0], [1.0, -2.0, 0.5, 3.0], 0.3),
            {"kinks": (-1.0, 0.1, 2.0)},
        ),
        ("hinge", lambda n: piecewise_linear([0.3], [-1.0, 2.0], 0.0), {"kinks": (0.3,)}),
    ],
    Sign: [
        ("sign", lambda n: Sign(), {}),
        ("never zero", lambda n: Sign(1.0), {}),
        ("never zero, downward", lambda n: Sign(-1.0), {}),
    ],
    Exp: [("exp", lambda n: Exp(), {})],
    Reciprocal: [("reciprocal", lambda n: Reciprocal(), {})],
    Product: [("product", lambda n: Product(), {"arguments": 2})],
    Square: [("square", lambda n: Square(), {})],
    Gated: [
        ("relu", lambda n: Gated(Relu()), {"arguments": 2}),
        ("exp", lambda n: Gated(Exp()), {"arguments": 2}),
        ("quotient", lambda n: Gated(Reciprocal()), {"arguments": 2}),
        ("per element", lambda n: Gated(PRelu(_slopes(n))), {"arguments": 2}),
        ("exp and relu", lambda n: Gated(Exp(), Relu()), {"arguments": 2}),
        ("quotient and square", lambda n: Gated(Reciprocal(), Square()), {"arguments": 2}),
        ("sigmoid", lambda n: Gated(Sigmoid()), {"arguments": 2}),
        ("sigmoid and tanh", lambda n: Gated(Sigmoid(), Tanh()), {"arguments": 2}),
    ],
    Difference: [
        ("relu", lambda n: Difference(Relu(), (n,)), {"arguments": 3, "adapt": _differences}),
        (
            "leaky",
            lambda n: Difference(PRelu(torch.tensor(0.01)), (n,)),
            {"arguments": 3, "adapt": _differences},
        ),
        (
            "per element",
            lambda n: Difference(PRelu(_slopes(n)), (n,)),
            {"arguments": 3, "adapt": _differences},
        ),
        (
            "clip",
            lambda n: Difference(piecewise_linear([-0.5, 0.7], [0.0, 1.0, 0.0], -0.5), (n,)),
            {"arguments": 3, "kinks": (-0.5, 0.7), "adapt": _differences},
        ),
    ],
    Within: [
        ("both", lambda n: Within(-1.5, 2.0), {"kinks": (-1.5, 0.0, 2.0), "adapt": _inside(-1.5, 2.0)}),
        ("below", lambda n: Within(0.0, math.inf), {"adapt": _inside(0.0, math.inf)}),
    ],
    Near: [
        ("near", lambda n: Near(torch.full((n,), 0.3)), {"arguments": 2, "adapt": _around(0.3)}),
    ],
    Choice: [("choice", lambda n: Choice(), {"arguments": 3, "adapt": _truths})],
    Equals: [("equal", lambda n: Equals(), {"arguments": 2, "flat": ("lower",)})],
    Truncate: [
        ("truncate", lambda n: Truncate(), {"kinks": (-2.0, -1.0, 1.0, 3.0)}),
        ("to 3 bits", lambda n: Truncate(3), {"kinks": (-5.0, -4.0, 1.0, 3.0, 4.0)}),
    ],
    Stored: [("in 3 bits", lambda n: Stored(3), {"kinks": (-5.0, -4.0, 1.0, 3.0, 4.0)})],
    Maximum: [
        ("maximum of 2", lambda n: Maximum(2), {"arguments": 2}),
        ("maximum of 4", lambda n: Maximum(4), {"arguments": 4}),
    ],
    Ranked: [
        (
            "largest of 2",
            lambda n: Ranked(torch.zeros(n, dtype=torch.int64)),
            {"arguments": 3, "adapt": _ranked(0)},
        ),
        (
            "middle of 3",
            lambda n: Ranked(torch.ones(n, dtype=torch.int64)),
            {"arguments": 4, "adapt": _ranked(1)},
        ),
    ],
    Step: [
        ("relu", lambda n: _step([0.0], [0.0, 1.0]), {}),
        ("clip", lambda n: _step([-0.5, 0.7], [0.0, 1.0, 0.0]), {"kinks": (-0.5, 0.7)}),
        (
            "zigzag",
            lambda n: _step([-1.0, 0.1, 2.0], [1.0, -2.0, 0.5, 3.0]),
            {"kinks": (-1.0, 0.1, 2.0)},
        ),
        ("per element", lambda n: Step(torch.zeros(1), torch.stack([_slopes(n), torch.ones(n)])), {}),
    ],
    Switched: [
        ("relu", lambda n: _switched([0.0], [0.0, 1.0]), {"arguments": 2, "adapt": _off(0.0)}),
        (
            "clip",
            lambda n: _switched([-0.5, 0.7], [0.0, 1.0, 0.0]),
            {"arguments": 2, "kinks": (-0.5, 0.7), "adapt": _off(-0.5, 0.7)},
        ),
        (
            "zigzag",
            lambda n: _switched([-1.0, 0.1, 2.0], [1.0, -2.0, 0.5, 3.0]),
            {"arguments": 2, "kinks": (-1.0, 0.1, 2.0), "adapt": _off(-1.0, 0.1, 2.0)},
        ),
        (
            "per element",
            lambda n: Switched(torch.zeros(1), torch.stack([_slopes(n), torch.ones(n)])),
            {"arguments": 2, "adapt": _off(0.0)},
        ),
    ],
    Alternatives: [
        ("two", lambda n: Alternatives(), {"arguments": 2, "equal": True}),
        ("three", lambda n: Alternatives(), {"arguments": 3, "equal": True}),
    ],
}
FORMS = [
    pytest.param(make, fields, id=f"{c.__name__}-{name}")
    for c, forms in ENTRIES.items()
    for name, make, fields in forms
]


def _subclasses(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def test_every_operator_has_an_entry() -> None:
    import inspect

    own = {
        c
        for c in _subclasses(Elementwise)
        if c.__module__.startswith("verifier.ops") and not inspect.isabstract(c)
    }
    own.remove(Lookup)  # whose elements share their arguments: tests/frontends/test_onnx_discrete.py
    own -= {
        Rate,
        Secant,
    }  # of which one says nothing; the other is no easy value: tests/transforms/test_pairs.py
    missing = sorted(c.__name__ for c in own - set(ENTRIES) - set(CURVES))
    assert not missing, f"enter these operators in ENTRIES of this file: {missing}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("make", "fields"), FORMS)
def test_sound(harness: SimpleNamespace, make: Callable, fields: dict, dtype: torch.dtype) -> None:
    assert harness.cases >= 10_000
    harness.check(harness.Entry(make, **fields), dtype)


@pytest.mark.parametrize(("make", "fields"), FORMS)
def test_groups_of_slopes(harness: SimpleNamespace, make: Callable, fields: dict) -> None:
    harness.check_groups(harness.Entry(make, **fields))


def _scaled(side: str, what: str, factor: float) -> Callable[[Relaxation], Relaxation]:
    def distort(lines: Relaxation) -> Relaxation:
        name = f"{side}_{what}"
        old = getattr(lines, name)
        new = tuple(factor * t for t in old) if isinstance(old, tuple) else factor * old
        return lines._replace(**{name: new})

    return distort


def _fails(harness: SimpleNamespace, entry: object, distort: Callable[[Relaxation], Relaxation]) -> bool:
    try:
        harness.check(entry, torch.float32, distort)
    except AssertionError as error:
        return "a line is wrong" in str(error)
    return False


@pytest.mark.parametrize("side", ["lower", "upper"])
@pytest.mark.parametrize(("make", "fields"), FORMS)
def test_a_slope_or_intercept_off_by_one_percent_is_found(
    harness: SimpleNamespace, make: Callable, fields: dict, side: str
) -> None:
    entry = harness.Entry(make, **fields)
    assert side in entry.flat or any(_fails(harness, entry, _scaled(side, "slopes", f)) for f in (0.99, 1.01))
    lines = _example(entry, side)
    if lines is not None and bool((lines != 0).any()):
        assert any(_fails(harness, entry, _scaled(side, "intercept", f)) for f in (0.99, 1.01))


def _example(entry, side: str) -> Tensor | None:
    """An intercept of the operator on ordinary boxes."""
    op = entry.make(4).to(torch.float32)
    xs = [
        Interval(torch.tensor([[-1.0, -2.0, -0.6, -1.5]]), torch.tensor([[1.0, 0.5, 2.0, 3.0]]))
    ] * entry.arguments
    lines = op.relax({n: p.value for n, p in op.parameters(*xs).items()}, *xs)
    return getattr(lines, f"{side}_intercept")


def test_values() -> None:
    x = torch.tensor([[-2.0, -0.0, 0.0, 3.0]])
    assert Sign().forward(x).tolist() == [[-1.0, 0.0, 0.0, 1.0]]
    assert Sign(1.0).forward(x).tolist() == [[-1.0, 1.0, 1.0, 1.0]]
    assert Sign(-1.0).forward(x).tolist() == [[-1.0, -1.0, -1.0, 1.0]]
    assert PRelu(torch.tensor([0.5, 1.0, 2.0, 3.0])).forward(x).tolist() == [[-1.0, 0.0, 0.0, 3.0]]
    assert Alternatives().forward(x, x + 1e-7).tolist() == x.tolist()


def test_builders() -> None:
    b = Builder()
    x = b.input("x", (2, 3))
    per_channel = prelu(b, x, torch.tensor([[0.1], [0.2]], dtype=torch.float64))
    graph = b.graph(per_channel, absolute(b, x), alternatives(b, x, x), alternatives(b, x))
    value = torch.tensor([[[-1.0, 2.0, -3.0], [-1.0, 2.0, -3.0]]], dtype=torch.float64)
    y, size, same, single = graph.evaluate([value])
    assert torch.allclose(y, torch.tensor([[[-0.1, 2.0, -0.3], [-0.2, 2.0, -0.6]]], dtype=torch.float64))
    assert torch.equal(size, value.abs()) and torch.equal(same, value) and torch.equal(single, value)
    assert len([n for n in graph.nodes if isinstance(n.op, Relu)]) == 0
    with pytest.raises(ValueError, match="broadcast"):
        b.add(PRelu(torch.zeros(4)), x)


def test_planes_of_a_product_meet_it_at_the_corners_for_every_mixture() -> None:
    x = Interval(*torch.tensor([[[-1.0, 2.0]], [[3.0, 5.0]]], dtype=torch.float64))
    y = Interval(*torch.tensor([[[-2.0, -4.0]], [[1.0, -1.0]]], dtype=torch.float64))
    for weight in (0.0, 0.3, 1.0):
        mixes = {n: torch.full((1, 2), weight, dtype=torch.float64) for n in ("lower_mix", "upper_mix")}
        lines = Product().relax(mixes, x, y)
        for corners, slopes, intercept in (
            (((x.lower, y.upper), (x.upper, y.lower)), lines.lower_slopes, lines.lower_intercept),
            (((x.lower, y.lower), (x.upper, y.upper)), lines.upper_slopes, lines.upper_intercept),
        ):
            for a, b in corners:
                assert intercept is not None
                torch.testing.assert_close(slopes[0] * a + slopes[1] * b + intercept, a * b)


def _arguments(op: Elementwise) -> int:
    return op.count if isinstance(op, Maximum) else 2 if isinstance(op, Product) else 1


def test_planes_of_a_maximum_are_the_winner_where_it_is_decided() -> None:
    """The first argument always wins in the first column, the third one in the second; the third column is open."""
    boxes = [
        ([2.0, 0.0, 0.0], [3.0, 1.0, 2.0]),
        ([0.0, 1.0, -1.0], [2.0, 2.0, 1.0]),
        ([-1.0, 2.0, 0.5], [1.0, 2.0, 3.0]),
    ]
    xs = [Interval(torch.tensor([low]), torch.tensor([high])) for low, high in boxes]
    op = Maximum(3)
    lines = op.relax({n: p.value for n, p in op.parameters(*xs).items()}, *xs)
    assert lines.lower_intercept is not None and lines.upper_intercept is not None
    for slopes, intercept in (
        (lines.lower_slopes, lines.lower_intercept),
        (lines.upper_slopes, lines.upper_intercept),
    ):
        assert [s[0, :2].tolist() for s in slopes] == [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
        assert intercept[0, :2].tolist() == [0.0, 0.0]
    # At the second largest upper end, 2: above lies the chord of max(x_3, 2) from 0.5 to 3.
    assert [s[0, 2].item() for s in lines.upper_slopes] == pytest.approx([0.0, 0.0, 0.4])
    assert lines.upper_intercept[0, 2].item() == pytest.approx(2 - 0.4 * 0.5, rel=1e-5)
    refinable = [op.refinable(k, *xs)[0].tolist() for k in range(3)]
    assert refinable == [[False, False, True], [False, False, True], [False, False, True]]


def test_arguments_of_a_maximum_may_share_an_interval() -> None:
    """A batch of one stands for all, as where a split has changed the others only."""
    one = Interval(torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 2.0]]))
    many = Interval(torch.randn(5, 2) - 1, torch.randn(5, 2) + 4)
    op = Maximum(3)
    mixed, whole = (one, many, one), (one.expand(5), many, one.expand(5))
    for a, b in zip(op.parameters(*mixed).values(), op.parameters(*whole).values(), strict=True):
        torch.testing.assert_close(a.value, b.value)
    values = {name: p.value for name, p in op.parameters(*mixed).items()}
    lines, same = op.relax(values, *mixed), op.relax(values, *whole)
    torch.testing.assert_close(lines.lower_intercept, same.lower_intercept)
    torch.testing.assert_close(lines.upper_intercept, same.upper_intercept)
    assert torch.equal(op.refinable(1, *mixed), op.refinable(1, *whole))


@pytest.mark.parametrize("op", [Product(), Square(), Maximum(3)])
def test_infinite_intervals_give_no_planes_but_never_nan(op: Elementwise) -> None:
    ends = torch.tensor([[-torch.inf, -torch.inf, 1.0, -torch.inf, 0.0, -1.0]])
    tops = torch.tensor([[torch.inf, -2.0, torch.inf, 3e38, torch.inf, 3e38]])
    xs = [Interval(ends, tops)] * _arguments(op)
    parameters = op.parameters(*xs)
    assert all(t.isfinite().all() for p in parameters.values() for t in (p.value, p.lower, p.upper))
    lines = op.relax({n: p.value for n, p in parameters.items()}, *xs)
    assert lines.lower_intercept is not None and lines.upper_intercept is not None
    assert (lines.upper_intercept == torch.inf).all()
    assert (lines.lower_intercept == -torch.inf).all()
    assert not any(t.isnan().any() for t in (*lines.lower_slopes, *lines.upper_slopes))
    found = op.interval(*xs)
    assert (found.lower <= found.upper).all()


def test_intervals_of_products_keep_their_sign() -> None:
    x = Interval(torch.tensor([[0.0, 1e-30, -1.0, -2.0]]), torch.tensor([[2.0, 1.0, 0.0, 3.0]]))
    assert (Square().interval(x).lower >= 0).all()
    found = Product().interval(x, x)
    assert found.lower[0, :3].tolist() == [0.0, 0.0, 0.0] and found.lower[0, 3] < -6.0


def test_a_value_times_itself_is_a_square() -> None:
    b = Builder()
    x, y = b.input("x", (2, 3)), b.input("y", (3,))
    graph = b.graph(multiply(b, x, x), multiply(b, x, y))
    assert [type(n.op) for n in graph.nodes if isinstance(n.op, Product | Square)] == [Square, Product]
    u, v = torch.randn(4, 2, 3), torch.randn(4, 3)
    squared, mixed = graph.evaluate([u, v])
    assert torch.equal(squared, u * u) and torch.equal(mixed, u * v[:, None])


def test_the_same_elements_moved_alike_are_a_square() -> None:
    b = Builder()
    x = b.input("x", (2, 3))
    flat = reshape(b, x, (6,))
    alike = matmul(b, flat, reshape(b, permute(b, permute(b, x, (1, 0)), (1, 0)), (6,)))
    turned = multiply(b, x, reshape(b, permute(b, x, (1, 0)), (2, 3)))
    kinds = [
        [type(n.op) for n in b.graph(y).nodes if isinstance(n.op, Product | Square)] for y in (alike, turned)
    ]
    assert kinds == [[Square], [Product]]
    u = torch.randn(4, 2, 3)
    torch.testing.assert_close(b.graph(alike).evaluate([u])[0], (u * u).sum((1, 2)))


def test_a_step_holds_both_sides_of_a_knot() -> None:
    """At a kink every generalised derivative: the hull of both one-sided ones, for lines too."""
    step = _step([0.0, 1.0], [-1.0, 2.0, 0.5])
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for low, high, expected in (
        (zero, zero, (-1.0, 2.0)),
        (-one, zero, (-1.0, 2.0)),
        (zero + 1e-300, one - 1e-9, (2.0, 2.0)),
        (one, 2 * one, (0.5, 2.0)),
        (one + 1e-9, 2 * one, (0.5, 0.5)),
        (-one, 2 * one, (-1.0, 2.0)),
    ):
        x = Interval(low, high)
        found = step.interval(x)
        assert (found.lower.item(), found.upper.item()) == expected
        for slope in (-1.5, 0.0, 2.0):
            tilt = torch.full_like(zero, slope)
            for knot in (zero, one):
                if (low <= knot) & (knot <= high):
                    sides = step.interval(Interval(knot, knot))
                    assert step.support_max(tilt, x) >= sides.upper - slope * knot
                    assert step.support_min(tilt, x) <= sides.lower - slope * knot


@pytest.mark.parametrize(
    "op", [Product(), Square(), Maximum(3), Exp(), Reciprocal(), _step([0.0], [0.0, 1.0])]
)
def test_gradients_are_finite_beside_infinite_intervals(op: Elementwise) -> None:
    """An overflow in one neuron must not end the optimisation of all others."""
    lower = torch.tensor([[-torch.inf, -1.0, -1.0, 1e30, 0.0]]).requires_grad_()
    upper = torch.tensor([[torch.inf, torch.inf, 2.0, 2e30, 0.0]]).requires_grad_()
    xs = [Interval(lower, upper)] * _arguments(op)
    chosen = {n: p.value.detach().requires_grad_() for n, p in op.parameters(*xs).items()}
    lines = op.relax(chosen, *xs)
    total = torch.zeros(())
    for line in (*lines.lower_slopes, *lines.upper_slopes, lines.lower_intercept, lines.upper_intercept):
        assert line is not None
        total = total + line[line.isfinite()].sum()
    gradients = torch.autograd.grad(total, [lower, upper, *chosen.values()], allow_unused=True)
    assert all(g is None or not g.isnan().any() for g in gradients)
