from __future__ import annotations

import math
from dataclasses import fields

import pytest

from verifier.errors import OptionsError, VerifierError
from verifier.options import Options, option_fields


def test_defaults_are_valid_and_each_field_has_a_help_text():
    assert Options().seconds == 300.0
    assert [name for name, text in option_fields() if text.endswith(".")] == [f.name for f in fields(Options)]
    assert len(fields(Options)) <= 13


@pytest.mark.parametrize("timeout", [None, math.inf])
def test_no_time_limit(timeout):
    assert Options(timeout=timeout).seconds == math.inf


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timeout": 0}, "timeout must be a positive number, or None for no limit, not 0."),
        ({"timeout": math.nan}, "timeout must be a positive number, or None for no limit, not nan."),
        ({"timeout": "5"}, "timeout must be a positive number, or None for no limit, not '5'."),
        ({"max_memory_gb": -1.0}, "max_memory_gb must be a positive number, or None for no limit, not -1.0."),
        ({"device": "mps"}, "device must be one of auto, cpu, cuda, not 'mps'."),
        ({"dtype": "float16"}, "dtype must be one of auto, float32, float64, not 'float16'."),
        ({"method": []}, "method must be one of auto, interval, crown, alpha-crown, not []."),
        (
            {"branching": None},
            "branching must be one of auto, input, activation, babsr, fsb, bbps, not None.",
        ),
        ({"attack": 1}, "attack must be True or False, not 1."),
        ({"threads": 0}, "threads must be a positive integer, or None for automatic, not 0."),
        ({"threads": 2.0}, "threads must be a positive integer, or None for automatic, not 2.0."),
        ({"batch_size": True}, "batch_size must be a positive integer, or None for automatic, not True."),
        ({"seed": -1}, "seed must be an integer from 0 to 2**63 - 1, not -1."),
        ({"seed": None}, "seed must be an integer from 0 to 2**63 - 1, not None."),
        (
            {"batch_size": 64, "max_domains": 10},
            "batch_size=64 contradicts max_domains=10: the first batch alone would pass the limit. "
            "Lower batch_size or raise max_domains.",
        ),
        (
            {"method": "interval", "branching": "activation"},
            "method='interval' contradicts branching='activation': interval bounds cannot use a split "
            "activation's constraint. Use method='crown', or branching='input'.",
        ),
    ],
)
def test_impossible_values_are_refused_in_full_sentences(values, message):
    with pytest.raises(OptionsError) as caught:
        Options(**values)
    assert str(caught.value) == message
    assert isinstance(caught.value, VerifierError) and isinstance(caught.value, ValueError)
