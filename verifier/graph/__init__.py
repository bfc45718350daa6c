"""The computational graph: nodes, the operator protocol, and the values that engines pass along it."""

from verifier.graph.builder import Builder, Value
from verifier.graph.composite import Composite
from verifier.graph.graph import Graph, Node
from verifier.graph.interval import Interval
from verifier.graph.op import Affine, Constant, Elementwise, Input, Op, Parameter, Relaxation, Univariate

__all__ = [
    "Affine",
    "Builder",
    "Composite",
    "Constant",
    "Elementwise",
    "Graph",
    "Input",
    "Interval",
    "Node",
    "Op",
    "Parameter",
    "Relaxation",
    "Univariate",
    "Value",
]
