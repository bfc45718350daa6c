"""Convolutions over one to three dimensions, and their transposes: Conv, ConvTranspose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from verifier.graph import Affine, Builder, Value
from verifier.graph.coefficients import Coefficients, Dense, Diagonal, Rows
from verifier.graph.op import Shape, Transposed
from verifier.graph.patches import Grid, Patches, Taps, image_of, single, wide
from verifier.graph.registry import OnnxNode, Unsupported, aten_op, onnx_op

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}

MOST_TAPS = 16
"""Up to this length a kernel of one channel is applied tap by tap."""


@dataclass(frozen=True)
class Window:
    """The geometry of a sliding window, one entry per spatial dimension; `after` may differ from `before`.

    For a convolution `before` and `after` pad the argument; for its transpose they crop the result.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """How many elements the window spans, dilation included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def planar(self) -> Window:
        """A window over one or two dimensions as one over two, the first of them possibly trivial."""
        if len(self.kernel) == 2:
            return self
        return Window(
            (1, *self.kernel), (1, *self.stride), (1, *self.dilation), (0, *self.before), (0, *self.after)
        )

    def positions(self, size: Sequence[int]) -> tuple[int, ...]:
        """How many windows fit into a padded argument of the given spatial size."""
        numbers = zip(size, self.before, self.after, self.extent, self.stride, strict=True)
        return tuple((n + b + a - e) // s + 1 for n, b, a, e, s in numbers)

    def places(
        self, size: Sequence[int], counts: Sequence[int], device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """Flat spatial positions under each window, int64 [prod(counts), prod(kernel)], and whether they lie
        inside the argument (outside, in the padding, the position is 0)."""
        place = torch.zeros(1, 1, dtype=torch.int64, device=device)
        inside = torch.ones(1, 1, dtype=torch.bool, device=device)
        for d, n in enumerate(size):
            start = torch.arange(counts[d], device=device).unsqueeze(1) * self.stride[d] - self.before[d]
            along = start + torch.arange(self.kernel[d], device=device) * self.dilation[d]
            valid = (along >= 0) & (along < n)
            place = (place[:, None, :, None] * n + along[None, :, None, :]).flatten(0, 1).flatten(1)
            inside = (inside[:, None, :, None] & valid[None, :, None, :]).flatten(0, 1).flatten(1)
        return torch.where(inside, place, torch.zeros_like(place)), inside

    def pads(self, before: Sequence[int], after: Sequence[int]) -> list[int]:
        """In the order that torch's pad takes: last dimension first."""
        return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]


def _image(x: Tensor) -> Tensor:
    """[B, N, C, *spatial] to [B N, C, *spatial]."""
    return x.flatten(0, 1)


def _planar(size: Sequence[int]) -> tuple[int, int]:
    """A spatial size of one or two dimensions as one of two."""
    return (size[0], size[1]) if len(size) == 2 else (1, size[0])


