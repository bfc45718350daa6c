"""What the classifiers read: digits row by row, and three tasks that need a memory over many tokens.

All inputs are in 0..1. A task makes sequences [N, T, features] and labels [N, outputs]: the classes at the last
`outputs` tokens, of which training sees all and properties speak of the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.networks import digits

Data = tuple[Tensor, Tensor]
KEYS = VALUES = SYMBOLS = 4


@dataclass(frozen=True)
class Task:
    """A way to make training and held-out data. With `places` the classifier learns a vector per place."""

    name: str
    steps: int
    features: int
    classes: int
    make: Callable[[int], tuple[Data, Data]]
    """For T: training data and held-out data."""
    places: bool = False
    eps: float = 0.05
    """How far training moves inputs."""
    epochs: int = 30
    prefixes: tuple[int, ...] = ()
    """Lengths of prefixes that training sees first, where every token has a label."""


def digit_rows(steps: int) -> tuple[Data, Data]:
    """scikit-learn's digits, a row of 8 pixels per token."""
    x, y, test_x, test_y = digits()
    return (x.view(-1, steps, 8), y[:, None]), (test_x.view(-1, steps, 8), test_y[:, None])


def parity(steps: int, count: int = 2000) -> Data:
    """Bits, and after every token whether those so far have an odd sum."""
    bits = torch.randint(0, 2, (count, steps), generator=_generator(count))
    return bits[..., None].float(), bits.cumsum(1) % 2


def recall(steps: int, count: int = 2000) -> Data:
    """Each key comes once, at a random place, beside its value, other tokens are empty; the last asks for a key."""
    generator = _generator(count)
    places = torch.rand(count, steps - 1, generator=generator).argsort(1)[:, :KEYS]
    values = torch.randint(0, VALUES, (count, KEYS), generator=generator)
    asked = torch.randint(0, KEYS, (count,), generator=generator)
    x = torch.zeros(count, steps, KEYS + VALUES)
    each = torch.arange(count)
    for key in range(KEYS):
        x[each, places[:, key], key] = 1
        x[each, places[:, key], KEYS + values[:, key]] = 1
    x[each, -1, asked] = 1
    return x, values[each, asked][:, None]


def reversal(steps: int, count: int = 2000) -> Data:
    """The first tokens are symbols, each beside its place; the last ones ask for places from the last to the first."""
    symbols = torch.randint(0, VALUES, (count, SYMBOLS), generator=_generator(count))
    x = torch.zeros(count, steps, VALUES + SYMBOLS)
    x[:, :SYMBOLS, :VALUES] = functional.one_hot(symbols, VALUES).float()
    x[:, :SYMBOLS, VALUES:] = torch.eye(SYMBOLS)
    x[:, -SYMBOLS:, VALUES:] = torch.eye(SYMBOLS).flip(0)
    return x, symbols.flip(1)


def _generator(count: int) -> torch.Generator:
    return torch.Generator().manual_seed(count)


def _both(make: Callable[[int, int], Data]) -> Callable[[int], tuple[Data, Data]]:
    return lambda steps: (make(steps, 2000), make(steps, 200))


DIGITS = Task("digits", 8, 8, 10, digit_rows, places=True)


def long_task(name: str, steps: int) -> Task:
    """`parity`, `recall` or `reversal` over `steps` tokens."""
    if name == "parity":
        prefixes = tuple(3 * 2**k for k in range(20) if 3 * 2**k < steps)
        return Task(name, steps, 1, 2, _both(parity), eps=0.02, epochs=10, prefixes=prefixes)
    if name == "recall":
        return Task(name, steps, KEYS + VALUES, VALUES, _both(recall), epochs=20)
    return Task(name, steps, VALUES + SYMBOLS, VALUES, _both(reversal), epochs=20)
