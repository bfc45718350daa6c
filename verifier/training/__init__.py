"""Certified training: bounds people can train with (docs/training.md)."""

from verifier.training.losses import CCIBP, CROWNIBP, IBP, MTLIBP, SABR, Adversarial, ExpIBP, Loss
from verifier.training.neighbourhood import Linf, Lp, Neighbourhood, token_radius
from verifier.training.network import Network, trace
from verifier.training.schedules import Ramp, SmoothRamp
from verifier.training.taps import STAPS, TAPS
from verifier.training.task import Task
from verifier.training.tightness import Tightness, propagation_tightness
from verifier.training.warmup import WarmUp, initialise, l1

__all__ = [
    "Adversarial",
    "CCIBP",
    "CROWNIBP",
    "ExpIBP",
    "IBP",
    "Linf",
    "Loss",
    "Lp",
    "MTLIBP",
    "Neighbourhood",
    "Network",
    "Ramp",
    "SABR",
    "STAPS",
    "SmoothRamp",
    "TAPS",
    "Task",
    "Tightness",
    "WarmUp",
    "initialise",
    "l1",
    "propagation_tightness",
    "token_radius",
    "trace",
]
