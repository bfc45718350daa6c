"""Losses of certified training: frozen dataclasses that are called `loss(net, x, y, eps)`.

Every one is the mean over the examples of what its paper says of one. Bounds in them are true but for rounding: a loss
is an estimate, and `verifier.certify` is what proves something of the trained network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from verifier.attack.descent import DescentOptions, descend
from verifier.errors import OptionsError
from verifier.sets import Box, InputSet
from verifier.training.neighbourhood import Linf, Neighbourhood, Radius, scaled
from verifier.training.network import Network
from verifier.training.task import Task

ATTACK = DescentOptions(steps=8, starts=1)
"""Projected gradient descent from the example itself, at steps that fall from a quarter of the set's width to nothing.
It uses no random numbers."""


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """Called with a network traced by `trace`, a batch x [B, *shape] in the module's own shape, labels y int64 [B], and
    a radius `eps` in the units of x (a number, or a tensor that `near` takes): the mean loss, to be differentiated.

    `near` says which inputs count; `clean` is the weight of the clean loss, the rest has 1 - `clean`.
    """

    near: Neighbourhood = Linf()
    clean: float = 0.0

    def __call__(self, net: Network, x: Tensor, y: Tensor, eps: Radius) -> Tensor:
        return self.value(Task(net, x, y, eps, self.near))

    def value(self, task: Task) -> Tensor:
        """The loss of a batch some of whose bounds may be known already."""
        if self.clean == 0:
            return self.robust(task).mean()
        natural = functional.cross_entropy(task.clean.scores, task.labels)
        return self.clean * natural + (1 - self.clean) * self.robust(task).mean()

    @abstractmethod
    def robust(self, task: Task) -> Tensor:
        """The loss of every example but for the clean one: [B]."""


def worst_entropy(margins: Tensor) -> Tensor:
    """The cross entropy [B] of scores with these margins [B, K - 1] between the label's and the others."""
    return functional.pad(-margins, (1, 0)).logsumexp(1)


def entropy(task: Task, scores: Tensor) -> Tensor:
    return functional.cross_entropy(scores, task.labels, reduction="none")


def attacked(task: Task, inputs: InputSet, attack: DescentOptions) -> Tensor:
    """Points [B, 1, *shape] of the sets where the least margin is small; no gradient goes through them."""
    return descend(task.graph, inputs, task.rows, attack)[0]


def small_boxes(task: Task, share: float, attack: DescentOptions) -> Box:
    """Boxes of `share` of the sets' radius around points that the attack finds, moved to lie in the sets."""
    if not isinstance(task.inputs, Box):
        raise OptionsError(
            "Small boxes are for the maximum norm: near=Linf(...). Use IBP or CROWNIBP for other norms."
        )
    lower, upper = task.inputs.box()
    radius = share * (upper - lower) / 2
    center = attacked(task, task.inputs, attack)
    center = torch.minimum(torch.maximum(center, lower + radius), upper - radius)
    return Box(center - radius, center + radius)


@dataclass(frozen=True, kw_only=True)
class IBP(Loss):
    """Interval bound propagation (Gowal et al. 2018, arXiv 1810.12715): kappa CE(f(x), y) + (1 - kappa) CE(z, y), where
    z has the worst margins in intervals and kappa, here `clean`, falls from 1 to 0.5 or 0."""

    def robust(self, task: Task) -> Tensor:
        return worst_entropy(task.margins(task.enclosures).lower)


@dataclass(frozen=True, kw_only=True)
class CROWNIBP(Loss):
    """CROWN-IBP (Zhang et al. 2020, arXiv 1906.06316): margins (1 - beta) IBP + beta CROWN-IBP, where beta
    falls from 1 to 0 while eps grows (`dataclasses.replace(loss, beta=...)` each step).

    With `fusion` (Xu et al. 2020, arXiv 2002.12920) the sum of exponentials of the margins is bounded as
    one function: each exp by its chord over the margin's interval, and the weighted sum of margins by a single row,
    whatever the number of classes. The mixture is then one of losses. The fused loss is a bound of the worst cross
    entropy, too; it equals the other one where eps is 0, and where there are two classes and the margin's upper bounds
    by intervals and by CROWN agree. Else either may be smaller: chords lose, and one worst input for all classes gains.
    """

    beta: float = 1.0
    fusion: bool = False

    def robust(self, task: Task) -> Tensor:
        interval = task.margins(task.enclosures)
        if self.beta == 0:
            return worst_entropy(interval.lower)
        if self.fusion:
            fused = fused_entropy(task)
            return (
                fused
                if self.beta == 1
                else fused * self.beta + (1 - self.beta) * worst_entropy(interval.lower)
            )
        crown = task.backward(task.rows)
        return worst_entropy(
            crown if self.beta == 1 else self.beta * crown + (1 - self.beta) * interval.lower
        )


def fused_entropy(task: Task) -> Tensor:
    """An upper bound [B] of the worst cross entropy from one backward row per example.

    With m = score - label's score in [l, u], exp(m) <= exp(u) + s (m - u) for the chord's slope s. All is divided by
    the largest exp(u) (or 1), so that nothing overflows.
    """
    least, most = task.margins(task.enclosures)
    upper, width = -least, most - least
    top = upper.amax(1, keepdim=True).clamp(min=0).detach()
    height = (upper - top).exp()
    slope = height * _secant(width)
    row = (slope.unsqueeze(1) @ task.rows).to(task.x)  # of the margins label - other, as all rows are
    rest = (height - slope * upper).sum(1) + (-top.squeeze(1)).exp()
    total = rest - task.backward(row).squeeze(1)
    return top.squeeze(1) + total.clamp(min=torch.finfo(total.dtype).tiny).log()


