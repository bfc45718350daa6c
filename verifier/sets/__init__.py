"""Sets of inputs: boxes, lp balls and polytopes."""

from verifier.sets.ball import Ball
from verifier.sets.box import Box
from verifier.sets.input_set import InputSet
from verifier.sets.polytope import Polytope

__all__ = ["Ball", "Box", "InputSet", "Polytope"]
