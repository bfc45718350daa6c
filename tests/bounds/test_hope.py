"""An ascent ends where it has no hope."""

from __future__ import annotations

import torch

from verifier.bounds.hope import LOOK, Hope


def test_an_ascent_ends_where_it_has_no_hope() -> None:
    """Certified samples end at once, those that gain too little after some steps of their own, others go on."""
    hope = Hope(20)
    slow, fast, late = -10.0, -1.0, -10.0
    for k in range(1, 12):
        done = hope(torch.tensor([[1.0, 2.0], [slow, 5.0], [fast, 5.0], [late, 5.0]]))
        assert done.tolist() == [True, k > LOOK, False, k > 4 + LOOK]
        slow, fast, late = slow + 0.1, fast + 0.08, late + 0.1 * (k >= 5)
