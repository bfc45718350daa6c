"""The bound that comes with a verdict is a lower bound of the margin."""

from __future__ import annotations

import numpy as np
import pytest

import verifier
from tests.verdicts.networks import Case, Join, Layer, Leaf, Net, to_onnx
from verifier.options import Options
from verifier.results import Status
from verifier.specs.load import parse_query


def net() -> Net:
    """x to 0.01, which every bound knows, and to 0.5 + 2 relu(x) - relu(2 x), of which bounds know only after a split
    that it is 0.5."""
    first = {"weight": np.array([[1.0], [2.0]], np.float32), "bias": np.zeros(2, np.float32)}
    last = {
        "weight": np.array([[0.0, 0.0], [2.0, -1.0]], np.float32),
        "bias": np.array([0.01, 0.5], np.float32),
    }
    return Net(1, (Layer("affine", (0,), 2, first), Layer("relu", (1,), 2), Layer("affine", (2,), 2, last)))


@pytest.mark.parametrize("cases", [1, 2])
@pytest.mark.parametrize("branching", ["input", "activation"])
def test_bound_counts_what_was_refuted_on_the_way(branching, cases: int) -> None:
    """Both outputs in a disjunction, over one box or each over a box of its own: the margin is 0.01."""
    atoms = [Leaf(((1, 1.0),), 0.0), Leaf(((2, 1.0),), 0.0)]
    if cases == 2:
        ends = [(-1.0, 1.0), (-1.0, 1.5)]
        atoms = [
            Join(True, (Leaf(((0, -1.0),), low), Leaf(((0, 1.0),), -high), atom))
            for (low, high), atom in zip(ends, atoms, strict=True)
        ]
    case = Case(net(), np.array([-2.0]), np.array([2.0]), Join(False, tuple(atoms)))
    result = verifier.verify(
        to_onnx(case.net),
        parse_query(case.text()),
        options=Options(attack=False, branching=branching, timeout=20),
    )
    assert result.status is Status.UNSAT
    assert result.bound is not None and result.bound <= float(np.float32(0.01))
