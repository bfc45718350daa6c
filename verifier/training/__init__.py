"""Certified training: bounds people can train with (docs/training.md)."""

from verifier.training.losses import CCIBP, CROWNIBP, IBP, MTLIBP, SABR, ExpIBP, Loss
from verifier.training.neighbourhood import Linf, Neighbourhood
from verifier.training.network import Network, trace

__all__ = [
    "CCIBP",
    "CROWNIBP",
    "ExpIBP",
    "IBP",
    "Linf",
    "Loss",
    "MTLIBP",
    "Neighbourhood",
    "Network",
    "SABR",
    "trace",
]
