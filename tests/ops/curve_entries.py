"""The forms of all univariate curves, for the property tests."""

from __future__ import annotations

from collections.abc import Callable

from verifier.graph import Elementwise
from verifier.ops.sigmoid import Sigmoid, SigmoidDerivative, Tanh

# class to its forms: (name, how to make it for arguments of shape [n], other fields of harness.Entry)
CURVES: dict[type[Elementwise], list[tuple[str, Callable[[int], Elementwise], dict]]] = {
    Sigmoid: [("sigmoid", lambda n: Sigmoid(), {})],
    Tanh: [("tanh", lambda n: Tanh(), {})],
    SigmoidDerivative: [
        (f"order {k}", lambda n, k=k: SigmoidDerivative(k), {"kinks": (-1.3, 0.0, 2.3)}) for k in (1, 2, 3)
    ],
}
