"""Assignments as text: the exact layout, and that every float survives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.specs.errors import SpecError
from verifier.specs.formula import TRUE
from verifier.specs.query import Kind, NetworkDecl, Query, Variable, plain_variables
from verifier.specs.witness import read_witness, serialise, write_witness

ONE = Query((NetworkDecl("f"),), plain_variables((2,), (1,)), TRUE, 1)
TWO = Query(
    (NetworkDecl("f"),),
    (
        Variable("X", Kind.INPUT, "f", (1, 2), "float32", None, 0),
        Variable("H", Kind.HIDDEN, "f", (), "real", "node", 2),
        Variable("Y", Kind.OUTPUT, "f", (1,), "int64", None, 3),
    ),
    TRUE,
    2,
)


def test_version_1_layout() -> None:
    text = write_witness(ONE, {"X": [0.5, 1e-5], "Y": np.float32([0.1])})
    assert text == "((X_0 0.5)\n (X_1 1e-05)\n (Y_0 0.10000000149011612))"


def test_version_2_layout() -> None:
    text = write_witness(TWO, {"X": [[0.5, 1e-5]], "H": -2.0, "Y": [3]})
    assert text == "X float32 [1,2]\n0.5\n0.00001\nH real []\n-2.0\nY int64 [1]\n3"


def test_tensors_have_the_declared_types_and_shapes() -> None:
    tensors = serialise(write_witness(TWO, {"X": np.float32([[0.1, 1e-5]]), "H": -2.0, "Y": [3]}))
    found = {name: onnx.TensorProto.FromString(data) for name, data in tensors.items()}
    arrays = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in found.items()}
    assert [(n, t.name, list(t.dims)) for n, t in found.items()] == [
        ("X", "X", [1, 2]),
        ("H", "H", []),
        ("Y", "Y", [1]),
    ]
    assert [a.dtype for a in arrays.values()] == [np.float32, np.float64, np.int64]
    np.testing.assert_array_equal(arrays["X"], np.float32([[0.1, 1e-5]]))
    assert arrays["H"] == -2.0 and arrays["Y"].tolist() == [3]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=4, max_size=4))
@settings(max_examples=200, deadline=None)
def test_every_float_survives(numbers: list[float]) -> None:
    one = {"X": np.array(numbers[:2]), "Y": np.array(numbers[2:3])}
    two = {"X": np.array([numbers[:2]]), "H": np.array(numbers[2]), "Y": np.array(numbers[3:])}
    for query, values in ((ONE, one), (TWO, two)):
        again = read_witness(query, "sat\n" + write_witness(query, values) + "\n")
        assert list(again) == list(values)
        for name, array in values.items():
            assert again[name].shape == array.shape
            np.testing.assert_array_equal(again[name], array)


def test_missing_values_are_errors() -> None:
    with pytest.raises(ValueError, match="no values for Y"):
        write_witness(ONE, {"X": [0, 0]})
    with pytest.raises(ValueError, match="X has 2 elements, not 1"):
        write_witness(ONE, {"X": [0], "Y": [0]})


@pytest.mark.parametrize(
    ("query", "text", "message"),
    [
        (ONE, "((X_0 1) (Y_0 1))", "no value for X_1"),
        (ONE, "((X_0 1) (X_0 1) (X_1 0) (Y_0 1))", "1:10: X_0 is given twice"),
        (ONE, "((X_0 1)\n (X_2 1))", "2:2: X_2 is not declared"),
        (ONE, "((X_0 1)\n (X_1 a) (Y_0 1))", "2:7: a is not a number"),
        (ONE, "((X_0 1) (X_1 1) (Y_0 1)", "not of the form"),
        (TWO, "X float32 [2,1]\n0\n0\n", r"1:1: expected the line 'X float32 \[1,2\]'"),
        (TWO, "X float32 [1,2]\n0\n", "1:1: X has 2 values, found 1"),
        (TWO, "X float32 [1,2]\n0\nq\nH real []\n0\nY int64 [1]\n0", "3:1: 'q' is not a number"),
        (TWO, "X float32 [1,2]\n0\n0\nH real []\n0\nY int64 [1]\n0\n0", "8:1: unexpected '0'"),
    ],
)
def test_malformed_witnesses_are_errors(query: Query, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_witness(query, text)
