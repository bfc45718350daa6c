"""Models that slice and scatter where their input says: import, bounds, and verdicts with their jumps."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

import verifier
from verifier.bounds.compute import compute_bounds
from verifier.errors import UnsupportedError
from verifier.frontends.onnx import load
from verifier.frontends.replay import check, run
from verifier.graph import Interval
from verifier.ops.lookup import Lookup, Table
from verifier.sets import Box
from verifier.specs.compile import compile_query
from verifier.specs.load import load_query
from verifier.transforms.composites import write_out

SIZE = 8


def node(op: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), name=f"{op}_{output}", **attributes)


def build(nodes: list[NodeProto], constants: dict[str, np.ndarray], size: int = SIZE) -> bytes:
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, (size,))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [info], [output], initializer=stored)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


START = [
    node("Gather", "x zero", "where"),
    node("Cast", "where", "p", to=TensorProto.INT64),
    node("Add", "p two", "q"),
    node("Unsqueeze", "p zeros", "first"),
    node("Unsqueeze", "q zeros", "last"),
]
"""A window of at most two elements from the place that element 0 of the input says."""
WINDOW = [
    *START,
    node("Slice", "places first last zeros", "window"),
    node("Shape", "window", "shape"),
    node("ConstantOfShape", "shape", "erased"),
    node("Unsqueeze", "window ones", "index"),
    node("ScatterND", "pattern index erased", "mask"),
    node("Slice", "x ones ends", "rest"),
    node("Mul", "rest mask", "seen"),
    node("ReduceSum", "seen", "y", keepdims=1),
]
CONSTANTS = {
    "zero": np.array(0),
    "two": np.array(2),
    "zeros": np.array([0]),
    "ones": np.array([1]),
    "ends": np.array([SIZE]),
    "places": np.arange(SIZE - 1),
    "pattern": np.linspace(1, 2, SIZE - 1, dtype=np.float32),
}


def window() -> bytes:
    return build(WINDOW, CONSTANTS)


def points(count: int) -> np.ndarray:
    random = np.random.default_rng(3)
    x = random.uniform(-1, 1, (count, SIZE))
    x[:, 0] = random.uniform(-3, SIZE + 2, count)
    x[::3, 0] = x[::3, 0].round()
    return x.astype(np.float32)


def test_values_and_bounds_of_a_moving_window() -> None:
    model = load(window())
    check(model)
    x = points(80)
    (theirs,) = run(model, [x])
    exact = torch.from_numpy(x).double()
    (ours,) = model.graph.evaluate([exact])
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)
    assert sum(isinstance(n.op, Lookup) for n in model.graph.nodes) == 1
    graph = write_out(model.graph)
    random = torch.Generator().manual_seed(1)
    width = 10 ** (3 * torch.rand(80, 1, generator=random, dtype=torch.float64) - 2.5)
    for method in ("interval", "crown"):
        (found,) = compute_bounds(graph, [Box(exact - width, exact + width)], method).outputs
        for _ in range(30):
            move = 2 * torch.rand(exact.shape, generator=random, dtype=torch.float64) - 1
            (value,) = graph.evaluate([exact + width * move])
            assert (value >= found.lower - 1e-9).all() and (value <= found.upper + 1e-9).all()


def spec(low: float, high: float, bound: float, rest: float = 0.5) -> str:
    lines = [f"(declare-const X_{i} Real)" for i in range(SIZE)] + ["(declare-const Y_0 Real)"]
    lines += [f"(assert (>= X_0 {low}))", f"(assert (<= X_0 {high}))"]
    for i in range(1, SIZE):
        lines += [f"(assert (>= X_{i} {rest}))", f"(assert (<= X_{i} {rest}))"]
    return "\n".join([*lines, f"(assert (<= Y_0 {bound}))"])


@pytest.mark.parametrize(("low", "high"), [(0, 7), (0.5, 5.5), (-2.5, 3.999), (2, 2), (4, 4.5), (6.25, 20)])
def test_boxes_become_one_point_per_outcome(tmp_path: Path, low: float, high: float) -> None:
    """The least value over all integers of the box decides; the jump at the upper end counts."""
    model = load(window())
    (tmp_path / "p.vnnlib").write_text(spec(low, high, 0))
    query = load_query(tmp_path / "p.vnnlib")
    compiled = compile_query(query, {query.networks[0].name: model})
    assert (compiled.lower == compiled.upper).all()
    margins = compiled.graph.evaluate([compiled.lower])[0]
    dense = torch.full((4000, SIZE), 0.5, dtype=torch.float64)
    dense[:, 0] = torch.linspace(low, high, 4000, dtype=torch.float64)
    every = compiled.graph.evaluate([dense])[0]
    assert sorted(set(margins.flatten().tolist())) == sorted(set(every.flatten().tolist()))
    assert len(compiled.lower) == len(set(margins.flatten().tolist()))
    assert ((compiled.lower[:, 0] >= low) & (compiled.lower[:, 0] <= high)).all()


@pytest.mark.parametrize("step", [-1e-3, 1e-3])
def test_verdicts(tmp_path: Path, step: float) -> None:
    """Just below and above the true least value; it is taken at places 5, which is the end of the box alone."""
    (tmp_path / "net.onnx").write_bytes(window())
    pattern = np.linspace(1, 2, SIZE - 1, dtype=np.float32).astype(float)
    least = 0.5 * (pattern.sum() - pattern[5] - pattern[6])
    (tmp_path / "p.vnnlib").write_text(spec(0, 5, float(Fraction(least)) + step))
    result = verifier.verify(tmp_path / "net.onnx", tmp_path / "p.vnnlib", timeout=30)
    assert result.status.value == ("sat" if step > 0 else "unsat")
    if result.counterexample is not None:
        assert float(np.asarray(next(iter(result.counterexample.inputs.values()))).flatten()[0]) == 5.0


def test_elements_that_are_read_otherwise_too_stay_boxes(tmp_path: Path) -> None:
    nodes = [*WINDOW[:-1], node("ReduceSum", "seen", "s", keepdims=1), node("Gather", "x zeros", "again")]
    model = load(build([*nodes, node("Add", "s again", "y")], CONSTANTS))
    check(model)
    (tmp_path / "p.vnnlib").write_text(spec(0, 5, 0))
    query = load_query(tmp_path / "p.vnnlib")
    compiled = compile_query(query, {query.networks[0].name: model})
    assert len(compiled.lower) == 1 and compiled.upper[0, 0] == 5


def test_shapes_that_depend_on_the_input_are_refused() -> None:
    nodes = [
        *START,
        node("Slice", "places first last zeros", "w"),
        node("Cast", "w", "f", to=1),
        node("Mul", "f x", "y"),
    ]
    with pytest.raises(UnsupportedError, match="its shape depends on the network's input"):
        load(build(nodes, CONSTANTS))


def test_entries_without_a_value_make_everything_possible() -> None:
    def function(cell: tuple[int, ...]) -> torch.Tensor | None:
        return None if cell[0] == 2 else torch.tensor([cell[0], -cell[0]], dtype=torch.float64)

    op = Lookup(Table(function, 1, (2,)))

    def box(low: list[float], high: list[float]) -> Interval:
        return Interval(*[torch.tensor(e).unsqueeze(1).expand(-1, 2) for e in (low, high)])

    found = op.interval(box([0.2, 3.0, 1.5, -1.9], [1.9, 5.5, 2.0, 0.5]))
    assert found.lower.tolist() == [[0, -1], [3, -5], [-np.inf] * 2, [-1, 0]]
    assert found.upper.tolist() == [[1, 0], [5, -3], [np.inf] * 2, [0, 1]]
    points = op.interval(box([3.0, 2.0], [3.0, 2.5]))
    assert points.lower.tolist() == [[3, -3], [-np.inf] * 2]
    assert op.interval(box([-1e30], [1e30])).upper.isinf().all()
    value = op.forward(torch.tensor([[3.7, 3.7], [2.0, 2.0]]))
    assert value[0].tolist() == [3, -3] and value[1].isnan().all()


LAYERS = {
    "norm": [node("LpNormalization", "row", "y", p=1)],
    "rnn": [node("Reshape", "row steps", "t"), node("RNN", "t W R", "y", hidden_size=1, clip=1.0)],
    "gru": [
        node("Reshape", "row steps", "t"),
        node("GRU", "t W3 R3", "y", hidden_size=1, activations=["HardSigmoid", "Relu"]),
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_table_entries_are_what_onnxruntime_computes(name: str) -> None:
    """The reference implementation, which evaluates other nodes, leaves out the norm's absolute values, and clips and
    functions of recurrent layers: in some entries only, so that a check at random points may miss it."""
    looked_up = [node("Cast", "where", "p", to=TensorProto.INT64), node("Gather", "table p", "row", axis=0)]
    nodes = [node("Gather", "x zeros", "where"), *looked_up, *LAYERS[name]]
    if name != "norm":
        nodes[-1].output[:] = ["", "y"]
    ones = np.ones((1, 1, 1), np.float32)
    constants = CONSTANTS | {
        "table": np.array([[0.5, 0.25], [2, -3], [-1, 0.5], [3, 4]], np.float32),
        "steps": np.array([2, 1, 1]),
        "W": ones,
        "R": -ones,
        "W3": ones.repeat(3, 1),
        "R3": -ones.repeat(3, 1),
    }
    model = load(build(nodes, constants))
    x = np.zeros((4, SIZE), np.float32)
    x[:, 0] = range(4)
    (theirs,) = run(model, [x])
    (ours,) = model.graph.evaluate([torch.from_numpy(x).double()])
    np.testing.assert_allclose(ours.numpy().reshape(theirs.shape), theirs, atol=1e-5)
    exact = torch.from_numpy(x).double()
    for method in ("interval", "crown"):
        (found,) = compute_bounds(write_out(model.graph), [Box(exact, exact)], method).outputs
        for end in found:
            np.testing.assert_allclose(end.numpy().reshape(theirs.shape), theirs, atol=1e-5)


def test_entries_are_found_in_any_order() -> None:
    op = Lookup(Table(lambda cell: torch.tensor(float(cell[0]), dtype=torch.float64), 1, ()))
    for wanted in ([3.0], [5.0, 7.0, 3.0], [1e10]):
        ends = torch.tensor(wanted, dtype=torch.float64)
        found = op.interval(Interval(ends, ends))
        expected = torch.where(ends < 1e9, ends, torch.inf)
        assert torch.equal(found.upper, expected)


@pytest.mark.parametrize(("end", "reason"), [("q", "its shape depends"), ("p", "no elements")])
def test_outputs_without_a_fixed_shape_are_refused(end: str, reason: str) -> None:
    if end == "p":
        nodes = [*START, node("Slice", "places first first zeros", "w"), node("Cast", "w", "y", to=1)]
    else:
        nodes = [*START, node("Slice", "places first last zeros", "w"), node("Cast", "w", "y", to=1)]
    with pytest.raises(UnsupportedError, match=reason):
        load(build(nodes, CONSTANTS))


def test_some_elements_of_an_entry() -> None:
    def function(cell: tuple[int, ...]) -> torch.Tensor | None:
        return None if cell[0] > 4 else cell[0] * torch.arange(6, dtype=torch.float64).view(2, 3)

    op = Lookup(Table(function, 1, (2, 3)))
    index = torch.tensor([5, 0, 4, 3, 1, 2])
    for chosen in (index, index[:2]):
        part = op.restrict(chosen, (2, 3))
        ends = torch.tensor([2.0, 5.0]).unsqueeze(1).expand(-1, len(chosen))
        assert torch.equal(
            part.forward(ends)[:1], op.forward(torch.full((1, 2, 3), 2.0)).flatten(1)[:, chosen]
        )
        found = part.interval(Interval(ends, ends))
        assert found.lower[0].tolist() == (2 * chosen).tolist() and found.lower[1].isinf().all()


def test_entries_of_integers_that_do_not_fit_have_no_value() -> None:
    """A product of 32 bits in onnxruntime, where 50000 * 50000 is negative."""
    nodes = [
        node("Gather", "x zeros", "where"),
        node("Cast", "where", "p", to=TensorProto.INT32),
        node("Div", "p one", "q"),
        node("Mul", "q q", "r"),
        node("Cast", "r", "y", to=1),
    ]
    model = load(build(nodes, CONSTANTS | {"one": np.array([1], np.int32)}))
    check(model)
    x = np.zeros((2, SIZE), np.float32)
    x[:, 0] = 50000, 7
    (theirs,) = run(model, [x])
    assert theirs.tolist() == [[-1794967296.0], [49.0]]
    exact = torch.from_numpy(x).double()
    (found,) = compute_bounds(write_out(model.graph), [Box(exact, exact)], "crown").outputs
    assert found.lower.tolist() == [[-np.inf], [49.0]] and found.upper.tolist() == [[np.inf], [49.0]]


def test_slices_backwards_from_before_the_first_element() -> None:
    """ONNX starts at that element, numpy nowhere."""
    for source in ("x", "row"):
        nodes = [
            node("Gather", "x zero", "where"),
            node("Cast", "where", "p", to=TensorProto.INT64),
            node("Unsqueeze", "p zeros", "i"),
            node("Gather", "table i", "rows", axis=0),
            node("Squeeze", "rows zeros", "row"),
            node("Slice", f"{source} from to zeros steps", "y"),
        ]
        numbers = {"from": np.array([-100]), "to": np.array([-200]), "steps": np.array([-2])}
        table = np.arange(SIZE * 4, dtype=np.float32).reshape(4, SIZE)
        model = load(build(nodes, CONSTANTS | numbers | {"table": table}))
        check(model)
        x = np.ones((1, SIZE), np.float32)
        assert model.graph.evaluate([torch.from_numpy(x).double()])[0].tolist() == run(model, [x])[0].tolist()
