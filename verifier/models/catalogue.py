"""All families with a small instance of each: what tests and the documentation go through."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial

from verifier.models.delta_net import DeltaNet
from verifier.models.delta_product import DeltaProduct
from verifier.models.forgetting_attention import ForgettingAttention
from verifier.models.gated_attention import GatedAttention
from verifier.models.gated_delta_net import GatedDeltaNet
from verifier.models.gla import GLA
from verifier.models.hgrn import HGRN
from verifier.models.hgrn2 import HGRN2
from verifier.models.layer import SequenceLayer
from verifier.models.liger import Liger
from verifier.models.linear_attention import LinearAttention
from verifier.models.lipschitz_rnn import LipschitzRNN
from verifier.models.lizard import Lizard
from verifier.models.lssl import LSSL
from verifier.models.mamba import Mamba
from verifier.models.mamba2 import Mamba2
from verifier.models.mixture_of_memories import MixtureOfMemories
from verifier.models.mlstm import MLSTM
from verifier.models.mlstm_sigmoid import MLSTMSigmoid
from verifier.models.para_gru import ParaGRU
from verifier.models.para_lstm import ParaLSTM
from verifier.models.plrnn import PLRNN
from verifier.models.retnet import RetNet
from verifier.models.rwkv4 import RWKV4
from verifier.models.rwkv6 import RWKV6
from verifier.models.rwkv7 import RWKV7
from verifier.models.s4d import S4D
from verifier.models.simple_gla import SimpleGLA
from verifier.models.slstm import SLSTM

FAMILIES: Mapping[str, Callable[..., SequenceLayer]] = {
    "linear attention": partial(LinearAttention, 8, 2, normalise=True),
    "linear attention, not normalised": partial(LinearAttention, 8, 2, "identity"),
    "RetNet": partial(RetNet, 8, 2),
    "GLA": partial(GLA, 8, 2, expand_k=1.0, gate_rank=4),
    "simple GLA": partial(SimpleGLA, 8, 2),
    "Mamba-2": partial(Mamba2, 6, 2, 4, state_size=3),
    "Mamba": partial(Mamba, 6, 6, state_size=3, time_rank=2),
    "HGRN": partial(HGRN, 6),
    "HGRN2": partial(HGRN2, 8, 2, lower_bound=0.2),
    "DeltaNet": partial(DeltaNet, 8, 2),
    "DeltaNet, eigenvalues in [-1, 1]": partial(DeltaNet, 8, 2, negative=True, gate=True, conv=0),
    "Gated DeltaNet": partial(GatedDeltaNet, 8, 2, 3, negative=True),
    "DeltaProduct": partial(DeltaProduct, 8, 2, 3, conv=2),
    "RWKV-4": partial(RWKV4, 6),
    "RWKV-6": partial(RWKV6, 8, 2, mix_rank=2, gate_rank=2),
    "RWKV-7": partial(RWKV7, 8, 2, rank=3),
    "mLSTM": partial(MLSTM, 8, 2),
    "mLSTM, not stabilised": partial(MLSTM, 8, 2, stabilised=False),
    "mLSTM, sigmoid gates": partial(MLSTMSigmoid, 8, 2),
    "mLSTM, sigmoid gates, normalised": partial(MLSTMSigmoid, 8, 2, normalise=True),
    "sLSTM": partial(SLSTM, 8, 2),
    "gated softmax attention": partial(GatedAttention, 8, 2),
    "forgetting attention": partial(ForgettingAttention, 8, 2, gate=True),
    "sliding window and GLA (Liger)": partial(Liger, 8, 2, window=2),
    "sliding window and GLA (Lizard)": partial(Lizard, 8, 2, window=2, features=3),
    "mixture of memories": partial(MixtureOfMemories, 8, 2, 3, conv=2),
    "S4D": partial(S4D, 6, 4),
    "LSSL": partial(LSSL, 6, 4),
    "almost-linear RNN": partial(PLRNN, 6, 6, 2),
    "PLRNN": partial(PLRNN, 6, 6, 6),
    "input-convex Lipschitz RNN": partial(LipschitzRNN, 6, 6),
    "ParaGRU": partial(ParaGRU, 6, 6),
    "ParaLSTM": partial(ParaLSTM, 6, 6),
}
"""A small instance of every family; a `form` may be given."""


def small(name: str, form: str | None = None) -> SequenceLayer:
    """A small random instance in eval mode, in the given form or its first."""
    build = FAMILIES[name]
    return (build() if form is None else build(form=form)).eval()


def hidden_size(name: str) -> int:
    """The width of the tokens that `small` takes."""
    return FAMILIES[name].args[0]  # pyright: ignore[reportFunctionMemberAccess]


def forms(name: str) -> tuple[str, ...]:
    return model_class(name).forms


def model_class(name: str) -> type[SequenceLayer]:
    return FAMILIES[name].func  # pyright: ignore[reportFunctionMemberAccess]


def rows() -> list[tuple[str, str, str, str, str, str]]:
    """Per class: its name, equation, file, forms, the public layer whose parameters it takes, and source."""
    result = []
    for cls in dict.fromkeys(model_class(name) for name in FAMILIES):
        equation = (sys.modules[cls.__module__].__doc__ or "").split("\n")[0]
        file = cls.__module__.rsplit(".", 1)[1] + ".py"
        result.append((cls.__name__, equation, file, ", ".join(cls.forms), cls.layout, cls.source))
    return result
