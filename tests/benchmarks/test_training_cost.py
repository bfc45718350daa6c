"""The cost benchmark runs, and its table divides by the right plain step."""

from __future__ import annotations

import torch

from benchmarks import training_cost as script


def test_every_step_runs_on_a_small_network() -> None:
    rows = script.measure(script.CASES, torch.rand(3, 3, 8, 8), width=4, repeats=1)
    assert [case for case, _, _ in rows] == list(script.CASES)
    assert all(spent > 0 for _, spent, _ in rows)


def test_times_are_relative_to_the_plain_step_of_the_same_mode() -> None:
    plain, ibp = script.CASES[0], script.CASES[1]
    other = next(c for c in script.CASES if c.loss is None and c.training)
    lines = script.table([(plain, 1.0, 5.0), (ibp, 2.5, 5.0), (other, 10.0, 5.0)])
    assert lines[3] == "| IBP | 2500.0 | 2.50 | 5 |"
