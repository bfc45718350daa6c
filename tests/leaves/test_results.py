from __future__ import annotations

import json
import math
import pickle

import jsonschema
import numpy as np
import pytest

from verifier.errors import ModelError, UnsupportedError, UnsupportedNode
from verifier.results import Counterexample, Reason, Result, Stats, Status

POINT = Counterexample(
    {"x": np.array([[0.1, np.inf]], np.float32), "k": np.array([3])},
    {"y": np.array([math.nan])},
    tolerance=1e-5,
)
RESULTS = [
    Result(Status.UNSAT, bound=0.5, stats=Stats(domains=3, seconds={"load": 0.25, "search": 1})),
    Result(Status.UNSAT, bound=math.inf, reason=Reason.EMPTY_INPUT_SET),
    Result(Status.SAT, bound=-math.inf, counterexample=POINT, versions={"torch": "2.13.0"}),
    Result(
        Status.TIMEOUT, stats=Stats(peak_memory_mb=12.5, device="cpu", dtype="float32", attack_margin=0.1)
    ),
    *(Result(Status.UNKNOWN, reason=reason) for reason in Reason),
]


@pytest.fixture(scope="module")
def schema(root):
    return json.loads((root / "verifier/results.schema.json").read_text())


@pytest.mark.parametrize("result", RESULTS, ids=lambda r: f"{r.status.value}-{r.reason.value}")
def test_json_is_strict_and_follows_the_schema(result, schema):
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    jsonschema.validate(json.loads(result.to_json(), parse_constant=refuse), schema)


def test_the_schema_knows_every_verdict_and_reason_and_the_version(schema):
    from verifier.results import SCHEMA_VERSION

    properties = schema["properties"]
    assert properties["verdict"]["enum"] == [status.value for status in Status]
    assert properties["reason"]["enum"] == [reason.value for reason in Reason]
    assert properties["schema_version"]["const"] == SCHEMA_VERSION


def test_the_schema_refuses_a_sat_without_counterexample(schema):
    value = Result(Status.UNSAT).to_dict() | {"verdict": "sat", "holds": False}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, schema)


def test_float32_values_survive_json():
    value = np.float32(0.1)
    array = json.loads(RESULTS[2].to_json())["counterexample"]["inputs"]["x"]
    assert (array["shape"], array["dtype"]) == ([1, 2], "float32")
    assert np.float32(array["values"][0]) == value and float(array["values"][1]) == math.inf


def test_holds():
    assert [r.holds for r in RESULTS[:4]] == [True, True, False, None]
    assert Result(Status.UNKNOWN).holds is None


def test_a_result_has_no_truth_value():
    with pytest.raises(TypeError, match=r"Ask result\.holds"):
        bool(Result(Status.UNSAT))


def test_only_sat_has_a_counterexample():
    for result in ({"status": Status.SAT}, {"status": Status.UNSAT, "counterexample": POINT}):
        with pytest.raises(ValueError, match="exactly when its status is sat"):
            Result(**result)


def test_printed_words():
    assert [s.printed() for s in Status] == ["sat", "unsat", "unknown", "timeout"]
    assert [s.printed(2) for s in Status] == ["sat", "unsat", "unknown", "timed-out"]


def test_every_verdict_and_reason_explains_itself():
    assert all(s.advice.endswith(".") for s in Status)
    assert all(r.text.endswith(".") for r in Reason if r is not Reason.NONE) and Reason.NONE.text == ""
    result = Result(Status.UNKNOWN, reason=Reason.NUMERICS, detail="Margin 1e-9.")
    assert result.explanation == f"Margin 1e-9. {Reason.NUMERICS.text}"
    assert Result(Status.UNSAT, bound=0.5).explanation == Status.UNSAT.advice
    assert "bound 0 is" in Result(Status.UNSAT, bound=0.0).explanation
    assert "bound 0 is" not in Result(Status.UNKNOWN, bound=0.0).explanation


def test_unsupported_error_lists_all_nodes_and_pickles():
    error = UnsupportedError([("a", "Foo", 13, "unknown"), ("", "Bar", 9, "axis")])
    assert error.nodes == (UnsupportedNode("a", "Foo", 13, "unknown"), UnsupportedNode("", "Bar", 9, "axis"))
    assert isinstance(error, ModelError)
    copy = pickle.loads(pickle.dumps(error))
    assert copy.nodes == error.nodes and str(copy) == str(error)
    assert str(UnsupportedError(error.nodes[:1])).startswith(
        "1 node of the network is not supported:\n  a: Foo"
    )
