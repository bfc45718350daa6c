"""Published networks and their constants."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from verifier.jacobian import semidefinite
from verifier.jacobian.chain import Chain, dense, group_sort

for name in ("scipy.io", "cvxpy", "clarabel"):
    pytest.importorskip(name, reason="the files need scipy, the programmes the extra sdp")


def network(shared: Path, name: str) -> Chain:
    import scipy.io

    path = shared / "models" / "lipsdp_maxmin" / f"weights_{name}.mat"
    if not path.is_file():
        pytest.skip(f"no weights at {path}")
    weights = [torch.from_numpy(w.astype("float64")) for w in scipy.io.loadmat(str(path))["W"][0]]
    return dense(weights, [group_sort(len(w), 2) for w in weights[:-1]])


def steepest(chain: Chain, norm: float) -> float:
    """The largest norm of a Jacobian at 30 points."""
    x = torch.randn(30, chain.inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobian = torch.eye(chain.inputs, dtype=torch.float64).expand(30, -1, -1)
    for layer in chain.layers:
        x, jacobian = x @ layer.inner.value.T, layer.inner.value @ jacobian
        pairs = x.unflatten(1, (-1, 2))
        order = pairs.argsort(2)
        x = pairs.gather(2, order).flatten(1)
        rows = jacobian.unflatten(1, (-1, 2))
        jacobian = rows.gather(2, order.unsqueeze(3).expand_as(rows)).flatten(1, 2)
    return float(torch.linalg.matrix_norm(chain.last.value @ jacobian, norm).amax())


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("l2_2fc_16", 22.594),
        pytest.param("l2_2fc_32", 38.548, marks=pytest.mark.full),
        pytest.param("l2_2fc_64", 73.773, marks=pytest.mark.full),
        ("l2_5fc_32", 224.53),
        pytest.param("l2_8fc_32", 401.03, marks=pytest.mark.full),
        pytest.param("l2_18fc_32", 17432, marks=pytest.mark.full),
    ],
)
def test_euclidean_constants(shared: Path, name: str, published: float) -> None:
    chain = network(shared, name)
    apart = semidefinite.bound(chain, joint=False)
    assert apart == pytest.approx(published, rel=5e-3)
    assert steepest(chain, 2) <= semidefinite.bound(chain) < 0.99 * apart


def test_layerwise_bounds(shared: Path) -> None:
    for name in ("l2_2fc_16", "l2_18fc_32", "linf_2fc_16"):
        chain = network(shared, name)
        norm = math.inf if name.startswith("linf") else 2
        product = semidefinite.product_of_norms(chain, norm)
        assert steepest(chain, norm) <= semidefinite.layerwise(chain, norm) < 0.98 * product


@pytest.mark.full
def test_largest_norm(shared: Path) -> None:
    chain = network(shared, "linf_2fc_16")
    found = semidefinite.bound(chain, math.inf)
    assert steepest(chain, math.inf) <= found < 0.5 * semidefinite.layerwise(chain, math.inf)
