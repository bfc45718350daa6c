"""A small network with a property that a few subdomains do not decide."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import verifier
from verifier import Box, Options, Property, Y, api
from verifier.branching.search import Search
from verifier.results import Result
from verifier.specs.compile import Compiled, compile_query
from verifier.specs.query import Query
from verifier.strategy import examine


@dataclass(frozen=True, eq=False)
class Case:
    """A query over a small network."""

    model: Any
    claim: Property
    query: Query
    networks: dict[str, api.Network]
    compiled: Compiled

    def search(self, branching: str, domains: int) -> tuple[Result, Search]:
        """What so many subdomains make of it."""
        options = Options(branching=branching, max_domains=domains, attack=False)  # type: ignore[arg-type]
        result, search = examine(self.query, self.networks, self.compiled, options, time.monotonic() + 60)
        assert search is not None
        return result, search

    def margins(self, points: Tensor) -> Tensor:
        """[B, D]: the margin of every disjunct of the first case at points [B, n_in]."""
        with torch.no_grad():
            values = self.compiled.graph_on(torch.float64, torch.device("cpu")).evaluate([points])[0]
        clauses = self.compiled.clauses[0]
        return torch.where(clauses >= 0, values[:, clauses.clamp(min=0)], -torch.inf).amax(2)

    def points(self, count: int) -> Tensor:
        """Random points [count, n_in] of the first case's box."""
        unit = torch.rand(count, self.compiled.lower.shape[1], dtype=torch.float64)
        return self.compiled.lower[0] + unit * (self.compiled.upper[0] - self.compiled.lower[0])

    def halved(self) -> Case:
        """With two cases in place of one: the halves of the box in the first input."""
        c = self.compiled
        lower, upper, clauses = (t.repeat(2, *[1] * (t.dim() - 1)) for t in (c.lower, c.upper, c.clauses))
        upper[0, 0] = lower[1, 0] = (c.lower[0, 0] + c.upper[0, 0]) / 2
        return replace(self, compiled=replace(c, lower=lower, upper=upper, clauses=clauses))


def made(margins: list[float]) -> Case:
    """Each output stays above what is so much below the least that was seen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
        ).eval()
        with torch.no_grad():
            for layer in net:
                if isinstance(layer, nn.Linear):
                    layer.weight *= 2.5
            least = (net(torch.rand(20000, 3) * 2 - 1).amin(0) - torch.tensor(margins)).tolist()
    claim = (Y[0] >= least[0]) & (Y[1] >= least[1]) & (Y[2] >= least[2])
    asked = Property(Box(-torch.ones(1, 3), torch.ones(1, 3)), claim)
    model = verifier.trace(net, torch.zeros(1, 3))
    query, networks = api.prepare_query(model, asked)
    return Case(model, asked, query, networks, compile_query(query, networks))


@pytest.fixture(scope="session")
def case() -> Case:
    """Two outputs are near to violating what is asked, the third is far."""
    return made([0.05, 0.2, 50.0])
