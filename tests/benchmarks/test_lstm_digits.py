"""Images that are certified are read rightly at random points; the table counts each image once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.lstm_digits import METHODS, Classifier, Row, box_of, proved, settles, table
from verifier.frontends.torch import trace
from verifier.transforms.fold import fold
from verifier.transforms.prepare import prepare


@pytest.mark.full
def test_proofs_get_more_with_tighter_bounds_and_are_true():
    torch.manual_seed(0)
    module = Classifier(3, 1).eval()
    for parameter in module.parameters():
        parameter.data *= 2
        parameter.requires_grad_(False)
    x = torch.rand(6, 64)
    labels = module(x).argmax(1)
    labels[-1] = (labels[-1] + 1) % 10  # a wrong one, which nothing may prove
    graph = fold(prepare(trace(module, x[:1]).graph(torch.float64), [x[:1].double().unsqueeze(1)])).to(
        torch.float32
    )
    box = box_of(x, 0.01)
    with torch.no_grad():
        weak, strong = (proved(graph, box, labels, method) for method in METHODS[:2])
    assert not bool((weak & ~strong).any())
    assert bool(strong.any()) and not bool(strong[-1])
    points = box.lower + torch.rand(200, *box.lower.shape) * (box.upper - box.lower)
    read = module(points.view(-1, 64)).argmax(1).view(200, 6)
    assert bool((read == labels)[:, strong].all())


def test_the_table_counts_images_once():
    first = Row(32, 1, 0.02, "crown", 0, "certified", 0.5)
    rows = [first, replace(first, image=1, verdict="open")]
    rows += [replace(row, method="full", verdict="falsified") for row in rows[1:]]
    line = next(line for line in table(rows, [0.02], 3) if line.startswith("| 32 | 1 "))
    assert line == "| 32 | 1 | 0.02 |  | 1 (0.5 s) |  | 1 (0.5 s) | 1 | 1 |"
    assert settles(first, "full") and not settles(first, "crown") and not settles(rows[1], "full")
    with pytest.raises(ValueError, match="certified and falsified"):
        list(table([*rows, replace(first, method="full", verdict="falsified")], [0.02], 3))
