"""From a query and its networks to one graph: all inputs in one vector, one margin per atom."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from verifier.errors import ModelError
from verifier.graph import Builder, Graph, Value
from verifier.graph.op import Shape
from verifier.ops.arithmetic import add
from verifier.ops.extremum import maximum, minimum, tree
from verifier.ops.linear import Linear
from verifier.ops.movement import reshape, take
from verifier.ops.select import concat, pad
from verifier.ops.signed import signed
from verifier.specs.differences import Unit, ValuePair, with_differences
from verifier.specs.errors import SpecError
from verifier.specs.formula import And, Or
from verifier.specs.matching import places
from verifier.specs.monomials import linearised, used_columns
from verifier.specs.normalise import normalise
from verifier.specs.problem import Problem, Tree, count_disjuncts, disjuncts
from verifier.specs.query import Kind, Query, Variable
from verifier.specs.ties import Ties, untie
from verifier.transforms.cells import split_integers
from verifier.transforms.compare import compare_earlier
from verifier.transforms.denominators import multiply_by_deviation
from verifier.transforms.fixed import scale_by_fixed
from verifier.transforms.fold import fold
from verifier.transforms.prepare import prepare
from verifier.transforms.rectified import compare_before_relu
from verifier.transforms.switches import settle_switches

TYPICAL = 16
"""Of as many boxes' middles what is typical of inner values is taken."""
MAX_EXPANDED = 32
"""Of a formula with more disjuncts than this, and than it has leaves, disjunctions are minima in the graph."""


class Network(Protocol):
    """What is needed of a loaded model."""

    @property
    def graph(self) -> Graph: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def kept(self) -> Mapping[str, int]: ...


@runtime_checkable
class Fused(Protocol):
    """A network that was changed at load in ways that depend on its weights."""

    def unfused(self) -> Network: ...


@dataclass(frozen=True, eq=False)
class Compiled:
    """`graph` maps x [n_in] (all input elements, as declared) to margins [K]; atom k of the formula holds at x
    iff margin k is <= 0 (< 0 where `strict[k]`), in exact arithmetic: margins have the atoms' signs, not always their
    sizes (`transforms.compare`, `transforms.denominators`).

    Case n is the box `lower[n]`, `upper[n]` (float64 [N, n_in], rounded outward) and `clauses[n]` of int64
    [N, D, C]: a disjunction over D of conjunctions over C of atoms. -1 is padding: within a conjunction it holds
    always, a conjunction of nothing else is absent. `empty_reason` says why, where there is no case at all. Where
    disjunctions are minima (MAX_EXPANDED) of which only some atoms are strict, these count where they are equal, too.

    `plain` is the same graph before anything was done to it.

    Where inputs are tied to each other (`specs.ties`), x has the free ones instead, and `inputs` tells what the query's
    own are.
    """

    graph: Graph
    lower: Tensor
    upper: Tensor
    clauses: Tensor
    strict: Tensor
    empty_reason: str | None = None
    ties: Ties | None = None
    plain: Graph | None = None
    _cast: dict[tuple[torch.dtype, str], Graph] = field(default_factory=dict, repr=False)

    @cached_property
    def varying(self) -> int:
        """In how many inputs a case's box is wider than a point, at most; there is a case."""
        return int((self.upper > self.lower).sum(1).amax())

    def inputs(self, points: np.ndarray) -> np.ndarray:
        """All input elements as declared [..., n_in], for points x."""
        return points if self.ties is None else self.ties.inputs(points)

    def graph_on(self, dtype: torch.dtype, device: torch.device) -> Graph:
        """`graph` in a dtype and on a device, made once."""
        key = (dtype, str(device))
        if key not in self._cast:
            self._cast[key] = self.graph.to(dtype, device)
        return self._cast[key]