def _tap_by_tap(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """The convolution of each channel of [N, C, L] with its own kernel of [C, 1, k], as k products. In float64, which
    the fast routines of CPUs do not know, torch's own takes 4 to 40 times as long."""
    count = x.shape[-1] - (weight.shape[-1] - 1) * dilation
    y = x[..., :count] * weight[:, 0, :1]
    for tap in range(1, weight.shape[-1]):
        start = tap * dilation
        y = torch.addcmul(y, x[..., start : start + count], weight[:, 0, tap : tap + 1])
    return y


def _per_channel(values: Tensor | None, shape: Shape) -> Tensor | None:
    """One value [C] per channel, in a tensor of `shape` (N, C, *spatial)."""
    return None if values is None else values.view(-1, *[1] * (len(shape) - 2)).expand(shape)


def _check(op: str, shape: Shape, window: Window, channels: int) -> None:
    if len(shape) != len(window.kernel) + 2 or shape[1] != channels:
        raise ValueError(
            f"A {op} with a {len(window.kernel)}-dimensional kernel and {channels} input channels cannot take a "
            f"value of shape {shape}."
        )


@dataclass(frozen=True, eq=False)
class Conv(Affine):
    """Cross-correlation of [N, C, *spatial] with `weight` [out, C / groups, *kernel], plus `bias` [out] or None,
    which may be off by `doubt` [out]."""

    weight: Tensor
    bias: Tensor | None
    window: Window
    groups: int = 1
    doubt: Tensor | None = None

    def output_shape(self, *shapes: Shape) -> Shape:
        _check("Conv", shapes[0], self.window, self.weight.shape[1] * self.groups)
        spatial = self.window.positions(shapes[0][2:])
        if min(spatial, default=1) < 1:
            raise ValueError(
                f"A Conv kernel of size {self.window.kernel} does not fit into a value of shape {shapes[0]}."
            )
        return (shapes[0][0], self.weight.shape[0], *spatial)

    def fan_in(self, *shapes: Shape) -> int:
        return math.prod(self.weight.shape[1:]) + 1

    def fan_out(self, *shapes: Shape) -> int:
        """An element lies under a tap of the kernel for every channel of its group, at most; a stride skips taps."""
        w = self.window
        taps = [-(-k // s) if d == 1 else k for k, s, d in zip(w.kernel, w.stride, w.dilation, strict=True)]
        return self.weight.shape[0] // self.groups * math.prod(taps)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        w = self.window
        y, padding = _image(x), w.before
        if self._by_taps(y):
            y = _tap_by_tap(functional.pad(y, w.pads(w.before, w.after)), weight, w.dilation[0])
            return (y if bias is None else y + bias.unsqueeze(1)).unflatten(0, x.shape[:2])
        if w.before != w.after:
            y, padding = functional.pad(y, w.pads(w.before, w.after)), (0,) * len(w.kernel)
        y = _CONV[len(w.kernel)](y, weight, bias, w.stride, padding, w.dilation, self.groups)
        return y.unflatten(0, x.shape[:2])

    def forward(self, *xs: Tensor) -> Tensor:
        return self._convolve(xs[0], self.weight, self.bias)

    def absolute(self, *xs: Tensor) -> Tensor:
        return self._convolve(xs[0], self.weight.abs(), None)

    def offset(self, *shapes: Shape) -> Tensor | None:
        return _per_channel(self.bias, self.output_shape(*shapes))

    def uncertainty(self, *shapes: Shape) -> Tensor | None:
        return _per_channel(self.doubt, self.output_shape(*shapes))

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        w, spatial = self.window, shapes[0][2:]
        # Elements at the far end that no window reaches: a stride may skip them.
        rest = [
            n + b + a - ((o - 1) * s + e)
            for n, b, a, o, s, e in zip(
                spatial, w.before, w.after, coefficients.shape[4:], w.stride, w.extent, strict=True
            )
        ]
        flat = coefficients.flatten(0, 2)
        if self._tiles(spatial):
            return self._tiled(flat).unflatten(0, coefficients.shape[:3])
        if self._by_taps(flat):
            pads = w.pads([w.extent[0] - 1 - w.before[0]], [w.extent[0] - 1 - w.after[0]])
            x = _tap_by_tap(functional.pad(flat, pads), self.weight.flip(2), w.dilation[0])
            return x.unflatten(0, coefficients.shape[:3])
        if (flipped := self._flipped()) is not None:
            pads = [e - 1 - b for e, b in zip(w.extent, w.before, strict=True)]
            x = _CONV[len(w.kernel)](flat, flipped, None, 1, pads, w.dilation)
            return x.unflatten(0, coefficients.shape[:3])
        convolve = _CONV_TRANSPOSE[len(w.kernel)]
        if w.before == w.after:
            x = convolve(flat, self.weight, None, w.stride, w.before, rest, self.groups, w.dilation)
        else:
            x = convolve(flat, self.weight, None, w.stride, 0, 0, self.groups, w.dilation)
            after = [r - a for r, a in zip(rest, w.after, strict=True)]
            x = functional.pad(x, w.pads([-b for b in w.before], after))
        return x.unflatten(0, coefficients.shape[:3])

    def _by_taps(self, x: Tensor) -> bool:
        """Whether short kernels slide along every channel on its own: the causal convolutions of recurrent models."""
        own = self.groups == self.weight.shape[0] and self.weight.shape[1] == 1
        short = self.window.stride == (1,) and self.window.kernel[0] <= MOST_TAPS
        return own and short and x.dtype == torch.float64 and not x.is_cuda

    def _tiles(self, spatial: Shape) -> bool:
        """Whether the windows cut the plane into tiles: each element is in one of them."""
        w = self.window
        fit = all(n % k == 0 for n, k in zip(spatial, w.kernel, strict=True))
        plain = self.groups == 1 and w.stride == w.kernel == w.extent and not any((*w.before, *w.after))
        return plain and fit and math.prod(w.kernel) > 1

    def _tiled(self, flat: Tensor) -> Tensor:
        """`transpose` where they do, one matrix product: [N, C, h, w] to [N, c, H, W]."""
        rank = len(self.window.kernel)
        tiles = flat.movedim(1, -1) @ self.weight.flatten(1)
        tiles = tiles.unflatten(-1, self.weight.shape[1:])  # [N, h, w, c, k, l]
        order = [0, 1 + rank, *[d for i in range(rank) for d in (1 + i, 2 + rank + i)]]
        whole = tiles.permute(order)
        for i in range(rank):
            whole = whole.flatten(2 + i, 3 + i)
        return whole

    def _flipped(self) -> Tensor | None:
        """The kernel with which the transpose is a plain convolution, which CPUs do several times faster;
        None where it is not one."""
        w = self.window
        plain = self.groups == 1 and w.before == w.after and all(n == 1 for n in w.stride)
        if not plain or any(b >= e for b, e in zip(w.before, w.extent, strict=True)):
            return None
        return self.weight.transpose(0, 1).flip(tuple(range(2, self.weight.dim()))).contiguous()

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        """A row that is one output element is the kernel itself, put where that element looks: no
        convolution. Windows stay windows until they grow too wide."""
        planar = len(self.window.kernel) <= 2 and shapes[0][0] == 1
        if isinstance(coefficients, Diagonal):
            values = coefficients.values.reshape(coefficients.values.shape[0], -1)
            rows = torch.arange(values.shape[1], device=values.device).unsqueeze(0)
            coefficients = Rows(rows, values, self.output_shape(*shapes))
        if isinstance(coefficients, Rows):
            if planar and (patches := self._first_patches(coefficients, shapes[0])) is not None:
                return patches
            return Dense(self._kernels(coefficients.index, coefficients.scale, shapes[0]))
        if isinstance(coefficients, Patches) and planar and coefficients.natural:
            return self._spread(coefficients, shapes[0])
        return super().backward(coefficients, index, *shapes)

    def _first_patches(self, rows: Rows, shape: Shape) -> Patches | None:
        """One kernel per row, or None where kernels are about as large as the map."""
        w, (height, width) = self.window.planar, _planar(shape[2:])
        map = (shape[1], height, width)
        if wide((w.extent[0], w.extent[1]), map):
            return None
        counts = w.positions((height, width))
        cells = counts[0] * counts[1]
        batch = max(rows.index.shape[0], rows.scale.shape[0])
        channel = (rows.index // cells).flatten()
        values = self._full_kernel().index_select(0, channel).unflatten(0, rows.index.shape)
        values = values * rows.scale.expand(batch, -1).view(batch, -1, 1, 1, 1)
        grid = Grid((counts[0], counts[1]), (w.stride[0], w.stride[1]), (-w.before[0], -w.before[1]))
        return Patches(values, rows.index % cells, grid, map, shape)

    def _full_kernel(self) -> Tensor:
        """[out, C, *extent]: zeros for other groups' channels and in the gaps of a dilation."""
        w, weight = self.window.planar, self.weight.view(*self.weight.shape[:2], *self.window.planar.kernel)
        out, per_group = weight.shape[:2]
        full = weight.new_zeros(out, self.groups, per_group, *w.extent)
        group = torch.arange(out, device=weight.device) // (out // self.groups)
        full[torch.arange(out, device=weight.device), group, :, :: w.dilation[0], :: w.dilation[1]] = weight
        return full.flatten(1, 2)

    def _spread(self, patches: Patches, shape: Shape) -> Coefficients:
        """The transposed convolution of every row's window; it needs no padding and no cropping."""
        w, (height, width) = self.window.planar, _planar(shape[2:])
        values, grid = patches.inside(), patches.grid
        kernel = self.weight.view(*self.weight.shape[:2], *w.kernel)
        spread = functional.conv_transpose2d(
            values.flatten(0, 1), kernel, None, w.stride, 0, 0, self.groups, w.dilation
        )
        steps = [
            (n * s, m * s - b) for n, m, s, b in zip(grid.step, grid.start, w.stride, w.before, strict=True)
        ]
        moved = Grid(grid.counts, (steps[0][0], steps[1][0]), (steps[0][1], steps[1][1]))
        map = (shape[1], height, width)
        return Patches(spread.unflatten(0, values.shape[:2]), patches.cell, moved, map, shape).narrowed()

    def _kernels(self, rows: Tensor, scale: Tensor, shape: Shape) -> Tensor:
        """[B, R, *shape]: for each flat output position in `rows` [B or 1, R] its kernel times `scale` [B or
        1, R]."""
        counts = self.output_shape(shape)
        place, inside = self.window.places(shape[2:], counts[2:], rows.device)
        cells, area = math.prod(counts[2:]), math.prod(shape[2:])
        at, channel, image = rows % cells, rows // cells % counts[1], rows // (cells * counts[1])
        per_group = self.weight.shape[1]
        group = channel // (counts[1] // self.groups)
        inputs = group.unsqueeze(-1) * per_group + torch.arange(per_group, device=rows.device)
        start = (image.unsqueeze(-1) * shape[1] + inputs) * area
        target = (start.unsqueeze(-1) + place[at].unsqueeze(-2)).flatten(2)
        kernel = self.weight.flatten(2)[channel] * inside.to(scale.dtype)[at].unsqueeze(-2)
        kernel = kernel.flatten(2) * scale.unsqueeze(-1)
        target = target.expand(kernel.shape)
        result = scale.new_zeros(*kernel.shape[:2], math.prod(shape))
        # Places in the padding carry a zero to place 0, hence the addition.
        return result.scatter_add(2, target, kernel).view(*kernel.shape[:2], *shape)

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [_transposed(builder, self, inputs[0], cotangent)]


@dataclass(frozen=True, eq=False)
class ConvTranspose(Affine):
    """The transpose of a convolution with `weight` [C, out / groups, *kernel], plus `bias` [out] or None, which may be
    off by `doubt` [out].

    `extra` elements are appended at the far end of each spatial dimension (output padding) before cropping.
    """

    weight: Tensor
    bias: Tensor | None
    window: Window
    extra: tuple[int, ...]
    groups: int = 1
    doubt: Tensor | None = None

    def output_shape(self, *shapes: Shape) -> Shape:
        _check("ConvTranspose", shapes[0], self.window, self.weight.shape[0])
        w = self.window
        numbers = zip(shapes[0][2:], w.stride, w.extent, self.extra, w.before, w.after, strict=True)
        spatial = tuple((n - 1) * s + e + x - b - a for n, s, e, x, b, a in numbers)
        if min(spatial) < 1:
            raise ValueError(f"A ConvTranspose of a value of shape {shapes[0]} with this cropping is empty.")
        return (shapes[0][0], self.weight.shape[1] * self.groups, *spatial)

    def fan_in(self, *shapes: Shape) -> int:
        return self.weight.shape[0] // self.groups * math.prod(self.window.kernel) + 1

    def fan_out(self, *shapes: Shape) -> int:
        """Its transpose is a convolution over the channels of one group."""
        return self.weight.shape[1] * math.prod(self.window.kernel)

    def _spread(self, x: Tensor, weight: Tensor) -> Tensor:
        w = self.window
        y = _CONV_TRANSPOSE[len(w.kernel)](_image(x), weight, None, w.stride, 0, 0, self.groups, w.dilation)
        after = [e - a for e, a in zip(self.extra, w.after, strict=True)]
        return functional.pad(y, w.pads([-b for b in w.before], after)).unflatten(0, x.shape[:2])

    def forward(self, *xs: Tensor) -> Tensor:
        y = self._spread(xs[0], self.weight)
        bias = _per_channel(self.bias, tuple(y.shape[1:]))
        return y if bias is None else y + bias

    def absolute(self, *xs: Tensor) -> Tensor:
        return self._spread(xs[0], self.weight.abs())

    def offset(self, *shapes: Shape) -> Tensor | None:
        return _per_channel(self.bias, self.output_shape(*shapes))

    def uncertainty(self, *shapes: Shape) -> Tensor | None:
        return _per_channel(self.doubt, self.output_shape(*shapes))

    def backward(self, coefficients: Coefficients, index: int, *shapes: Shape) -> Coefficients:
        """Windows stay windows: their transpose is a convolution of each."""
        result = self.output_shape(*shapes)
        if isinstance(coefficients, Rows) and (image := image_of(result)) is not None:
            coefficients = single(coefficients, image)
        map = image_of(shapes[0])
        if not isinstance(coefficients, Patches) or not coefficients.natural or map is None:
            return super().backward(coefficients, index, *shapes)
        w = self.window.planar
        step, extent, before = ((n[0], n[1]) for n in (w.stride, w.extent, w.before))
        kernel = self.weight.view(*self.weight.shape[:2], *w.kernel)

        def convolve(x: Tensor) -> Tensor:
            return functional.conv2d(x, kernel, None, w.stride, 0, w.dilation, self.groups)

        inside = coefficients.with_values(coefficients.inside().flatten(2))
        return inside.gathered(Taps(step, extent, before), map, shapes[0], convolve).narrowed()

    def transpose(self, coefficients: Tensor, index: int, *shapes: Shape) -> Tensor:
        w = self.window
        flat = coefficients.flatten(0, 2)
        before_extra = [a - e for e, a in zip(self.extra, w.after, strict=True)]
        flat = functional.pad(flat, w.pads(w.before, before_extra))
        x = _CONV[len(w.kernel)](flat, self.weight, None, w.stride, 0, w.dilation, self.groups)
        return x.unflatten(0, coefficients.shape[:3])

    def vjp(
        self, builder: Builder, inputs: Sequence[Value], output: Value, cotangent: Value
    ) -> Sequence[Value | None]:
        return [_transposed(builder, self, inputs[0], cotangent)]


def window_of(node: OnnxNode, kernel: Sequence[int], size: Sequence[int]) -> Window:
    """The geometry that a node's attributes describe, for an argument of spatial `size` (for auto_pad)."""
    rank = len(kernel)
    if rank not in _CONV or len(size) != rank:
        raise Unsupported(f"a kernel with {rank} spatial dimensions on a value with {len(size)}")
    stride = tuple(node.attributes.get("strides", [1] * rank))
    dilation = tuple(node.attributes.get("dilations", [1] * rank))
    pads = tuple(node.attributes.get("pads", [0] * 2 * rank))
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        total = [max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in zip(size, stride, extents, strict=True)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = (*small, *large) if mode == "SAME_UPPER" else (*large, *small)
    elif mode == "VALID":
        pads = (0,) * 2 * rank
    if min(pads, default=0) < 0:
        raise Unsupported("negative pads")
    return Window(tuple(kernel), stride, dilation, pads[:rank], pads[rank:])


def _weights(builder: Builder, node: OnnxNode) -> tuple[Tensor, Tensor | None]:
    weight = node.constant(builder, 1, "weight")
    if weight is None:
        raise Unsupported("the weight is missing")
    return weight, node.constant(builder, 2, "bias")


@onnx_op("Conv", note="constant weights; 1 to 3 spatial dimensions")
def _conv(builder: Builder, node: OnnxNode) -> Value:
    weight, bias = _weights(builder, node)
    x = node.required(0)
    window = window_of(node, weight.shape[2:], builder.shape(x)[2:])
    return builder.add(Conv(weight, bias, window, node.attributes.get("group", 1)), x)


@onnx_op("ConvTranspose", note="constant weights; 1 to 3 spatial dimensions")
def _conv_transpose(builder: Builder, node: OnnxNode) -> Value:
    weight, bias = _weights(builder, node)
    x = node.required(0)
    size = builder.shape(x)[2:]
    rank = len(size)
    extra = tuple(node.attributes.get("output_padding", [0] * rank))
    mode = node.attributes.get("auto_pad", "NOTSET")
    free = replace(node, attributes={**node.attributes, "auto_pad": "NOTSET"})
    window = window_of(free, weight.shape[2:], size)
    wanted = node.attributes.get("output_shape")
    if wanted is not None or mode.startswith("SAME"):
        wanted = (
            wanted[-rank:]
            if wanted is not None
            else [n * s for n, s in zip(size, window.stride, strict=True)]
        )
        full = zip(size, window.stride, window.extent, extra, wanted, strict=True)
        total = [(n - 1) * s + e + x - o for n, s, e, x, o in full]
        # A negative total lengthens the result at its far end.
        extra = tuple(e + max(-t, 0) for e, t in zip(extra, total, strict=True))
        total = [max(t, 0) for t in total]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        before, after = (small, large) if mode == "SAME_UPPER" else (large, small)
        window = Window(window.kernel, window.stride, window.dilation, before, after)
    elif mode == "VALID":
        window = Window(window.kernel, window.stride, window.dilation, (0,) * rank, (0,) * rank)
    return builder.add(ConvTranspose(weight, bias, window, extra, node.attributes.get("group", 1)), x)


def _numbers(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


@aten_op(
    "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding"
)
def _aten_conv(
    builder: Builder,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Value:
    w, b = _constants(builder, weight, bias)
    rank = w.dim() - 2
    stride, dilation = _numbers(stride, rank), _numbers(dilation, rank)
    if isinstance(padding, str):
        total = [0 if padding == "valid" else d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
        before = tuple(t // 2 for t in total)
        after = tuple(t - t // 2 for t in total)
    else:
        before = after = _numbers(padding, rank)
    return builder.add(Conv(w, b, Window(tuple(w.shape[2:]), stride, dilation, before, after), groups), x)


@aten_op("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def _aten_conv_transpose(
    builder: Builder,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Value:
    w, b = _constants(builder, weight, bias)
    rank = w.dim() - 2
    pads = _numbers(padding, rank)
    window = Window(tuple(w.shape[2:]), _numbers(stride, rank), _numbers(dilation, rank), pads, pads)
    return builder.add(ConvTranspose(w, b, window, _numbers(output_padding, rank), groups), x)


def _transposed(builder: Builder, op: Conv | ConvTranspose, x: Value, cotangent: Value) -> Value:
    """What a cotangent gives x; without the bias, which the transpose of the transpose would have to subtract again."""
    plain = replace(op, bias=None, doubt=None)
    return builder.add(Transposed(plain, 0, (builder.shape(x),)), cotangent)


def _constants(builder: Builder, weight: Value, bias: Value | None) -> tuple[Tensor, Tensor | None]:
    w = builder.tensor(weight)
    b = None if bias is None else builder.tensor(bias)
    if w is None or (bias is not None and b is None):
        raise Unsupported("a weight that depends on the network's input")
    return w, b
