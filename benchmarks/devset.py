"""Every benchmark folder, each instance in its own process, verdicts compared: `verifier bench`, as a Markdown table.

    python -m benchmarks.devset [--only GLOB] [--timeout-scale X] [--out devset.csv]

Needs the benchmark instances (environment variable VERIFIER_SHARED).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import instances, machine
from verifier.bench.instances import find_instances
from verifier.bench.runner import run_instance
from verifier.bench.score import summary, write_csv
from verifier.report.columns import markdown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="as of `verifier bench`")
    parser.add_argument("--timeout-scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("devset.csv"))
    arguments = parser.parse_args()
    rows = []
    for instance in find_instances(instances(), arguments.only):
        rows.append(run_instance(instance, arguments.timeout_scale))
        write_csv(rows, arguments.out)  # after each: a long run that is cut off has told what it knew
    print(machine())
    print(f"limits times {arguments.timeout_scale:g}\n")
    print(markdown(*summary(rows)))
    for row in rows:
        if row.wrong:
            print(f"\nWRONG: {row.name}: {row.verdict}, expected {row.expected}")


if __name__ == "__main__":
    main()
