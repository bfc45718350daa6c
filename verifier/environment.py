"""What a process can say of its surroundings: versions, memory, files. Imports neither torch nor numpy."""

from __future__ import annotations

import contextlib
import gc
import platform
from collections.abc import Iterator
from pathlib import Path


def find_file(path: str | Path) -> Path:
    """`path`, or, where there is no such file, the one with ``.gz`` added or removed, if there is that."""
    given = Path(path)
    other = given.with_suffix("") if given.suffix == ".gz" else given.with_name(f"{given.name}.gz")
    return other if other.is_file() and not given.is_file() else given


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """No garbage collections, for work that makes many objects and no cycles: they would take a third of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