def _secant(width: Tensor) -> Tensor:
    """(1 - exp(-w)) / w, by its series where the difference would cancel."""
    near = width < 1e-2
    safe = torch.where(near, torch.ones_like(width), width)
    series = 1 - width / 2 * (1 - width / 3 * (1 - width / 4 * (1 - width / 5)))
    return torch.where(near, series, -torch.expm1(-safe) / safe)


@dataclass(frozen=True, kw_only=True)
class SABR(Loss):
    """Small boxes (Mueller et al. 2023, arXiv 2210.04871): IBP on a box of `share` (lambda) of the radius
    around an adversarial example, moved inside.

    The authors' commands (github.com/eth-sri/SABR) have `share` 0.4 and 0.6 for MNIST at 0.1 and 0.3, 0.7 for CIFAR-10
    at 8/255, 0.4 for TinyImageNet, and 0.1 for CIFAR-10 at 2/255 with `shrink` 0.8, which multiplies the upper end of
    every neuron that may change its sign. CTBench (Mao et al. 2024, arXiv 2406.04848) has 0.9 for MNIST at 0.3 and
    CIFAR-10 at 8/255.
    """

    share: float = 0.4
    shrink: float = 1.0
    attack: DescentOptions = ATTACK

    def robust(self, task: Task) -> Tensor:
        boxes = small_boxes(task, self.share, self.attack)
        return worst_entropy(task.margins(task.enclosed(boxes, self.shrink)).lower)


@dataclass(frozen=True, kw_only=True)
class Expressive(Loss):
    """What the losses of De Palma et al. 2024 (arXiv 2305.13991) share: `alpha` weighs the worst margins in intervals
    against an adversarial example within `reach` times the radius. Values below are those of the authors' commands
    (github.com/alessandrodepalma/expressive-losses), which attack in 8 steps at 2/255 and in one elsewhere, and train
    at twice the radius for MNIST at 0.1, at 4/3 of it at 0.3."""

    alpha: float = 0.01
    reach: float = 1.0
    attack: DescentOptions = ATTACK

    def adversarial(self, task: Task) -> Tensor:
        """Scores [B, K] of the attack's points."""
        inputs = task.inputs if self.reach == 1 else self.near.around(task.x, scaled(task.eps, self.reach))
        return task.scores(attacked(task, inputs, self.attack))


@dataclass(frozen=True, kw_only=True)
class Adversarial(Expressive):
    """Adversarial training (Madry et al. 2018, arXiv 1706.06083), for comparison: the others with `alpha` 0."""

    alpha: float = 0.0

    def robust(self, task: Task) -> Tensor:
        return entropy(task, self.adversarial(task))


@dataclass(frozen=True, kw_only=True)
class MTLIBP(Expressive):
    """(1 - alpha) L_adv + alpha L_IBP (De Palma et al. 2024, arXiv 2305.13991): `alpha` 0.01 for MNIST at
    0.1, 0.08 at 0.3; for CIFAR-10 0.004 at 2/255 with `reach` 2.1, 0.5 at 8/255; 0.01 for TinyImageNet. CTBench (Mao
    et al. 2024, arXiv 2406.04848) has 0.02, 0.5, 0.01 with `reach` 2, 0.6, and 0.05 with 1.5."""

    def robust(self, task: Task) -> Tensor:
        bound = worst_entropy(task.margins(task.enclosures).lower)
        return (1 - self.alpha) * entropy(task, self.adversarial(task)) + self.alpha * bound


@dataclass(frozen=True, kw_only=True)
class CCIBP(Expressive):
    """The cross entropy of (1 - alpha) adversarial margins + alpha worst margins in intervals (De Palma et al. 2024,
    arXiv 2305.13991): `alpha` 0.1 for MNIST at 0.1, 0.3 at 0.3; for CIFAR-10 0.01 at 2/255 with `reach` 2.1, 0.5 at
    8/255; 0.01 for TinyImageNet."""

    def robust(self, task: Task) -> Tensor:
        margins = (task.rows @ self.adversarial(task).unsqueeze(2)).squeeze(2)
        return worst_entropy((1 - self.alpha) * margins + self.alpha * task.margins(task.enclosures).lower)


@dataclass(frozen=True, kw_only=True)
class ExpIBP(Expressive):
    """L_adv^(1 - alpha) L_IBP^alpha for every example (De Palma et al. 2024, arXiv 2305.13991): `alpha`
    0.095 for CIFAR-10 at 2/255 with `reach` 2.1, 0.5 at 8/255; 0.04 for TinyImageNet."""

    alpha: float = 0.1

    def robust(self, task: Task) -> Tensor:
        bound = worst_entropy(task.margins(task.enclosures).lower)
        losses = (entropy(task, self.adversarial(task)), bound)
        found, bound = (loss.clamp(min=torch.finfo(loss.dtype).tiny).log() for loss in losses)
        return ((1 - self.alpha) * found + self.alpha * bound).exp()