def compile_query(query: Query, networks: Mapping[str, Network], problem: Problem | None = None) -> Compiled:
    """Compile `query` over `networks`, one for each declared name (an `equal_to` network may be left out). `problem` is
    what to ask of them instead of the query's own normal form.

    The networks must have been loaded with the hidden values that the query declares (`hidden_names`) kept. Raises
    SpecError and ModelError where query and networks do not fit.
    """
    problem = problem or normalise(query)
    untied = untie(problem, _owners(query))
    problem, lower, upper, ties = (
        (problem, problem.lower, problem.upper, None)
        if untied is None
        else (untied.problem, untied.lower, untied.upper, untied.ties)
    )
    builder = Builder()
    source = _Inputs(builder, builder.input("x", (lower.shape[1],)), ties)
    attached = [_attach(builder, source, query, name, networks) for name in _names(query)]
    values, first = _join(builder, source, [pair for found in attached for pair in found], problem)
    values, linear = linearised(builder, values, first, problem)
    pairs, unit = _pairs(query, attached, problem), _unit(source, lower, upper)
    values, linear = with_differences(builder, values, first, linear, pairs, unit)
    margins, atoms = _Margins(builder, values, first, linear, bool(pairs)).build()
    lower, upper = torch.from_numpy(lower), torch.from_numpy(upper)
    middle = lower / 2 + upper / 2
    plain = builder.graph(margins)
    graph = settle_switches(plain, bool(problem.nonlinear) or not _apart(linear, atoms))
    graph = multiply_by_deviation(compare_earlier(graph))
    graph = compare_before_relu(graph, atoms.strict)
    graph = fold(prepare(graph, [middle[:TYPICAL].to(graph.dtype)]))
    clauses = atoms.clauses
    cells = split_integers(graph, lower, upper)
    if cells is not None:
        lower, upper, clauses = cells.lower, cells.upper, clauses[cells.owner]
    graph = fold(scale_by_fixed(graph, lower, upper))
    return Compiled(graph, lower, upper, clauses, atoms.strict, problem.empty_reason, ties, plain)


def _apart(problem: Problem, atoms: _Atoms) -> bool:
    """Whether every conjunction asks no more of a network's outputs than one linear inequality: what is linear in every
    slope at a kink, and violates that on both sides of all kinks, violates it between them."""
    reads = torch.zeros(len(atoms.strict), dtype=torch.int64)
    reads[torch.from_numpy(problem.rows[problem.cols >= problem.inputs])] = 1
    reads[problem.atoms :] = 2  # minima and maxima of several
    counted = torch.where(atoms.clauses >= 0, reads[atoms.clauses.clamp(min=0)], 0)
    return bool((counted.sum(2) <= 1).all())


def _names(query: Query) -> list[str]:
    return [network.name for network in query.networks]


def _pairs(query: Query, attached: list[list[tuple[Variable, Value]]], problem: Problem) -> list[ValuePair]:
    """Hidden values and outputs of networks that are equal or isomorphic to one another, with the same of these."""
    roots = {n.name: n.equal_to or n.isomorphic_to or n.name for n in query.networks}
    by_root: dict[str, list[list[tuple[Variable, Value]]]] = {}
    for name, found in zip(_names(query), attached, strict=True):
        by_root.setdefault(roots[roots[name]], []).append(found)
    start = {v.name: int(problem.position[v.offset]) for v in query.variables if v.size}
    return [
        ValuePair((start[one.name], a), (start[other.name], b))
        for alike in by_root.values()
        for k, first in enumerate(alike)
        for second in alike[k + 1 :]
        for (one, a), (other, b) in zip(first, second, strict=False)
        if one.kind is other.kind and one.shape == other.shape
    ]


def _owners(query: Query) -> np.ndarray:
    """[n_in] which network reads each input element."""
    names = _names(query)
    return np.array([names.index(v.network) for v in query.of_kind(Kind.INPUT) for _ in range(v.size)])


@dataclass(frozen=True, eq=False)
class _Inputs:
    """The query's inputs as values: all of them are elements of x, or sums of two where they are tied."""

    builder: Builder
    x: Value
    ties: Ties | None
    parts: dict[bytes, Value] = field(default_factory=dict)

    def part(self, start: int, size: int) -> Value:
        """Elements start to start + size. The same elements of x are the same value."""
        if self.ties is None:
            return self._taken(np.arange(start, start + size))
        base, deviation = (t[start : start + size] for t in (self.ties.base, self.ties.deviation))
        value = self._taken(base)
        return value if (deviation < 0).all() else add(self.builder, value, self._taken(deviation))

    def all(self) -> Value:
        return self.x if self.ties is None else self.part(0, len(self.ties.base))

    def _taken(self, index: np.ndarray) -> Value:
        """Elements of x, zero where the index is -1."""
        key = index.tobytes()
        if key not in self.parts:
            source, places = self.x, torch.from_numpy(np.ascontiguousarray(index, dtype=np.int64))
            if (index < 0).any():
                size = self.builder.shape(source)[0]
                source, places = pad(self.builder, source, [0], [1]), torch.where(places < 0, size, places)
            self.parts[key] = take(self.builder, source, lambda t: t[places])
        return self.parts[key]


