"""What the benchmark scripts share: where the instances are, whole-process times, and the machine in one line."""

from __future__ import annotations

import io
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VERIFIER = (sys.executable, "-m", "verifier", "verify", "--no-progress")


@dataclass(frozen=True)
class Run:
    """One process from start to end: wall-clock and processor seconds, and the first line of its stdout."""

    seconds: float
    processor: float
    verdict: str


def instances() -> Path:
    """The folder of benchmark folders. Ends the script where it is missing."""
    folder = Path(os.environ.get("VERIFIER_SHARED", ROOT.parent / "shared")) / "vnncomp-dev"
    if not folder.is_dir():
        sys.exit(
            f"no benchmark instances at {folder}; set VERIFIER_SHARED to the folder that has vnncomp-dev"
        )
    return folder


def timed(words: Sequence[object]) -> Run:
    """Runs a command to its end. Ends the script, with what the command said, when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    ran = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"{' '.join(map(str, words))}\nended with code {ran.returncode}:\n{ran.stderr}")
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, processor, ran.stdout.partition("\n")[0])


def exported(module: Any, x: Any) -> bytes:
    """The ONNX file of a module in eval mode for inputs like `x`, by the exporter that needs no further package."""
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        torch.onnx.export(module, (x,), file, dynamo=False, opset_version=17)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def machine() -> str:
    """Processor, cores, load and versions, to stand beside the numbers."""
    model = platform.processor() or platform.machine()
    table = Path("/proc/cpuinfo")
    if table.is_file():
        names = [
            line.partition(":")[2].strip() for line in table.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cores, load {load:.1f} (1 min, this script's own included), "
        f"Python {platform.python_version()}, torch {version('torch')}"
    )
