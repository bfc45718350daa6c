"""The classifiers: a linear embedding, one recurrent or gated layer, a linear head on the last token's output."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from verifier.models.catalogue import FAMILIES

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights.npz"
TORCH_LAYERS: Mapping[str, Callable[..., nn.Module]] = {
    "LSTM": partial(nn.LSTM, 8, 8, batch_first=True),
    "GRU": partial(nn.GRU, 8, 8, batch_first=True),
}


class Classifier(nn.Module):
    """[B, T, features] to scores [B, classes]. With `steps`, every place adds a vector of its own to the embedding."""

    def __init__(self, layer: nn.Module, width: int, features: int, classes: int, steps: int = 0) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(features, width), layer, nn.Linear(width, classes)
        self.places = nn.Parameter(0.5 * torch.randn(steps, width)) if steps else None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x)[:, -1])

    def hidden(self, x: Tensor) -> Tensor:
        """What the layer makes of every token, [B, T, width]."""
        tokens = self.embed(x)
        if self.places is not None:
            tokens = tokens + self.places
        found = self.layer(tokens)
        return found[0] if isinstance(found, tuple) else found


def families() -> list[str]:
    """All families of the catalogue, and torch's own layers."""
    return [*FAMILIES, *TORCH_LAYERS]


def forms(family: str) -> tuple[str, ...]:
    if family in TORCH_LAYERS:
        return ("recurrent",)
    return FAMILIES[family].func.forms  # pyright: ignore[reportFunctionMemberAccess]


def build(family: str, features: int, classes: int, steps: int = 0, form: str | None = None) -> Classifier:
    """An untrained classifier, seeded, in the given form or the layer's first; its parameters do not depend on it."""
    torch.manual_seed(0)
    make = TORCH_LAYERS.get(family) or FAMILIES[family]
    layer = make() if form is None or family in TORCH_LAYERS else make(form=form)
    width = make.args[0]  # pyright: ignore[reportFunctionMemberAccess]
    return Classifier(layer, width, features, classes, steps).eval()


def in_form(family: str, trained: Classifier, form: str) -> Classifier:
    """The same weights in another form."""
    steps = 0 if trained.places is None else len(trained.places)
    found = build(family, trained.embed.in_features, trained.head.out_features, steps, form)
    found.load_state_dict(trained.state_dict())
    return found


def slug(name: str) -> str:
    """A name for files."""
    return re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")


def save_weights(weights: Mapping[str, Mapping[str, Tensor]], file: Path = WEIGHTS) -> None:
    """All networks' parameters in one file."""
    arrays = {f"{network}/{name}": t.numpy() for network, own in weights.items() for name, t in own.items()}
    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_weights(file: Path = WEIGHTS) -> dict[str, dict[str, Tensor]]:
    """The parameters of all stored networks, by the network's name and their own."""
    weights: dict[str, dict[str, Tensor]] = {}
    if file.is_file():
        with np.load(file) as found:
            for key in found.files:
                network, _, parameter = key.partition("/")
                weights.setdefault(network, {})[parameter] = torch.from_numpy(found[key])
    return weights
