"""How much smaller the input set must be for the bounds alone to prove the property."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from verifier.bounds.backward import OutOfTime
from verifier.branching.bounding import Bounder
from verifier.branching.domains import Domains
from verifier.branching.sizes import step_size
from verifier.errors import is_out_of_memory
from verifier.explanation.findings import Radius

ROUNDS = 12
CLOSE = 0.03
"""Bisection ends where the scales that are proved and open are within this part of each other."""
SHARE = 0.5
"""The part of the time left that one scale may take."""
MANY = 256
"""With more open boxes than this nothing is tried."""


def largest(bounder: Bounder, domains: Domains, deadline: float) -> Radius | None:
    """The largest scale found of all boxes about their middles with which everything that is open in `domains` is
    refuted, by bisection of [0, 1]; None where there are too many boxes, or no time for one scale. A scale is rounded
    down after it was tried. One that takes too long counts as open, and what is smaller is quicker."""
    if len(domains) > MANY:
        return None
    low, high, tried = 0.0, 1.0, 0
    while tried < ROUNDS and high - low > CLOSE * high and time.monotonic() < deadline:
        scale, now = (low + high) / 2, time.monotonic()
        limited = replace(bounder.options, deadline=now + SHARE * (deadline - now))
        proved = _refuted(bounder.with_options(limited), domains, scale)
        low, high = (scale, high) if proved else (low, scale)
        tried += 1
    return Radius(math.floor(low * 1e4) / 1e4, math.ceil(high * 1e4) / 1e4) if tried else None


def scaled(domains: Domains, scale: float) -> Domains:
    """The subdomains with boxes `scale` times as wide about the same middle."""
    middle, half = (domains.lower + domains.upper) / 2, (domains.upper - domains.lower) / 2 * scale
    return replace(domains, lower=middle - half, upper=middle + half)


def _refuted(bounder: Bounder, domains: Domains, scale: float) -> bool:
    """Whether everything is refuted, with the time and the memory there is."""
    try:
        with torch.no_grad():
            for rows in torch.arange(len(domains)).split(step_size(bounder)):
                part = scaled(domains.index(rows), scale)
                if not bool(bounder.bound(part).refuted.all()):
                    return False
    except OutOfTime:
        return False
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
