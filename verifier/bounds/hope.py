"""When an ascent on slopes is not worth going on with."""

from __future__ import annotations

import torch
from torch import Tensor

LOOK = 3
"""An instance is given up after so many iterations at the earliest."""


class Hope:
    """Ends the ascent of instances whose bounds are above zero, and of those whose gain of the last LOOK iterations, in
    as many as are left, would not reach zero: gains fall as slopes converge. What `AlphaOptions.stop` takes.

    Iterations are an instance's own, as batches are optimised in parts where memory is short.
    """

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations
        self._seen: list[Tensor] = []
        self._steps: Tensor | None = None

    def __call__(self, lower: Tensor) -> Tensor:
        least = lower.amin(1)
        if self._steps is None:
            self._steps = torch.zeros_like(least)
        else:
            self._steps = self._steps + (least > self._seen[-1])
        self._seen = [*self._seen[-LOOK:], least]
        left = (self.iterations - self._steps).clamp(min=0) / LOOK
        hopeless = (self._steps >= LOOK) & (least + left * (least - self._seen[0]) <= 0)
        return (least > 0) | hopeless