def _unit(source: _Inputs, lower: np.ndarray, upper: np.ndarray) -> Unit | None:
    """The one deviation of an input, where there is no other and it has one sign."""
    places = () if source.ties is None else np.unique(source.ties.deviation[source.ties.deviation >= 0])
    if len(places) != 1 or not len(lower):
        return None
    place = int(places[0])
    sign = 1 if (lower[:, place] >= 0).all() else -1 if (upper[:, place] <= 0).all() else 0
    return Unit(source.x, place, sign) if sign else None


def _attach(
    builder: Builder, source: _Inputs, query: Query, name: str, networks: Mapping[str, Network]
) -> list[tuple[Variable, Value]]:
    """The network's graph on its part of x; its declared hidden values and outputs with their values."""
    declaration = next(n for n in query.networks if n.name == name)
    network = networks.get(name) or networks.get(declaration.equal_to or "")
    if network is None:
        raise ModelError(
            f"The query declares the network {name!r}, for which no model was given; name its file with "
            f"--network {name}=FILE."
        )
    alike = {name for n in query.networks if n.isomorphic_to for name in (n.name, n.isomorphic_to)}
    if name in alike and isinstance(network, Fused):
        network = network.unfused()
    graph, feed = network.graph, {}
    sizes = [graph.nodes[i].numel for i in graph.inputs]
    inputs = places(query, Kind.INPUT, name, network.inputs, sizes)
    for (variable, part), position in zip(inputs, graph.inputs, strict=True):
        _check_size(variable, part, graph.nodes[position].shape, "input")
        start = _place(query, variable, Kind.INPUT) + part.start
        feed[position] = reshape(
            builder, source.part(start, part.stop - part.start), graph.nodes[position].shape
        )
    placed = builder.embed(graph, feed)
    sizes = [graph.nodes[i].numel for i in graph.outputs[: len(network.outputs)]]
    outputs = places(query, Kind.OUTPUT, name, network.outputs, sizes)
    found = [(*place, i, "output") for place, i in zip(outputs, graph.outputs, strict=False)]
    hidden = [v for v in query.of_kind(Kind.HIDDEN) if v.network == name]
    found += [(v, slice(0, v.size), _kept(network, v), f"value {v.onnx_name!r}") for v in hidden]
    values: dict[Variable, list[Value]] = {}
    for variable, part, i, what in found:
        _check_size(variable, part, graph.nodes[i].shape, what)
        values.setdefault(variable, []).append(reshape(builder, placed[i], (part.stop - part.start,)))
    return [(v, concat(builder, parts, 0)) for v, parts in values.items()]


def _kept(network: Network, variable: Variable) -> int:
    """Where the network's graph has a hidden value."""
    position = network.kept.get(variable.onnx_name or "")
    if position is None:
        raise SpecError(
            f"the network has no inner value {variable.onnx_name!r} for {variable.name}",
            hint="hidden values are named after nodes or values of an ONNX file; other networks have none",
        )
    return position


def _place(query: Query, variable: Variable, kind: Kind) -> int:
    """Where a variable starts among those of its kind."""
    return sum(v.size for v in query.of_kind(kind) if v.offset < variable.offset)


def _check_size(variable: Variable, part: slice, shape: Shape, what: str) -> None:
    if math.prod(shape) != part.stop - part.start:
        raise SpecError(
            f"the query declares {variable.size} elements for {variable.name}, but the network's {what} has shape "
            f"{shape}, which is {math.prod(shape)} elements",
            hint="check that property and network belong together",
        )


def _join(
    builder: Builder, source: _Inputs, found: list[tuple[Variable, Value]], problem: Problem
) -> tuple[Value, int]:
    """The vector v of the problem's columns (inputs, then hidden values, then outputs, in declaration order), from
    the returned column on: inputs that no atom mentions are left out."""
    found.sort(key=lambda pair: (pair[0].kind is Kind.OUTPUT, pair[0].offset))
    ordered = [value for _, value in found]
    if ordered and all(column >= problem.inputs for column in used_columns(problem)):
        return concat(builder, ordered, 0), problem.inputs
    return concat(builder, [source.all(), *ordered], 0), 0


@dataclass(frozen=True, eq=False)
class _Atoms:
    clauses: Tensor
    strict: Tensor


