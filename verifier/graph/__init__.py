"""The computational graph: nodes, the operator protocol, and the values that engines pass along it."""

from verifier.graph.builder import Builder, Value
from verifier.graph.composite import Composite
from verifier.graph.curve import Curve, Curved, Piece
from verifier.graph.graph import Graph, Node
from verifier.graph.interval import Interval
from verifier.graph.op import Affine, Constant, Elementwise, Input, Op, Parameter, Relaxation, Univariate

__all__ = [
    "Affine",
    "Builder",
    "Composite",
    "Constant",
    "Curve",
    "Curved",
    "Elementwise",
    "Graph",
    "Input",
    "Interval",
    "Node",
    "Op",
    "Parameter",
    "Piece",
    "Relaxation",
    "Univariate",
    "Value",
]
