"""`verifier doctor`: what a bug report needs, in one block."""

from __future__ import annotations

import os
import platform

import typer

_REQUIRED = (
    "nn-verifier",
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "highspy",
    "vnnlib",
    "typer",
    "rich",
    "psutil",
)
_EXTRAS = {
    "gurobi": ("gurobipy", "scipy"),
    "sdp": ("cvxpy", "clarabel"),
    "ray": ("ray",),
    "plot": ("matplotlib",),
    "export": ("onnxscript",),
    "examples": ("sklearn",),
}


def command() -> None:
    """Print versions, devices, threads and extras in one block to paste into a bug report."""
    lines = [*_machine(), *_packages(), *_devices(), *_extras()]
    width = max(len(name) for name, _ in lines)
    typer.echo("\n".join(f"{name:{width}}  {text}" for name, text in lines))


def _machine() -> list[tuple[str, str]]:
    import psutil

    memory = psutil.virtual_memory()
    return [
        ("platform", platform.platform()),
        ("python", platform.python_version()),
        ("cores", f"{psutil.cpu_count(logical=False)} physical, {os.cpu_count()} logical"),
        ("memory", f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB available"),
    ]


def _packages() -> list[tuple[str, str]]:
    return [(name, _version(name)) for name in _REQUIRED]


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[tuple[str, str]]:
    import torch

    lines = [
        (
            "threads",
            f"{torch.get_num_threads()} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')})",
        )
    ]
    if not torch.cuda.is_available():
        return [
            *lines,
            (
                "cuda",
                "none" if torch.version.cuda is None else f"none usable (built for {torch.version.cuda})",
            ),
        ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append((f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"))
    return lines


def _extras() -> list[tuple[str, str]]:
    from importlib.util import find_spec

    lines = []
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        advice = f"missing {', '.join(missing)}: pip install 'nn-verifier[{extra}]'"
        lines.append((f"extra {extra}", advice if missing else "installed"))
    return lines
