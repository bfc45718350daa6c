"""Small torch networks without kinks on 8 x 8 digits, each of which can write itself as ONNX nodes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

PIXELS, CLASSES = 64, 10
FUNCTIONS: Mapping[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "Sigmoid": (torch.sigmoid, 4.0),
    "Tanh": (torch.tanh, 1.2),
    "Sin": (torch.sin, 1.0),
    "Gelu": (functional.gelu, 1.5),
}
"""By the name of the ONNX operator, with the gain of the first weights that keeps deep networks trainable."""


class Writer:
    """Collects the nodes and weights of an ONNX graph (opset 20, a batch of one)."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: Tensor | list[int]) -> str:
        name = f"constant{len(self.weights)}"
        array = value.detach().numpy() if isinstance(value, Tensor) else np.array(value, dtype=np.int64)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def linear(self, layer: nn.Linear, x: str) -> str:
        product = self.add("MatMul", x, self.constant(layer.weight.T.contiguous()))
        return self.add("Add", product, self.constant(layer.bias))

    def save(self, path: Path, output: str) -> None:
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, PIXELS))],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, (1, CLASSES))],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString())


class Mlp(nn.Module):
    """Linear layers of `width` with one function after each but the last."""

    def __init__(self, function: str, depth: int, width: int) -> None:
        super().__init__()
        self.function, (self.apply_function, gain) = function, FUNCTIONS[function]
        sizes = [PIXELS, *[width] * depth, CLASSES]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        for layer in self.layers:
            nn.init.xavier_normal_(layer.weight, gain)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.apply_function(layer(x))
        return self.layers[-1](x)

    def write(self, writer: Writer, x: str) -> str:
        *inner, last = self.layers
        for layer in inner:
            x = writer.add(self.function, writer.linear(layer, x))  # pyright: ignore[reportArgumentType]
        return writer.linear(last, x)  # pyright: ignore[reportArgumentType]


class GatedMlp(nn.Module):
    """`depth` layers h + C (sigmoid(A h) silu(B h)) behind a linear one."""

    def __init__(self, depth: int, width: int, inner: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(PIXELS, width), nn.Linear(width, CLASSES)
        self.gates, self.values, self.outs = (
            nn.ModuleList(nn.Linear(a, b) for _ in range(depth))
            for a, b in ((width, inner), (width, inner), (inner, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for gate, value, out in zip(self.gates, self.values, self.outs, strict=True):
            x = x + out(gate(x).sigmoid() * functional.silu(value(x)))
        return self.last(x)

    def write(self, writer: Writer, x: str) -> str:
        x = writer.linear(self.first, x)
        for gate, value, out in zip(self.gates, self.values, self.outs, strict=True):
            y = writer.linear(value, x)  # pyright: ignore[reportArgumentType]
            y = writer.add("Mul", y, writer.add("Sigmoid", y))
            g = writer.add("Sigmoid", writer.linear(gate, x))  # pyright: ignore[reportArgumentType]
            product = writer.add("Mul", g, y)
            x = writer.add("Add", x, writer.linear(out, product))  # pyright: ignore[reportArgumentType]
        return writer.linear(self.last, x)


class Block(nn.Module):
    """x + attention(x), then x + B gelu(A x): a transformer's block without normalisation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(2, (self.heads, self.size)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        shares = (q @ k.mT / math.sqrt(self.size)).softmax(-1)
        x = x + self.out((shares @ v).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(x)))

    def write(self, writer: Writer, x: str) -> str:
        split = writer.constant([1, -1, self.heads, self.size])

        def parts(layer: nn.Linear, order: list[int]) -> str:
            return writer.add("Transpose", writer.add("Reshape", writer.linear(layer, x), split), perm=order)

        q, k, v = (
            parts(self.query, [0, 2, 1, 3]),
            parts(self.key, [0, 2, 3, 1]),
            parts(self.value, [0, 2, 1, 3]),
        )
        scale = writer.constant(torch.tensor(1 / math.sqrt(self.size)))
        shares = writer.add("Softmax", writer.add("Mul", writer.add("MatMul", q, k), scale), axis=-1)
        mixed = writer.add("Transpose", writer.add("MatMul", shares, v), perm=[0, 2, 1, 3])
        mixed = writer.add("Reshape", mixed, writer.constant([1, -1, self.heads * self.size]))
        x = writer.add("Add", x, writer.linear(self.out, mixed))
        return writer.add("Add", x, writer.linear(self.down, writer.add("Gelu", writer.linear(self.up, x))))


class Vit(nn.Module):
    """Patches of `patch` x `patch` pixels, embedded with their places, through blocks; the mean decides."""

    def __init__(self, patch: int, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.patch, self.side = patch, 8 // patch
        self.embed = nn.Linear(patch**2, width)
        self.places = nn.Parameter(0.3 * torch.randn(self.side**2, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.view(-1, self.side, self.patch, self.side, self.patch).transpose(2, 3)
        x = self.embed(patches.reshape(-1, self.side**2, self.patch**2)) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))

    def write(self, writer: Writer, x: str) -> str:
        shape = writer.constant([1, self.side, self.patch, self.side, self.patch])
        patches = writer.add("Transpose", writer.add("Reshape", x, shape), perm=[0, 1, 3, 2, 4])
        flat = writer.add("Reshape", patches, writer.constant([1, self.side**2, self.patch**2]))
        x = writer.add("Add", writer.linear(self.embed, flat), writer.constant(self.places))
        for block in self.blocks:
            x = block.write(writer, x)  # pyright: ignore[reportCallIssue]
        mean = writer.add("ReduceMean", x, writer.constant([1]), keepdims=0)
        return writer.linear(self.head, mean)


Network = Mlp | GatedMlp | Vit


def save(module: Network, path: Path) -> None:
    """Writes the network and compares it with the module on random points in onnxruntime. Raises RuntimeError where
    they differ."""
    import onnxruntime

    writer = Writer()
    writer.save(path, module.write(writer, "x"))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = torch.rand(16, PIXELS)
    found = [torch.from_numpy(session.run(None, {"x": row.numpy()})[0]) for row in x.split(1)]
    with torch.no_grad():
        distance = float((module(x) - torch.cat(found)).abs().max())
    if not distance < 1e-4:
        raise RuntimeError(f"{path.name} differs from its module by {distance}")
