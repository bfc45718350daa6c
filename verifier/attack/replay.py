"""From a candidate to a counterexample: replay in the original network, exact decision on the original query."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from verifier.attack.implicant import Inputs
from verifier.attack.repair import Settled, Settler
from verifier.errors import ModelError
from verifier.frontends.onnx import OnnxModel
from verifier.results import Counterexample
from verifier.specs.evaluator import satisfies
from verifier.specs.matching import places
from verifier.specs.query import Kind, Query, Variable
from verifier.specs.witness import write_witness

TOLERANCE = 1e-4
"""How far outside its interval an input may lie when no float lies inside."""


class Runnable(Protocol):
    """A network other than an `OnnxModel`: `run` maps arrays [N, *shape], in the order of `inputs`, to arrays
    [N, *shape] in the order of `outputs`."""

    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def input_dtypes(self) -> tuple[np.dtype, ...]: ...
    def run(self, inputs: Sequence[NDArray]) -> list[NDArray]: ...


Networks = Mapping[str, "OnnxModel | Runnable"]


def confirm(
    query: Query, networks: Networks, point: ArrayLike, tolerance: float = TOLERANCE
) -> Counterexample | None:
    """The counterexample at or beside `point` [n_in] (all input elements in declaration order), or None.

    Raises ModelError where a network cannot be run. For many points make one `Judge`.
    """
    return Judge(query, networks, tolerance).confirm(point)


class Judge:
    """Confirms candidates of one query. `networks` maps every declared network's name to what runs it; a network
    declared equal to another may be left out."""

    def __init__(self, query: Query, networks: Networks, tolerance: float = TOLERANCE) -> None:
        self.query = query
        self.tolerance = tolerance
        self.inputs = Inputs(query)
        self.networks = {d.name: _resolve(d.name, d.equal_to, networks) for d in query.networks}
        dtypes = {dtype for n in self.networks.values() for dtype in n.input_dtypes}
        dtypes |= {np.dtype(v.dtype) for v in query.of_kind(Kind.INPUT) if v.dtype in ("float32", "float64")}
        self.grid = max((np.dtype(d) for d in dtypes), key=lambda d: np.finfo(d).eps)
        self.common = Settler(self.inputs.common(), query.size, self.grid)

    def confirm(self, point: ArrayLike) -> Counterexample | None:
        """As the function `confirm`."""
        vector = np.zeros(self.query.size)
        vector[self.inputs.positions] = np.asarray(point, dtype=np.float64).reshape(-1)
        if not np.isfinite(vector).all():
            return None
        settled = self.common.settle(vector, self.inputs.is_input)
        if settled is None:
            return None
        values = self._run(settled.vector)
        if settled.tolerance == 0.0 and satisfies(self.query, values):
            return self._counterexample(values, 0.0)
        return self._confirm_nearest(settled, values)

    def _confirm_nearest(self, settled: Settled, values: dict[str, NDArray]) -> Counterexample | None:
        """Once more, on the input bounds of the disjuncts that the point is nearest to."""
        vector = self._flat(values)
        if not np.isfinite(vector).all():
            return None
        part = Settler(self.inputs.nearest(vector), self.query.size, self.grid)
        final = part.settle(vector, self.inputs.is_input)
        if final is None or final.tolerance > self.tolerance:
            return None
        moved = bool((final.vector != vector).any())
        if not moved and final.tolerance == settled.tolerance == 0.0:
            return None
        if moved:
            values = self._run(final.vector)
        if satisfies(self.query, values, final.tolerance):
            return self._counterexample(values, final.tolerance)
        return None

    def _run(self, vector: NDArray[np.float64]) -> dict[str, NDArray]:
        """All variables' values, hidden ones and outputs by running the networks; in the networks' shapes and
        dtypes."""
        values: dict[str, NDArray] = {}
        for name, network in self.networks.items():
            shapes = network.input_shapes
            sizes = [math.prod(shape) for shape in shapes]
            order = places(self.query, Kind.INPUT, name, network.inputs, sizes)
            arrays = []
            for (variable, part), shape, dtype in zip(order, shapes, network.input_dtypes, strict=True):
                whole = vector[variable.offset : variable.offset + variable.size]
                arrays.append(whole[part].astype(dtype).reshape(shape)[None])
            values |= _joined([v for v, _ in order], arrays)
            outputs = run_network(network, arrays)
            sizes = [array[0].size for array in outputs]
            order = places(self.query, Kind.OUTPUT, name, network.outputs, sizes)
            values |= _joined([v for v, _ in order], outputs)
            hidden = [v for v in self.query.of_kind(Kind.HIDDEN) if v.network == name]
            for variable, array in zip(hidden, _run_inner(network, arrays, hidden), strict=True):
                values[variable.name] = array[0]
        return values

    def _flat(self, values: Mapping[str, NDArray]) -> NDArray[np.float64]:
        parts = [values[v.name].astype(np.float64).reshape(-1) for v in self.query.variables]
        return np.concatenate(parts)

    def _counterexample(self, values: Mapping[str, NDArray], tolerance: float) -> Counterexample:
        inputs = {v.name: values[v.name] for v in self.query.of_kind(Kind.INPUT)}
        outputs = {v.name: values[v.name] for v in self.query.of_kind(Kind.OUTPUT)}
        return Counterexample(inputs, outputs, tolerance, write_witness(self.query, values))


def _joined(variables: Sequence[Variable], arrays: Sequence[NDArray]) -> dict[str, NDArray]:
    """The value of each variable by its name, of one array [1, *shape] or of several, one after the other."""
    parts: dict[str, list[NDArray]] = {}
    for variable, array in zip(variables, arrays, strict=False):
        parts.setdefault(variable.name, []).append(array[0])
    return {
        name: part[0] if len(part) == 1 else np.concatenate([a.reshape(-1) for a in part])
        for name, part in parts.items()
    }


def run_network(network: OnnxModel | Runnable, arrays: list[NDArray]) -> list[NDArray]:
    if isinstance(network, OnnxModel):
        from verifier.frontends.replay import run

        return run(network, arrays)
    return network.run(arrays)


def _run_inner(
    network: OnnxModel | Runnable, arrays: list[NDArray], hidden: Sequence[Variable]
) -> list[NDArray]:
    """The hidden variables' values; in onnxruntime, by making them outputs of the model."""
    if not hidden:
        return []
    if not isinstance(network, OnnxModel):
        raise ModelError("Hidden values of a network that is no ONNX model cannot be replayed.")
    from verifier.frontends.replay import run_inner

    return run_inner(network, arrays, [v.onnx_name or "" for v in hidden])


def _resolve(name: str, equal_to: str | None, networks: Networks) -> OnnxModel | Runnable:
    network = networks.get(name) or networks.get(equal_to or "")
    if network is None:
        raise ModelError(f"No network was given for {name!r}, so no counterexample could be replayed.")
    return network
