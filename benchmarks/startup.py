"""Start-up: a whole `verifier verify` on an easy ACAS Xu property and `verifier --help`, beside `import torch`.

    python -m benchmarks.startup [--runs N]

They take turns, so that whatever else the machine does falls on all; medians are compared. The help is to take at most
half a second. Needs the benchmark instances (environment variable VERIFIER_SHARED).
"""

from __future__ import annotations

import argparse
import sys
from statistics import median

from benchmarks.common import VERIFIER, instances, machine, timed

GOAL = 1.8
NETWORK = "acasxu/onnx/ACASXU_run2a_4_5_batch_2000.onnx"
QUERY = "acasxu/vnnlib/prop_4.vnnlib"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    folder = instances()
    commands = {
        'python -c "import torch"': (sys.executable, "-c", "import torch"),
        "verifier verify": (*VERIFIER, folder / NETWORK, folder / QUERY),
        "verifier --help": (sys.executable, "-m", "verifier", "--help"),
    }
    found = {name: [] for name in commands}
    for words in commands.values():
        timed(words)  # once for the file cache
    for _ in range(runs):
        for name, words in commands.items():
            found[name].append(timed(words))
    verdicts = {run.verdict for run in found["verifier verify"]}
    assert verdicts == {"unsat"}, verdicts
    print(machine())
    print(f"{runs} runs each, in turns; medians and extremes\n")
    print("| command | seconds | fastest | slowest | processor seconds |\n|---|---|---|---|---|")
    for name, done in found.items():
        seconds = [run.seconds for run in done]
        processor = median(run.processor for run in done)
        print(
            f"| `{name}` | {median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} | {processor:.2f} |"
        )
    torch_runs, verify_runs, _ = found.values()
    ratio = median(r.seconds for r in verify_runs) / median(r.seconds for r in torch_runs)
    paired = median(v.seconds / t.seconds for t, v in zip(torch_runs, verify_runs, strict=True))
    print(
        f"\nratio of medians {ratio:.2f}, median of the ratios of neighbours {paired:.2f}; goal: at most {GOAL}"
    )


if __name__ == "__main__":
    main()
