"""How radii and mixing weights change during training: functions of the step, or of the epoch with its fraction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """`first` until `begin`, `last` from `end` on, and a straight line between: the radius from 0, the beta of
    CROWN-IBP from 1 to 0 (Zhang et al. 2020, arXiv 1906.06316), the clean weight of IBP (Gowal et al. 2018)."""

    begin: float
    end: float
    first: float = 0.0
    last: float = 1.0

    def __call__(self, step: float) -> float:
        return self.first + (self.last - self.first) * self._share(step)

    def _share(self, step: float) -> float:
        if self.end <= self.begin:
            return float(step >= self.end)
        return min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)


@dataclass(frozen=True)
class SmoothRamp(Ramp):
    """A ramp that starts like t^`power` and goes on in a straight line from the share `middle` of the way, without a
    kink (Xu et al. 2020, arXiv 2002.12920: a quarter, 4)."""

    middle: float = 0.25
    power: float = 4.0

    def _share(self, step: float) -> float:
        t, m, p = super()._share(step), self.middle, self.power
        if m <= 0:
            return t
        factor = 1 / (m**p + p * m ** (p - 1) * (1 - m))
        return factor * t**p if t < m else factor * (m**p + p * m ** (p - 1) * (t - m))
