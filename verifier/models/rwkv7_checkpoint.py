"""Reads the RWKV-7 checkpoint that reverses strings of digits (BlinkDL/RWKV-LM, RWKV-v8)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from verifier.errors import ModelError
from verifier.models.layer import Form
from verifier.models.rwkv7 import RWKV7Model

VOCABULARY = "0123456789,#"
"""The token of each position: "12," is continued by "21#"."""

_PLAIN = {
    "receptance.weight": "r_proj.weight",
    "key.weight": "k_proj.weight",
    "value.weight": "v_proj.weight",
    "output.weight": "o_proj.weight",
    "ln_x.weight": "g_norm.weight",
    "ln_x.bias": "g_norm.bias",
    "r_k": "r_k",
    **{f"x_{c}": f"x_{c}" for c in "rwkvag"},
}


def load_rwkv7(path: str | Path, form: Form = "recurrent") -> RWKV7Model:
    """The checkpoint's model, in eval mode. The second mixing of each block looks tokens up by what follows
    them; its embedding must be 0, so that it adds only its output's bias.

    Raises ModelError where the file is not such a checkpoint, OSError where it cannot be read.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises whatever its unpickler stumbles over
        raise ModelError(f"{path} is no file of tensors: {error}") from error
    if not isinstance(stored, dict) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise ModelError(f"{path} holds no table of tensors.")
    try:
        vocabulary, width = stored["e.weight"].shape
        heads, rank = len(stored["rwkv1.r_k"]), stored["rwkv1.w1"].shape[1]
        layers = sum(name.startswith("rwkv") and name.endswith(".r_k") for name in stored)
        state = {
            "tokens.weight": stored["e.weight"],
            "norm.weight": stored["lno.weight"],
            "norm.bias": stored["lno.bias"],
            "head.weight": stored["o.weight"],
            "head.bias": stored["o.bias"],
        }
        for i in range(layers):
            state.update(_block(stored, i))
        model = RWKV7Model(vocabulary, width, heads, rank, layers, form)
        model.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"{path} is not an RWKV-7 checkpoint as expected: {error}") from error
    return model.eval()


def _block(stored: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """Parameters of block i (from 0; the file counts from 1) by their names here."""
    n = i + 1
    if bool(stored[f"rosa{n}.rosa_qkv.emb"].any()):
        raise ModelError(f"The lookup of block {n} has an embedding other than 0, which is not treated.")
    here, mix = f"blocks.{i}.", f"blocks.{i}.mix."
    result = {
        here + "shift": stored[f"rosa{n}.o.bias"],
        here + "x_k": stored[f"ffn{n}.x_k"],
        here + "key.weight": stored[f"ffn{n}.key.weight"],
        here + "value.weight": stored[f"ffn{n}.value.weight"],
        mix + "k_k": stored[f"rwkv{n}.k_k"].flatten(),
        mix + "k_a": stored[f"rwkv{n}.k_a"].flatten(),
    }
    for norm, name in (("a", "norm_mix"), ("b", "norm_ffn")):
        for part in ("weight", "bias"):
            result[f"{here}{name}.{part}"] = stored[f"ln{n}{norm}.{part}"]
    for there, ours in _PLAIN.items():
        result[mix + ours] = stored[f"rwkv{n}.{there}"]
    for letter in "wavg":
        if letter == "v" and i == 0:
            continue  # the first layer's values are mixed into the others'
        result[f"{mix}{letter}_lora.lora.0.weight"] = stored[f"rwkv{n}.{letter}1"].T
        result[f"{mix}{letter}_lora.lora.2.weight"] = stored[f"rwkv{n}.{letter}2"].T
        if letter != "g":
            result[f"{mix}{letter}_lora.lora.2.bias"] = stored[f"rwkv{n}.{letter}0"].flatten()
    return result
