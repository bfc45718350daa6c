"""Many queries over the same network: loaded once, bounded and attacked in one batch, the open ones searched."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil
import torch

from verifier import api, strategy
from verifier.attack.gradient import AttackOptions, Search
from verifier.attack.replay import Judge
from verifier.environment import versions
from verifier.errors import VerifierError, is_out_of_memory
from verifier.graph.precision import full_precision
from verifier.options import Options
from verifier.results import Counterexample, Reason, Result, Stats, Status
from verifier.specs.compile import Compiled, compile_query
from verifier.specs.formula import And, Or
from verifier.specs.load import load_query
from verifier.specs.normalise import normalise
from verifier.specs.problem import Problem, Tree
from verifier.specs.query import Query, hidden_names
from verifier.transforms.centers import has_means

BATCH_SHARE = 0.25
"""Of the limits of all queries together the batch may take so much."""
ROUNDS = 2
"""Rounds of the attack on all of them, as many as a search of one starts with."""

Answer = Result | VerifierError
Tell = Callable[[int, Answer, float], None]


def verify_together(
    model: Path | Mapping[str, Path],
    specs: Sequence[Path],
    limits: Sequence[float],
    options: Options,
    tell: Tell,
    began: float | None = None,
    begin: Callable[[int], None] = lambda _: None,
) -> None:
    """Decides every query; `tell` gets its number, the answer and its seconds as each is known, `begin` the number of
    one that is looked at alone, before.

    What is done for all of them, since `began` (of `time.monotonic`; now, unless given), counts for each with its equal
    part of the time, also against its limit.
    """
    began = time.monotonic() if began is None else began
    names = list(model) if isinstance(model, Mapping) else [""]
    queries: dict[int, Query] = {}
    networks: dict[str, api.Network] = {}
    settled: dict[int, Result] = {}
    for i, spec in enumerate(specs):
        try:
            query = load_query(spec)
            if not networks:
                query, networks = api.prepare_query(model, query)
            first = next(iter(queries.values()), query)
            if _alike(query, first, list(networks) if names == [""] else names):
                queries[i] = query
        except VerifierError:
            continue  # told below, when it is looked at alone
    if queries:
        deadline = time.monotonic() + BATCH_SHARE * sum(limits[i] for i in queries)
        settled = _settle(queries, networks, options, deadline)
    part = (time.monotonic() - began) / len(specs)
    for i in settled:
        stats = replace(settled[i].stats, seconds={"shared": part})
        tell(i, replace(settled[i], stats=stats, versions=versions()), part)
    for i, spec in enumerate(specs):
        if i not in settled:
            begin(i)
            start = time.monotonic()
            answer = _alone(
                networks if i in queries else model, queries.get(i, spec), limits[i] - part, options
            )
            if isinstance(answer, Result):
                seconds = {"shared": part, **answer.stats.seconds}
                answer = replace(answer, stats=replace(answer.stats, seconds=seconds))
            tell(i, answer, part + time.monotonic() - start)


def _alike(query: Query, first: Query, names: list[str]) -> bool:
    """Whether both declare the same of the same networks, so that one graph serves both."""
    same = query.networks == first.networks and query.variables == first.variables
    return (
        same
        and sorted(n.name for n in query.networks) == sorted(names)
        and not any(hidden_names(query, n.name) for n in query.networks)
    )


def _alone(model: Any, query: Query | Path, limit: float, options: Options) -> Answer:
    if limit <= 0:
        return Result(Status.TIMEOUT, versions=versions())
    try:
        return api.verify(model, query, timeout=limit, options=options)
    except VerifierError as error:
        return error
    except Exception as error:
        if is_out_of_memory(error):
            return Result(Status.UNKNOWN, reason=Reason.MEMORY)
        return VerifierError(f"{type(error).__name__}: {error}")


def _settle(
    queries: Mapping[int, Query], networks: Mapping[str, api.Network], options: Options, deadline: float
) -> dict[int, Result]:
    """Those that the attack or the first bounds decide, by number. A failure here decides nothing."""
    problems, found = _problems(queries), {}
    if not problems:
        return found
    owner = np.repeat(list(problems), [p.cases for p in problems.values()])
    query = queries[next(iter(problems))]
    try:
        compiled = compile_query(query, networks, joined(list(problems.values())))
    except VerifierError:
        return found
    if len(compiled.lower) != len(owner):  # cases were split by integers
        return found
    with full_precision():
        if options.attack:
            for i, point in _attack(compiled, owner, queries, networks, options, deadline).items():
                found[i] = Result(Status.SAT, None, point)
        rows = np.flatnonzero(~np.isin(owner, list(found)))
        stats = Stats(device=options.device, domains=1)
        if len(rows) and not any(has_means(n.graph) for n in networks.values()):
            left = strategy.refuted(query, networks, _cases(compiled, rows), options, deadline).numpy()
            proved = set(owner[rows].tolist()) - set(owner[rows[~left]].tolist())
        else:  # means are counted from what is typical of one box: those of several at once give looser bounds
            proved = set()
            for i in dict.fromkeys(owner[rows].tolist()):
                alone = compile_query(queries[i], networks, problems[i])
                if bool(strategy.refuted(queries[i], networks, alone, options, deadline).all()):
                    proved.add(i)
        found |= dict.fromkeys(proved, Result(Status.UNSAT, 0.0, stats=stats))
    return found


def _problems(queries: Mapping[int, Query]) -> dict[int, Problem]:
    """The normal forms, by number, of those that can be asked together."""
    found: dict[int, Problem] = {}
    for i, query in queries.items():
        try:
            problem = normalise(query)
        except VerifierError:
            continue
        if problem.empty_reason is None and not problem.nonlinear:
            found[i] = problem
    return found


def _cases(compiled: Compiled, rows: np.ndarray) -> Compiled:
    some = torch.from_numpy(rows)
    parts = (compiled.lower[some], compiled.upper[some], compiled.clauses[some])
    return Compiled(compiled.graph, *parts, compiled.strict, ties=compiled.ties)


def _attack(
    compiled: Compiled,
    owner: np.ndarray,
    queries: Mapping[int, Query],
    networks: Mapping[str, api.Network],
    options: Options,
    deadline: float,
) -> dict[int, Counterexample]:
    """Counterexamples by query. A search ends with its first ones; it then goes on without these queries."""
    found: dict[int, Counterexample] = {}
    judges = {i: Judge(queries[i], networks) for i in set(owner.tolist())}
    while True:
        rows = np.flatnonzero(~np.isin(owner, list(found)))
        before = len(found)
        if not len(rows):
            return found
        search = Search(_cases(compiled, rows), AttackOptions(seed=options.seed), deadline)
        for count, candidates in enumerate(search.rounds(), 1):
            hits = candidates.scores <= 0
            points = compiled.inputs(candidates.points[hits].cpu().numpy())
            cases = candidates.cases[hits].tolist()
            for point, case in zip(points, cases, strict=True):
                i = int(owner[rows[case]])
                if i not in found and (confirmed := judges[i].confirm(point)) is not None:
                    found[i] = confirmed
            if len(found) > before or count >= ROUNDS or search.late:
                break
        if len(found) == before or search.late:
            return found


def joined(problems: Sequence[Problem]) -> Problem:
    """The cases of all of them, in order, over one table of atoms, in which equal ones stand once. They must have the
    same inputs and no nonlinear parts."""
    size = len(problems[0].position)
    tables = []
    for p in problems:
        dense = np.zeros((p.atoms, size + 3))
        dense[p.rows, p.cols] = p.values
        dense[:, size:] = np.stack([p.constants, p.strict, p.coefficient_error], 1)
        tables.append(dense)
    table, place = np.unique(np.concatenate(tables), axis=0, return_inverse=True)
    place = place.reshape(-1)
    starts = np.cumsum([0] + [p.atoms for p in problems])
    trees = np.cumsum([0] + [len(p.formulas) for p in problems])
    rows, cols = table[:, :size].nonzero()
    first = problems[0]
    return Problem(
        lower=np.concatenate([p.lower for p in problems]),
        upper=np.concatenate([p.upper for p in problems]),
        position=first.position,
        rows=rows,
        cols=cols,
        values=table[rows, cols],
        constants=table[:, size],
        strict=table[:, size + 1] > 0,
        coefficient_error=table[:, size + 2],
        nonlinear=(),
        formulas=tuple(
            _renamed(tree, place[a:]) for p, a in zip(problems, starts, strict=False) for tree in p.formulas
        ),
        formula_index=np.concatenate([p.formula_index + a for p, a in zip(problems, trees, strict=False)]),
    )


def _renamed(tree: Tree, names: np.ndarray) -> Tree:
    if isinstance(tree, int | np.integer):
        return int(names[tree])
    kind = And if isinstance(tree, And) else Or
    return kind(tuple(_renamed(item, names) for item in tree.children))


def main() -> NoReturn:
    """The job is the JSON file that the first word names; lines of JSON go to the file named in it: `begun` and a
    query's number when it is looked at alone, and one per answer. Does not return."""
    began = time.monotonic() - (
        time.time() - psutil.Process().create_time()
    )  # loading torch takes time as well
    job = json.loads(Path(sys.argv[1]).read_text())
    model = {name: Path(path) for name, path in job["networks"].items()}
    network = model.get("", model)
    specs = [Path(spec) for spec in job["specs"]]
    with open(job["answers"], "a", encoding="utf-8") as stream:

        def say(line: dict[str, Any]) -> None:
            stream.write(json.dumps(line) + "\n")
            stream.flush()

        def tell(i: int, answer: Answer, seconds: float) -> None:
            line: dict[str, Any] = {"number": i, "seconds": seconds}
            if isinstance(answer, Result):
                witness = answer.counterexample.assignment if answer.counterexample else ""
                line |= {"result": answer.to_dict() | {"counterexample": None}, "witness": witness}
            else:
                line |= {"error": str(answer)}
            say(line)

        options = Options(**job["options"])
        verify_together(
            network, specs, job["limits"], options, tell, began, lambda i: say({"number": i, "begun": True})
        )
    os._exit(0)  # taking torch down again takes half as long as loading it
