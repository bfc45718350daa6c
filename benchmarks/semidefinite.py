"""Lipschitz bounds of published MaxMin networks by semidefinite programmes, beside the values published or reproduced.

    python -m benchmarks.semidefinite [--files NAME ...] [--skip-inf]

The weights (ppauli/QCs_MaxMin) are looked for in the folder that the environment variable VERIFIER_SHARED names, under
models/lipsdp_maxmin. Needs the extra `sdp`, and scipy for the files.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import scipy.io
import torch

from benchmarks.common import ROOT, machine
from verifier.jacobian import semidefinite
from verifier.jacobian.chain import Chain, dense, group_sort

PUBLISHED = {
    "l2_2fc_16": 22.594,
    "l2_2fc_32": 38.548,
    "l2_2fc_64": 73.773,
    "l2_5fc_32": 224.53,
    "l2_8fc_32": 401.03,
    "l2_18fc_32": 17432.0,
    "linf_2fc_16": None,
    "linf_5fc_32": None,
}


def network(path: Path) -> Chain:
    """The weights of one file with MaxMin on adjacent pairs between them."""
    table = scipy.io.loadmat(str(path))["W"][0]
    weights = [torch.from_numpy(w.astype("float64")) for w in table]
    return dense(weights, [group_sort(len(w), 2) for w in weights[:-1]])


def timed(f: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    value = f()
    return value, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", nargs="*", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--skip-inf", action="store_true")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("VERIFIER_SHARED", ROOT.parent / "shared")) / "models" / "lipsdp_maxmin"
    if not folder.is_dir():
        sys.exit(f"no weights at {folder}; set VERIFIER_SHARED to the folder that has models/lipsdp_maxmin")
    print(machine(), "\n")
    print("| file | product of norms | layer-wise (s) | published | multipliers per group (s) | joint (s) |")
    print("|---|---|---|---|---|---|")
    semidefinite.bound(network(folder / "weights_l2_2fc_16.mat"))  # loads the solver
    for name in arguments.files:
        norm = math.inf if name.startswith("linf") else 2
        if norm == math.inf and arguments.skip_inf:
            continue
        chain = network(folder / f"weights_{name}.mat")
        cells = [name, f"{semidefinite.product_of_norms(chain, norm):.5g}"]
        cells.append("{:.5g} ({:.2f})".format(*timed(partial(semidefinite.layerwise, chain, norm))))
        cells.append(f"{PUBLISHED[name]:.5g}" if PUBLISHED[name] else "none")
        for joint in (False, True):
            cells.append(
                "{:.5g} ({:.1f})".format(*timed(partial(semidefinite.bound, chain, norm, joint=joint)))
            )
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
