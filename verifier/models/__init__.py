"""Reference modules of recurrent and gated sequence models, written in plain operators; `catalogue.py` has them all.

Every model maps [B, T, width] to [B, T, width] in one or two forms that compute the same, `form="recurrent"` or
`"parallel"`, and is exported to ONNX or traced for a fixed T.
"""

from verifier.models.catalogue import FAMILIES, small
from verifier.models.delta_net import DeltaNet
from verifier.models.delta_product import DeltaProduct
from verifier.models.forgetting_attention import ForgettingAttention
from verifier.models.gated_attention import GatedAttention
from verifier.models.gated_delta_net import GatedDeltaNet
from verifier.models.gla import GLA
from verifier.models.hgrn import HGRN
from verifier.models.hgrn2 import HGRN2
from verifier.models.layer import Form, SequenceLayer
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
from verifier.models.rwkv7 import RWKV7, RWKV7Model
from verifier.models.rwkv7_checkpoint import VOCABULARY, load_rwkv7
from verifier.models.s4d import S4D
from verifier.models.simple_gla import SimpleGLA
from verifier.models.slstm import SLSTM

__all__ = [
    "FAMILIES",
    "small",
    "Form",
    "SequenceLayer",
    "LinearAttention",
    "RetNet",
    "GLA",
    "SimpleGLA",
    "Mamba2",
    "Mamba",
    "HGRN",
    "HGRN2",
    "DeltaNet",
    "GatedDeltaNet",
    "DeltaProduct",
    "RWKV4",
    "RWKV6",
    "RWKV7",
    "RWKV7Model",
    "VOCABULARY",
    "load_rwkv7",
    "MLSTM",
    "MLSTMSigmoid",
    "SLSTM",
    "GatedAttention",
    "ForgettingAttention",
    "Liger",
    "Lizard",
    "MixtureOfMemories",
    "S4D",
    "LSSL",
    "PLRNN",
    "LipschitzRNN",
    "ParaGRU",
    "ParaLSTM",
]