class _Margins:
    """Builds the margins' node and the table of clauses."""

    def __init__(
        self, builder: Builder, values: Value, first: int, problem: Problem, paired: bool = False
    ) -> None:
        self.builder, self.values, self.first, self.problem = builder, values, first, problem
        self.paired = paired
        self.extra: list[Value] = []
        self.extra_strict: list[bool] = []
        self.always = False

    def build(self) -> tuple[Value, _Atoms]:
        p = self.problem
        trees = [self._conjunctions(t) for t in p.formulas]
        depth = max((len(t) for t in trees), default=1)
        width = max((len(c) for t in trees for c in t), default=1)
        table = np.full((len(trees), max(depth, 1), max(width, 1)), -1, dtype=np.int64)
        for n, conjunctions in enumerate(trees):
            lengths = np.array([len(c) for c in conjunctions])
            rows = np.repeat(np.arange(len(conjunctions)), lengths)
            columns = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            table[n, rows, columns] = [atom for c in conjunctions for atom in c]
        clauses = torch.from_numpy(table[p.formula_index] if len(p.formula_index) else table[:0])
        linear = self._linear()
        margins = concat(self.builder, [linear, *self.extra], 0) if self.extra else linear
        always = np.zeros(self.builder.shape(linear)[0] - p.atoms, dtype=bool)
        strict = np.concatenate([p.strict, always, np.array(self.extra_strict, dtype=bool)])
        return margins, _Atoms(
            self._numbered(clauses), torch.from_numpy(strict[: self.builder.shape(margins)[0]])
        )

    def _linear(self) -> Value:
        """The linear atoms, and one that always holds (margin -1) at the end when it is needed."""
        p, rows = self.problem, self.problem.atoms + 1
        used, columns = np.unique(p.cols, return_inverse=True)
        matrix = torch.zeros(rows, max(len(used), 1), dtype=torch.float64)
        np.add.at(matrix.numpy(), (p.rows, columns), p.values)
        bias = torch.cat([torch.from_numpy(p.constants), torch.tensor([-1.0], dtype=torch.float64)])
        if not self.always and p.atoms:
            matrix, bias = matrix[:-1], bias[:-1]
        index = torch.from_numpy(used - self.first) if len(used) else torch.zeros(1, dtype=torch.int64)
        op = Linear(matrix, bias)
        values = take(self.builder, self.values, lambda t: t[index])
        return self.builder.add(signed(op) if self.paired else op, values)

    def _numbered(self, clauses: Tensor) -> Tensor:
        """Atoms of minima and maxima come after the linear ones."""
        shift = self.problem.atoms + (1 if self.always or not self.problem.atoms else 0)
        return torch.where(clauses < -1, shift - 2 - clauses, clauses)

    def _conjunctions(self, formula: Tree) -> list[list[int]]:
        """Disjunctive normal form. Where that is large, disjunctions within a conjunction are one margin each, a
        minimum, numbered -2, -3, ..."""
        if count_disjuncts(formula) <= max(MAX_EXPANDED, _leaves(formula)):
            found = disjuncts(formula)
            if any(not c for c in found):
                self.always = True
                return [[self.problem.atoms]]
            return found
        if isinstance(formula, Or):
            return [c for child in formula.children for c in self._conjunctions(child)]
        assert isinstance(formula, And)
        return [[self._one(child) for child in formula.children]]

    def _one(self, formula: Tree) -> int:
        """The number of a margin that says whether a formula holds."""
        if not isinstance(formula, And | Or):
            return formula
        self.extra.append(reshape(self.builder, self._margin(formula), (1,)))
        self.extra_strict.append(self._all_strict(formula))
        return -1 - len(self.extra)

    def _all_strict(self, formula: Tree) -> bool:
        """Whether all atoms are: where only some are, a margin of zero counts as if none was, which says less."""
        if isinstance(formula, And | Or):
            return all(map(self._all_strict, formula.children))
        return bool(self.problem.strict[formula])

    def _margin(self, formula: Tree) -> Value:
        if isinstance(formula, And | Or):
            join = maximum if isinstance(formula, And) else minimum
            return tree(self.builder, [self._margin(child) for child in formula.children], join)
        p, mine = self.problem, self.problem.rows == formula
        index = torch.from_numpy(p.cols[mine] - self.first)
        row = torch.from_numpy(p.values[mine]).unsqueeze(0)
        bias = torch.tensor([p.constants[formula]], dtype=torch.float64)
        return self.builder.add(Linear(row, bias), take(self.builder, self.values, lambda t: t[index]))


def _leaves(formula: Tree) -> int:
    return sum(map(_leaves, formula.children)) if isinstance(formula, And | Or) else 1
