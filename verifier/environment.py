"""What a process can say of its surroundings, for results. Imports neither torch nor numpy."""

from __future__ import annotations

import platform


def versions() -> dict[str, str]:
    """Python's version, and those of the packages that a verdict rests on, where they are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("nn-verifier", "torch", "onnx", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_memory_mb(children: bool = False) -> float | None:
    """Peak resident memory of this process, or the largest among its ended `children`, where the system tells."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)
