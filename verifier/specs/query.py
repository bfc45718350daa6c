"""A query: declared networks and variables, and the formula whose satisfiability is asked."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from verifier.specs.formula import Formula


class Kind(enum.Enum):
    """What a declared variable stands for."""

    INPUT = "input"
    HIDDEN = "hidden"
    OUTPUT = "output"


@dataclass(frozen=True)
class Variable:
    """A declared tensor.

    ``offset`` is the index of its first element in the flat vector of all declared elements (declaration
    order, row-major). ``dtype`` is the declared type's text (``real``, ``float32``, ...). ``onnx_name`` names
    the ONNX tensor where the query gives it.
    """

    name: str
    kind: Kind
    network: str
    shape: tuple[int, ...]
    dtype: str
    onnx_name: str | None
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class NetworkDecl:
    """A declared network: ``equal_to`` another (same weights) or ``isomorphic_to`` it (same signature)."""

    name: str
    equal_to: str | None = None
    isomorphic_to: str | None = None


@dataclass(frozen=True)
class Query:
    """Is there an assignment of the variables, consistent with the networks, that satisfies ``formula``?

    ``unsat`` is a proof of the property that the query negates. Variables are in declaration order and their
    offsets are contiguous. ``version`` is the VNN-LIB version, 1 or 2, that witnesses are written in.
    """

    networks: tuple[NetworkDecl, ...]
    variables: tuple[Variable, ...]
    formula: Formula
    version: int = 1
    source: str | None = None

    @property
    def size(self) -> int:
        """Number of declared elements."""
        return sum(variable.size for variable in self.variables)

    def of_kind(self, kind: Kind) -> tuple[Variable, ...]:
        """The variables of one kind, in declaration order."""
        return tuple(variable for variable in self.variables if variable.kind is kind)

    def variable(self, name: str) -> Variable:
        """The variable called ``name``; `KeyError` when there is none."""
        for variable in self.variables:
            if variable.name == name:
                return variable
        raise KeyError(name)

    def element_name(self, index: int) -> str:
        """How the query's own syntax writes flat element ``index``: ``X_3`` or ``X[0,3]``."""
        for variable in self.variables:
            local = index - variable.offset
            if 0 <= local < variable.size:
                if self.version == 1:
                    return f"{variable.name}_{local}"
                indices: list[str] = []
                for size in reversed(variable.shape):
                    local, rest = divmod(local, size)
                    indices.insert(0, str(rest))
                return f"{variable.name}[{','.join(indices)}]" if indices else variable.name
        raise IndexError(index)


def hidden_names(query: Query, network: str) -> tuple[str, ...]:
    """What the inner values are called, in the ONNX file of `network`, that the query declares as hidden: in the
    network's own declaration and in those of networks that are equal to it."""
    mine = {n.name for n in query.networks if network in (n.name, n.equal_to)}
    hidden = [v for v in query.of_kind(Kind.HIDDEN) if v.network in mine]
    return tuple(dict.fromkeys(v.onnx_name for v in hidden if v.onnx_name is not None))


def plain_variables(input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> tuple[Variable, ...]:
    """One network's ``X`` and ``Y``."""
    x = Variable("X", Kind.INPUT, "f", input_shape, "real", None, 0)
    return x, Variable("Y", Kind.OUTPUT, "f", output_shape, "real", None, x.size)
