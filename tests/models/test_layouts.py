"""Parameters are named and shaped as in public layers; the public RWKV-7 checkpoint computes what it was trained to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from verifier.errors import ModelError
from verifier.models import (
    GLA,
    HGRN,
    HGRN2,
    MLSTM,
    RWKV6,
    RWKV7,
    VOCABULARY,
    DeltaNet,
    DeltaProduct,
    ForgettingAttention,
    GatedDeltaNet,
    Liger,
    LinearAttention,
    Mamba,
    Mamba2,
    MixtureOfMemories,
    RetNet,
    SimpleGLA,
    load_rwkv7,
)


def square(*names: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (8, 8) for name in names}


# What flash-linear-attention's layers of hidden size 8 with these arguments hold.
LAYOUTS = {
    "LinearAttention": (
        LinearAttention(8, 2),
        {**square("q_proj", "k_proj", "v_proj", "o_proj"), "norm.weight": (4,)},
    ),
    "MultiScaleRetention": (
        RetNet(8, 2),
        {
            **square("q_proj", "k_proj"),
            "v_proj.weight": (16, 8),
            "g_proj.weight": (16, 8),
            "o_proj.weight": (8, 16),
            "g_norm_swish_gate.weight": (8,),
        },
    ),
    "GatedLinearAttention": (
        GLA(8, 2),
        {
            **square("v_proj", "g_proj", "o_proj"),
            "q_proj.weight": (4, 8),
            "k_proj.weight": (4, 8),
            "gk_proj.0.weight": (16, 8),
            "gk_proj.1.weight": (4, 16),
            "gk_proj.1.bias": (4,),
            "g_norm_swish_gate.weight": (4,),
        },
    ),
    "SimpleGatedLinearAttention": (
        SimpleGLA(8, 2),
        {
            **square("q_proj", "k_proj", "v_proj", "g_proj", "o_proj"),
            **{f"{c}_conv1d.weight": (8, 1, 4) for c in "qkv"},
            "gk_proj.weight": (2, 8),
            "gk_proj.bias": (2,),
            "g_norm_swish_gate.weight": (4,),
        },
    ),
    "Mamba2": (
        Mamba2(8, 2, 8, state_size=3),
        {
            "in_proj.weight": (40, 8),
            "in_proj.bias": (40,),
            "conv1d.weight": (22, 1, 4),
            "A_log": (2,),
            "dt_bias": (2,),
            "D": (2,),
            "norm.weight": (16,),
            "out_proj.weight": (8, 16),
            "out_proj.bias": (8,),
        },
    ),
    "Mamba": (
        Mamba(8, 6, state_size=3, time_rank=2),
        {
            "in_proj.weight": (12, 8),
            "in_proj.bias": (12,),
            "conv1d.weight": (6, 1, 4),
            "conv1d.bias": (6,),
            "x_proj.weight": (8, 6),
            "dt_proj.weight": (6, 2),
            "dt_proj.bias": (6,),
            "A_log": (6, 3),
            "D": (6,),
            "out_proj.weight": (8, 6),
            "out_proj.bias": (8,),
        },
    ),
    "HGRNAttention": (
        HGRN(8),
        {**square("i_proj", "f_proj", "g_proj", "o_proj"), "g_norm.weight": (8,)},
    ),
    "HGRN2Attention": (
        HGRN2(8, 2),
        {**square("q_proj", "f_proj", "i_proj", "o_proj"), "g_norm.weight": (8,)},
    ),
    "DeltaNet": (
        DeltaNet(8, 2),
        {
            **square("q_proj", "k_proj", "v_proj", "o_proj"),
            **{f"{c}_conv1d.weight": (8, 1, 4) for c in "qkv"},
            "b_proj.weight": (2, 8),
            "o_norm.weight": (4,),
        },
    ),
    "GatedDeltaNet": (
        GatedDeltaNet(8, 2, 3),
        {
            "q_proj.weight": (6, 8),
            "k_proj.weight": (6, 8),
            "v_proj.weight": (12, 8),
            "a_proj.weight": (2, 8),
            "b_proj.weight": (2, 8),
            "A_log": (2,),
            "dt_bias": (2,),
            "q_conv1d.weight": (6, 1, 4),
            "k_conv1d.weight": (6, 1, 4),
            "v_conv1d.weight": (12, 1, 4),
            "g_proj.weight": (12, 8),
            "o_norm.weight": (6,),
            "o_proj.weight": (8, 12),
        },
    ),
    "GatedDeltaProduct": (
        DeltaProduct(8, 2, 3),
        {
            "q_proj.weight": (6, 8),
            "k_proj.weight": (12, 8),
            "v_proj.weight": (24, 8),
            "b_proj.weight": (4, 8),
            "a_proj.weight": (2, 8),
            "A_log": (2,),
            "dt_bias": (2,),
            "q_conv1d.weight": (6, 1, 4),
            "k_conv1d.weight": (12, 1, 4),
            "v_conv1d.weight": (24, 1, 4),
            "g_proj.weight": (12, 8),
            "o_norm.weight": (6,),
            "o_proj.weight": (8, 12),
        },
    ),
    "RWKV6Attention": (
        RWKV6(8, 2, mix_rank=3, gate_rank=2),
        {
            "x_proj.0.linear.weight": (15, 8),
            "x_proj.0.mu": (8,),
            "x_proj.2.weight": (8, 15),
            "x_bias": (5, 8),
            "r_proj.linear.weight": (4, 8),
            "w_proj.linear.lora.0.weight": (2, 8),
            "w_proj.linear.lora.2.weight": (4, 2),
            "w_proj.linear.lora.2.bias": (4,),
            "k_proj.linear.weight": (4, 8),
            "v_proj.linear.weight": (8, 8),
            "g_proj.linear.weight": (8, 8),
            "bonus": (2, 2),
            "g_norm.weight": (8,),
            "g_norm.bias": (8,),
            "o_proj.weight": (8, 8),
        },
    ),
    "RWKV7Attention": (
        RWKV7(8, 2, rank=3, first=False),
        {
            **square("r_proj", "k_proj", "v_proj", "o_proj"),
            **{f"x_{c}": (1, 1, 8) for c in "rwkvag"},
            "k_k": (8,),
            "k_a": (8,),
            "r_k": (2, 4),
            **{f"{c}_lora.lora.0.weight": (3, 8) for c in "wvag"},
            **{f"{c}_lora.lora.2.weight": (8, 3) for c in "wvag"},
            **{f"{c}_lora.lora.2.bias": (8,) for c in "wva"},
            "g_norm.weight": (8,),
            "g_norm.bias": (8,),
        },
    ),
    "ForgettingAttention": (
        ForgettingAttention(8, 2),
        {
            **square("q_proj", "k_proj", "v_proj", "o_proj"),
            "f_proj.weight": (2, 8),
            "f_proj.bias": (2,),
        },
    ),
    "LigerGatedLinearAttention of OpenSparseLLMs/Linearization": (
        Liger(8, 2),
        square("q_proj", "k_proj", "v_proj", "o_proj"),
    ),
    "mLSTMLayer of NX-AI/xlstm": (
        MLSTM(8, 2),
        {
            **square("v", "ogate_preact", "out_proj"),
            "q.weight": (4, 8),
            "k.weight": (4, 8),
            **{f"{c}gate_preact.weight": (2, 8) for c in "if"},
            **{f"{c}gate_preact.bias": (2,) for c in "if"},
            "multihead_norm.weight": (8,),
        },
    ),
    "MomAttention": (
        MixtureOfMemories(8, 2, 3, memories=2),
        {
            "q_proj.weight": (6, 8),
            "gate.weight": (2, 8),
            **{f"k_proj.{e}.weight": (6, 8) for e in range(2)},
            **{f"v_proj.{e}.weight": (12, 8) for e in range(2)},
            **{f"{c}_proj.{e}.weight": (2, 8) for e in range(2) for c in "ab"},
            "A_log": (2,),
            "dt_bias": (2,),
            "q_conv1d.weight": (6, 1, 4),
            "k_conv1d.weight": (6, 1, 4),
            "v_conv1d.weight": (12, 1, 4),
            "g_proj.weight": (12, 8),
            "o_norm.weight": (6,),
            "o_proj.weight": (8, 12),
        },
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_public_layers_load(name: str) -> None:
    model, shapes = LAYOUTS[name]
    assert model.layout == name
    assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == shapes


def test_a_norm_that_is_not_fused_with_its_gate_loads_too() -> None:
    model = GLA(8, 2)
    state = {n.replace("g_norm_swish_gate", "g_norm"): 2 + t for n, t in model.state_dict().items()}
    model.load_state_dict(state)
    torch.testing.assert_close(model.g_norm_swish_gate.weight, torch.full((4,), 3.0))


@pytest.fixture(scope="module")
def checkpoint(shared: Path) -> Path:
    path = shared / "models" / "rwkv7_reverse_L2.pth"
    if not path.exists():
        pytest.skip(f"no RWKV-7 checkpoint at {path}")
    return path


@pytest.mark.parametrize("form", ["recurrent", "parallel"])
@pytest.mark.parametrize("digits", ["7", "42", "31415", "02469135780"])
def test_the_public_rwkv7_reverses_digits(checkpoint: Path, form: str, digits: str) -> None:
    model = load_rwkv7(checkpoint, form)
    tokens = torch.tensor([[VOCABULARY.index(c) for c in f"{digits},{digits[::-1]}"]])
    with torch.no_grad():
        logits = model(model.embed(tokens))[0, len(digits) :]
    text = "".join(VOCABULARY[i] for i in logits.argmax(-1).tolist())
    assert text == digits[::-1] + "#"
    best = logits.topk(2, -1).values
    assert (best[:, 0] - best[:, 1]).min() > 2


def test_other_files_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"text")
    with pytest.raises(ModelError, match="no file of tensors"):
        load_rwkv7(path)
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="no table of tensors"):
        load_rwkv7(path)
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
    torch.save({n: t for n, t in stored.items() if n != "ln2b.bias"}, path)
    with pytest.raises(ModelError, match=r"ln2b\.bias"):
        load_rwkv7(path)
    stored["rosa2.rosa_qkv.emb"] += 1
    torch.save(stored, path)
    with pytest.raises(ModelError, match="embedding other than 0"):
        load_rwkv7(path)
