"""Prove or refute properties of neural networks, recurrent and gated ones included.

Names are imported on first use (PEP 562), so that `import verifier` is cheap: no torch, no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifier.api import compute_bounds as compute_bounds
    from verifier.api import inspect as inspect
    from verifier.api import trace as trace
    from verifier.api import verify as verify
    from verifier.certification import certify as certify
    from verifier.derivatives import certified_radius as certified_radius
    from verifier.derivatives import export_jacobian as export_jacobian
    from verifier.derivatives import lipschitz as lipschitz
    from verifier.derivatives import monotonicity as monotonicity
    from verifier.errors import ModelError as ModelError
    from verifier.errors import OptionsError as OptionsError
    from verifier.errors import UnsupportedError as UnsupportedError
    from verifier.errors import VerifierError as VerifierError
    from verifier.explanation.explain import explain as explain
    from verifier.options import Options as Options
    from verifier.results import Counterexample as Counterexample
    from verifier.results import Progress as Progress
    from verifier.results import Reason as Reason
    from verifier.results import Result as Result
    from verifier.results import Status as Status
    from verifier.sets import Box as Box
    from verifier.specs.errors import SpecError as SpecError
    from verifier.specs.property import Property as Property
    from verifier.specs.property import X as X
    from verifier.specs.property import Y as Y
    from verifier.specs.property import robust as robust

    __version__: str

_HOME = {
    "verify": "verifier.api",
    "compute_bounds": "verifier.api",
    "inspect": "verifier.api",
    "trace": "verifier.api",
    "certify": "verifier.certification",
    "certified_radius": "verifier.derivatives",
    "export_jacobian": "verifier.derivatives",
    "lipschitz": "verifier.derivatives",
    "monotonicity": "verifier.derivatives",
    "explain": "verifier.explanation.explain",
    "Property": "verifier.specs.property",
    "robust": "verifier.specs.property",
    "X": "verifier.specs.property",
    "Y": "verifier.specs.property",
    "Box": "verifier.sets",
    "Options": "verifier.options",
    "Result": "verifier.results",
    "Status": "verifier.results",
    "Reason": "verifier.results",
    "Counterexample": "verifier.results",
    "Progress": "verifier.results",
    "VerifierError": "verifier.errors",
    "OptionsError": "verifier.errors",
    "ModelError": "verifier.errors",
    "UnsupportedError": "verifier.errors",
    "SpecError": "verifier.specs.errors",
}

__all__ = [*_HOME, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("nn-verifier")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'verifier' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
