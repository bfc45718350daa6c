"""Trains the committed networks again."""

import torch

from benchmarks.networks import COMMITTED, HERE, make

torch.set_num_threads(1)
for name, module in COMMITTED.items():
    torch.manual_seed(0)
    print(make(name, module(), HERE, eps=0.05), flush=True)
