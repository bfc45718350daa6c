"""Assignments as text, in the formats of VNN-LIB 1 and 2."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from verifier.specs.errors import SpecError
from verifier.specs.query import Query, Variable

_ONNX_TYPES = {
    "float16": "FLOAT16",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "real": "DOUBLE",
    "Real": "DOUBLE",
}
_PAIR = re.compile(r"\(\s*([XY])_(\d+)\s+([^\s()]+)\s*\)", re.ASCII)
_HEADER = re.compile(r"(\S+)\s+(\S+)\s+\[([\d,\s]*)\]")


def write_witness(query: Query, values: Mapping[str, ArrayLike]) -> str:
    """The assignment in the format of the query's version, without the verdict's line and final newline.

    `values` has an array per variable. Version 1: ``((X_0 v)\\n (X_1 v) ... (Y_0 v))``. Version 2: for each
    declared variable ``name type [shape]`` and one value per line. Every float is written so that reading gives
    the same float64. Raises `ValueError` for a missing variable or a wrong size.
    """
    blocks = [_elements(variable, values) for variable in query.variables]
    if query.version == 1:
        pairs = [
            f"({variable.name}_{i} {value!r})"
            for variable, block in zip(query.variables, blocks, strict=True)
            for i, value in enumerate(block.tolist())
        ]
        return "(" + "\n ".join(pairs) + ")"
    lines: list[str] = []
    for variable, block in zip(query.variables, blocks, strict=True):
        lines.append(f"{variable.name} {variable.dtype} [{','.join(map(str, variable.shape))}]")
        whole = re.match(r"u?int", variable.dtype) is not None
        lines += [_plain(value, whole) for value in block]
    return "\n".join(lines)


def read_witness(query: Query, text: str) -> dict[str, NDArray[np.float64]]:
    """An array of the declared shape per variable. A leading line ``sat`` is skipped.

    Raises `SpecError` for a missing, repeated or unknown element, a wrong shape, or a malformed number.
    """
    body = re.sub(r"\A\s*sat\b", lambda m: " " * len(m[0]), text)
    return _read_1(query, body) if query.version == 1 else _read_2(query, body)


def serialise(text: str) -> dict[str, bytes]:
    """A VNN-LIB 2 assignment, as `write_witness` gives it, as serialised ONNX tensors by variable; `real` is float64.

    Raises `SpecError` for a type that ONNX has not.
    """
    import onnx

    lines, place = text.splitlines(), 0
    tensors: dict[str, bytes] = {}
    while place < len(lines):
        name, kind, dimensions = lines[place].split(maxsplit=2)
        shape = [int(n) for n in re.findall(r"\d+", dimensions)]
        onnx_name = _ONNX_TYPES.get(kind, kind.upper())
        codes = dict(onnx.TensorProto.DataType.items())
        if onnx_name not in codes:
            raise SpecError(f"{kind} is no ONNX element type, so {name} cannot be serialised")
        code = codes[onnx_name]
        block = lines[place + 1 : place + 1 + math.prod(shape)]
        values = [float(v) if "." in v else int(v) for v in block]
        array = np.array(values, dtype=onnx.helper.tensor_dtype_to_np_dtype(code)).reshape(shape)
        tensors[name] = onnx.numpy_helper.from_array(array, name).SerializeToString()
        place += 1 + len(block)
    return tensors


def _elements(variable: Variable, values: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    if variable.name not in values:
        raise ValueError(f"no values for {variable.name}")
    block = np.asarray(values[variable.name]).astype(np.float64).reshape(-1)
    if block.size != variable.size:
        raise ValueError(f"{variable.name} has {variable.size} elements, not {block.size}")
    return block


def _plain(value: np.float64, whole: bool) -> str:
    """Without exponent: the numbers of VNN-LIB 2 have none."""
    if whole and float(value).is_integer():
        return str(int(value))
    return np.format_float_positional(value, unique=True, trim="0")


def _number(text: str, whole: str, offset: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise SpecError.at(whole, offset, f"{text} is not a number") from None


def _read_1(query: Query, text: str) -> dict[str, NDArray[np.float64]]:
    arrays = {variable.name: np.full(variable.size, np.nan) for variable in query.variables}
    seen = {name: np.zeros(len(array), dtype=bool) for name, array in arrays.items()}
    for match in _PAIR.finditer(text):
        name, index = match[1], int(match[2])
        if name not in arrays or index >= len(arrays[name]):
            raise SpecError.at(text, match.start(), f"{name}_{index} is not declared in the query")
        if seen[name][index]:
            raise SpecError.at(text, match.start(), f"{name}_{index} is given twice")
        seen[name][index] = True
        arrays[name][index] = _number(match[3], text, match.start(3))
    rest = _PAIR.sub("", text).strip()
    if re.sub(r"\s", "", rest) != "()":
        raise SpecError("the witness is not of the form ((X_0 v) ... (Y_0 v))", 1, 1)
    for name, flags in seen.items():
        if not flags.all():
            raise SpecError(f"the witness has no value for {name}_{int(np.argmin(flags))}", 1, 1)
    return {v.name: arrays[v.name].reshape(v.shape) for v in query.variables}


def _read_2(query: Query, text: str) -> dict[str, NDArray[np.float64]]:
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    result: dict[str, NDArray[np.float64]] = {}
    place = 0
    for variable in query.variables:
        number, line = lines[place] if place < len(lines) else (len(lines) + 1, "")
        match = _HEADER.fullmatch(line)
        shape = tuple(int(n) for n in match[3].split(",") if n.strip()) if match else ()
        if match is None or match[1] != variable.name or shape != variable.shape:
            expected = f"{variable.name} {variable.dtype} [{','.join(map(str, variable.shape))}]"
            raise SpecError(f"expected the line {expected!r}, found {line!r}", number, 1)
        values = lines[place + 1 : place + 1 + variable.size]
        if len(values) < variable.size:
            raise SpecError(f"{variable.name} has {variable.size} values, found {len(values)}", number, 1)
        numbers = []
        for number, line in values:
            try:
                numbers.append(float(line))
            except ValueError:
                raise SpecError(f"{line!r} is not a number", number, 1) from None
        result[variable.name] = np.array(numbers, dtype=np.float64).reshape(variable.shape)
        place += 1 + variable.size
    if place < len(lines):
        raise SpecError(f"unexpected {lines[place][1]!r} after the last value", lines[place][0], 1)
    return result
