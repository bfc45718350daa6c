"""Einsum with one operand that depends on the network's input and constants, or with two such operands."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verifier.graph import Builder, Value
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op
from verifier.ops.linear import ConstantMatMul
from verifier.ops.matmul import check_size
from verifier.ops.movement import broadcast, permute, reshape
from verifier.ops.product import multiply
from verifier.ops.reduction import total


def einsum(builder: Builder, equation: str, operands: list[Value]) -> Value:
    """numpy's einsum without ellipses and without a letter twice in one operand. Raises Unsupported otherwise."""
    terms, result = _parse(equation)
    if len(terms) != len(operands):
        raise ValueError(f"The equation {equation!r} does not have {len(operands)} operands.")
    variable = [i for i, x in enumerate(operands) if builder.is_variable(x)]
    if len(variable) > 1:
        if len(operands) > 2:
            raise Unsupported(
                "a product of more than two operands, several of which depend on the network's input"
            )
        return _product_of_variables(builder, operands, terms, result)
    x, term = operands[variable[0]], terms[variable[0]]
    others = [i for i in range(len(operands)) if i != variable[0]]
    lone = [
        k
        for k, letter in enumerate(term)
        if letter not in result and all(letter not in terms[i] for i in others)
    ]
    if lone:
        x = total(builder, x, lone, keep=False)
        term = "".join(letter for k, letter in enumerate(term) if k not in lone)
    if not others:
        return permute(builder, x, [term.index(letter) for letter in result])
    kept = "".join(dict.fromkeys("".join(terms[i] for i in others)))
    kept = "".join(letter for letter in kept if letter in term or letter in result)
    tensors = [t for t in (builder.tensor(operands[i]) for i in others) if t is not None]
    constant = torch.einsum(f"{','.join(terms[i] for i in others)}->{kept}", *tensors)
    return _product(builder, x, term, constant, kept, result)


def _parse(equation: str) -> tuple[list[str], str]:
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in equation:
        raise Unsupported("an equation with an ellipsis")
    if any(len(set(t)) != len(t) for t in (*terms, right)):
        raise Unsupported("an equation with a letter twice in one operand")
    if not arrow:
        letters = "".join(terms)
        right = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    return terms, right


def _product(builder: Builder, x: Value, term: str, constant: Tensor, kept: str, result: str) -> Value:
    """x (letters `term`) times the constant (letters `kept`) as one batched matrix product."""
    shared = [c for c in term if c in kept and c in result]
    summed = [c for c in term if c in kept and c not in result]
    free = [c for c in term if c not in kept]
    new = [c for c in kept if c not in term]
    size = {**dict(zip(term, builder.shape(x), strict=True)), **dict(zip(kept, constant.shape, strict=True))}

    def numbers(letters: list[str]) -> int:
        return math.prod(size[c] for c in letters)

    matrix = constant.permute(*[kept.index(c) for c in (*shared, *summed, *new)])
    matrix = matrix.reshape(numbers(shared), numbers(summed), numbers(new))
    y = permute(builder, x, [term.index(c) for c in (*shared, *free, *summed)])
    y = reshape(builder, y, (numbers(shared), numbers(free), numbers(summed)))
    y = builder.add(ConstantMatMul(matrix, left=False), y)
    letters = [*shared, *free, *new]
    y = reshape(builder, y, [size[c] for c in letters])
    return permute(builder, y, [letters.index(c) for c in result])


def _product_of_variables(builder: Builder, operands: list[Value], terms: list[str], result: str) -> Value:
    """Expand both to all letters (those of the result, then those summed over), multiply, sum."""
    parts = []
    for x, term, other in zip(operands, terms, reversed(terms), strict=True):
        lone = [k for k, letter in enumerate(term) if letter not in result and letter not in other]
        kept = "".join(letter for k, letter in enumerate(term) if k not in lone)
        parts.append((total(builder, x, lone, keep=False) if lone else x, kept))
    size = {c: n for x, kept in parts for c, n in zip(kept, builder.shape(x), strict=True)}
    letters = result + "".join(c for c in parts[0][1] if c not in result)
    shape = tuple(size[c] for c in letters)
    check_size(shape)
    expanded = []
    for x, kept in parts:
        ordered = permute(builder, x, [kept.index(c) for c in letters if c in kept])
        ordered = reshape(builder, ordered, [size[c] if c in kept else 1 for c in letters])
        expanded.append(broadcast(builder, ordered, shape))
    product = multiply(builder, *expanded)
    return (
        total(builder, product, range(len(result), len(letters)), keep=False)
        if len(letters) > len(result)
        else product
    )


@onnx_op("Einsum", note="at most two operands that depend on the input; no ellipsis")
def _einsum(builder: Builder, node: OnnxNode) -> Value:
    return einsum(builder, node.attributes["equation"], [node.required(i) for i in range(len(node.inputs))])


@aten_op("einsum.default")
def _aten_einsum(builder: Builder, equation: str, operands: list[Value]) -> Value:
    return einsum(builder, equation, list(operands))
