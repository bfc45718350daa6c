"""The benchmark of gated sequences: what is listed is there and is what the weights compute, what is called false is
false, and the generator repeats itself."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest
import torch

from benchmarks.networks import accuracy
from verifier import trace
from verifier.attack.replay import confirm
from verifier.bench.instances import find_instances
from verifier.frontends import onnx as frontend
from verifier.specs.evaluator import satisfies
from verifier.specs.load import load_query
from verifier.specs.witness import read_witness
from vnncomp.benchmarks.gated_sequences.attacks import RADII, attacked_radii, descend
from vnncomp.benchmarks.gated_sequences.generate import Every, entries, main, trained
from vnncomp.benchmarks.gated_sequences.networks import HERE, families, forms, load_weights, slug
from vnncomp.benchmarks.gated_sequences.tasks import DIGITS, KEYS, SYMBOLS, VALUES, long_task

SOME = ["digits_hgrn", "digits_lstm", pytest.param("recall32_gla", marks=pytest.mark.full)]


def known() -> list[list[str]]:
    with (HERE / "expected.csv").open() as file:
        return list(csv.reader(file))


def test_everything_is_there_and_small() -> None:
    instances = find_instances(HERE)
    assert all(i.spec.is_file() and i.networks[""].is_file() for i in instances)
    networks = {i.networks[""].name for i in instances}
    assert networks >= {f"digits_{slug(n)}_{form}.onnx.gz" for n in families() for form in forms(n)}
    assert {p.name for p in (HERE / "onnx").iterdir()} == networks
    assert {p.name for p in (HERE / "vnnlib").iterdir()} == {i.spec.name for i in instances}
    assert sum(p.stat().st_size for p in HERE.rglob("*") if p.is_file()) < 3_000_000
    listed = {(i.networks[""].name, i.spec.name) for i in instances}
    rows = known()
    assert {(Path(network).name, Path(spec).name) for network, spec, _, _ in rows} <= listed
    assert len(rows) > 20 and {verdict for _, _, verdict, _ in rows} == {"sat"}


@pytest.mark.parametrize("name", SOME)
def test_files_are_the_stored_networks(name: str) -> None:
    """ONNX in every form, the module in every form, and the held-out accuracy that the table promises."""
    (entry,) = (e for e in entries() if e.name == name)
    x, y = entry.task.make(entry.task.steps)[1]
    module = entry.untrained()
    module.load_state_dict(load_weights()[name])
    wanted = module(x[:5]).detach()
    for form in forms(entry.family):
        graph = frontend.load(HERE / "onnx" / f"{name}_{form}.onnx.gz").graph
        found = graph.evaluate([x[:5, None].double()])[0].flatten(1)
        torch.testing.assert_close(found.float(), wanted, atol=1e-4, rtol=1e-4)
    assert accuracy(Every(module, 1), x, y[:, -1:]) > 0.85
    assert trace(module, x[:1]).output_shapes == ((1, entry.task.classes),)  # which compares with the module


def replays(network: str, spec: str, witness: str) -> bool:
    query, model = load_query(HERE / spec), frontend.load(HERE / network)
    values = read_witness(query, gzip.decompress((HERE / witness).read_bytes()).decode())
    found = confirm(query, {query.networks[0].name: model}, values["X"].ravel())
    return found is not None and found.tolerance == 0 and satisfies(query, found.inputs | found.outputs)


def test_a_counterexample_replays() -> None:
    network, spec, _, witness = next(row for row in known() if "gla" in row[0])
    assert replays(network, spec, witness)


@pytest.mark.full
def test_all_counterexamples_replay() -> None:
    assert all(replays(network, spec, witness) for network, spec, _, witness in known())


def test_training_repeats_itself() -> None:
    (entry,) = (e for e in entries() if e.name == "digits_gru")
    (x, y), _ = entry.task.make(entry.task.steps)
    first, second = (trained(entry, (x[:64], y[:64]), epochs=1).state_dict() for _ in range(2))
    untrained = entry.untrained().state_dict()
    assert all(torch.equal(first[n], second[n]) and not torch.equal(first[n], untrained[n]) for n in first)


@pytest.mark.full
def test_the_generator_repeats_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        main(["--only", "digits_gru", "--epochs", "1", "--out", str(folder)])
        made.append({p.name: p.read_bytes() for p in folder.rglob("*") if p.suffix in (".gz", ".csv")})
    assert made[0] == made[1] and len(made[0]) > 5
    assert "| digits_gru | GRU |" in capsys.readouterr().out


def test_tasks_are_what_they_say() -> None:
    (bits, odd), _ = long_task("parity", 16).make(16)
    assert bool((bits[:, :, 0].sum(1) % 2 == odd[:, -1]).all()) and bits.shape[1] == odd.shape[1] == 16
    (x, answer), _ = long_task("recall", 16).make(16)
    key = x[:, -1, :KEYS].argmax(1)
    told = x[torch.arange(len(x)), x[:, :-1, :KEYS][torch.arange(len(x)), :, key].argmax(1), KEYS:]
    assert bool((told.argmax(1) == answer[:, 0]).all()) and bool((told.sum(1) == 1).all())
    (x, symbols), _ = long_task("reversal", 16).make(16)
    assert bool((x[:, :SYMBOLS, :VALUES].argmax(2).flip(1) == symbols).all()) and x.shape[:2] == (2000, 16)
    assert bool((x[:, -SYMBOLS:, VALUES:].argmax(2) == x[:, :SYMBOLS, VALUES:].argmax(2).flip(1)).all())
    assert float(x[:, SYMBOLS:-SYMBOLS].abs().max()) == 0


def test_attacks_find_the_nearest_other_class() -> None:
    """Of a linear classifier it is known: the margin over the sum of absolute weights."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(12, 3)
    module = torch.nn.Sequential(torch.nn.Flatten(), layer)
    x = 0.5 + 0.02 * torch.rand(4, 3, 4)
    scores = module(x).detach()
    labels = scores.argmax(1)
    weights = layer.weight.detach()
    slopes = (weights[labels][:, None] - weights).abs().sum(2)
    gaps = scores.gather(1, labels[:, None]) - scores
    exact = torch.where(slopes > 0, gaps / slopes, torch.inf).amin(1)
    found = attacked_radii(module, x, labels, torch.ones(3))
    assert bool((found >= exact - 1e-6).all()) and bool(
        (found <= exact.clamp(min=RADII[0]) * 1.1 + 1e-6).all()
    )
    radius = torch.full((4, 1, 1), 0.01) * torch.tensor([0.0, 1.0, 0.0])[:, None]
    margin, at = descend(module, x, labels, radius)
    moved = (at - x).abs().amax((0, 2))
    assert moved[1] == pytest.approx(0.01, rel=1e-3) and moved[0] == moved[2] == 0
    assert bool((margin <= gaps.masked_fill(slopes == 0, torch.inf).amin(1)).all())
    assert DIGITS.make(8)[0][0].shape == (1597, 8, 8)
