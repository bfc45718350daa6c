"""ACAS Xu, whole processes: net 1_1 with properties 1 to 5, and net 3_3 with property 2.

    python -m benchmarks.acasxu [--runs N] [--timeout S]

The queries are written here from the properties as published (Katz et al., "Reluplex", 2017): the sets of inputs in
feet, radians and feet per second, and the networks' normalisation. Needs the networks (environment variable
VERIFIER_SHARED).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.common import VERIFIER, instances, machine, timed

MEAN = (19791.091, 0.0, 0.0, 650.0, 600.0)
RANGE = (60261.0, 6.28318530718, 6.28318530718, 1100.0, 1200.0)
FAR = ((55947.691, 60760.0), (-math.pi, math.pi), (-math.pi, math.pi), (1145.0, 1200.0), (0.0, 60.0))
INPUTS = {
    1: FAR,
    2: FAR,
    3: ((1500.0, 1800.0), (-0.06, 0.06), (3.1, math.pi), (980.0, 1200.0), (960.0, 1200.0)),
    4: ((1500.0, 1800.0), (-0.06, 0.06), (0.0, 0.0), (1000.0, 1200.0), (700.0, 800.0)),
    5: ((250.0, 400.0), (0.2, 0.4), (-3.141592, -3.141592 + 0.005), (100.0, 400.0), (0.0, 400.0)),
}
CLEAR, STRONG_RIGHT = 0, 4  # outputs; the lowest score is advised
OTHERS = {advice: [i for i in range(5) if i != advice] for advice in (CLEAR, STRONG_RIGHT)}
UNSAFE = {
    1: "(assert (>= Y_0 3.991125645861615))",  # a score of 1500 before normalisation
    2: "\n".join(f"(assert (<= Y_{i} Y_0))" for i in OTHERS[CLEAR]),  # "clear of conflict" is maximal
    3: "\n".join(f"(assert (<= Y_0 Y_{i}))" for i in OTHERS[CLEAR]),  # it is minimal
    4: "\n".join(f"(assert (<= Y_0 Y_{i}))" for i in OTHERS[CLEAR]),
    5: f"(assert (or {' '.join(f'(and (<= Y_{i} Y_4))' for i in OTHERS[STRONG_RIGHT])}))",  # not minimal
}
NET_1_1 = "vnnlib2_samples_2026/onnx/nets/ACASXU_run2a_1_1_batch_2000.onnx"
NET_3_3 = "acasxu/onnx/ACASXU_run2a_3_3_batch_2000.onnx"
CASES = [("1_1", NET_1_1, number) for number in INPUTS] + [("3_3", NET_3_3, 2)]


def query(number: int) -> str:
    """The VNN-LIB text of a property's negation."""
    lines = [f"(declare-const X_{i} Real)" for i in range(5)] + [
        f"(declare-const Y_{i} Real)" for i in range(5)
    ]
    for i, (low, high) in enumerate(INPUTS[number]):
        scaled = [(value - MEAN[i]) / RANGE[i] for value in (low, high)]
        lines += [f"(assert (>= X_{i} {scaled[0]:.9f}))", f"(assert (<= X_{i} {scaled[1]:.9f}))"]
    return "\n".join([*lines, UNSAFE[number], ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=116.0)
    arguments = parser.parse_args()
    folder = instances()
    print(machine())
    print(f"\n{arguments.runs} runs each, medians\n")
    print("| network | property | verdict | seconds | processor seconds |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name, network, number in CASES:
            spec = Path(temporary) / f"prop_{number}.vnnlib"
            spec.write_text(query(number))
            words = (*VERIFIER, folder / network, spec, f"--timeout={arguments.timeout:g}")
            runs = [timed(words) for _ in range(arguments.runs)]
            verdicts = ", ".join(sorted({run.verdict for run in runs}))
            seconds, processor = median(r.seconds for r in runs), median(r.processor for r in runs)
            print(f"| {name} | {number} | {verdicts} | {seconds:.1f} | {processor:.1f} |", flush=True)


if __name__ == "__main__":
    main()
