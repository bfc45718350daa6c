"""torch.nn.Module to Graph, through torch.export.

`trace` exports a module once; `TorchModel.graph` builds the Graph from the module's parameters as they are at
that moment, which is cheap and differentiable in them. This file alone of the front ends imports
torch._dynamo (export does), so nothing on the path of an ONNX file may import it.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

import verifier.ops  # noqa: F401  (registers the operators)
from verifier.errors import ModelError, UnsupportedError, UnsupportedNode
from verifier.frontends.agreement import disagreements
from verifier.graph import Builder, Graph, Value
from verifier.graph.op import Shape
from verifier.graph.precision import full_precision
from verifier.graph.registry import Unsupported, aten_converter
from verifier.transforms.fold import fold
from verifier.transforms.signs import join_signs

Converter = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class TorchModel:
    """A module and its exported program, per example: values keep the module's batch dimension, of size 1.

    Shapes include that 1 (an example of [8] is [1, 8]); the engine's own leading dimension counts instances,
    so a box around B examples is [B, 1, *shape]. `dtype` is that of the module's parameters (of the example
    without any).
    """

    module: nn.Module
    program: ExportedProgram = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    dtype: torch.dtype

    def graph(self, dtype: torch.dtype | None = None) -> Graph:
        """The Graph with the module's current parameters, differentiable in them.

        `dtype` is the parameters' own unless given; they are cast before tensors are derived from them (a
        folded BatchNorm, say), so in float64 the Graph is that of the stored weights up to float64 rounding.
        Buffers such as running statistics are read anew as well; shapes and everything else are as they were
        at `trace`.
        """
        return _simplified(self._convert(dtype or self.dtype).graph())

    def written(self, instead: Mapping[str, Converter] = MappingProxyType({})) -> Graph:
        """The Graph of the current parameters in their own dtype node by node, nothing folded.

        Nodes of the program whose names are in `instead` are converted by these functions: of the builder and the
        node's arguments, as `registry.aten_op` has it.
        """
        return self._convert(self.dtype, instead).graph()

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of the module itself in eval mode and its own dtype, [N, *shape] each, for inputs [N,
        *shape].

        Examples are run one by one, as a judge of a counterexample would: a batched product may round
        differently.
        """
        place = _place(self.module, inputs[0])
        moved = [x.to(self.dtype).to(place) for x in inputs]
        with _evaluating(self.module), torch.no_grad():
            results = [_outputs(self.module(*example)) for example in zip(*moved, strict=True)]
        return [torch.stack(values).to(inputs[0].device) for values in zip(*results, strict=True)]

    def _convert(
        self, dtype: torch.dtype, instead: Mapping[str, Converter] = MappingProxyType({})
    ) -> _Conversion:
        own: dict[str, Tensor] = {**dict(self.module.named_parameters(remove_duplicate=False))}
        own.update(self.module.named_buffers(remove_duplicate=False))
        place = next((t.device for t in own.values()), torch.device("cpu"))
        conversion = _Conversion(self.program, own, dtype, place, instead)
        conversion.convert()
        return conversion


def trace(module: nn.Module, example: Tensor | tuple[Tensor, ...]) -> TorchModel:
    """Export `module` in eval mode (its mode is restored) for inputs like `example`, and compare the two
    numerically.

    `example` is [N, *shape], one tensor per argument of `forward`; only its first row is used. Every row must
    be treated alike and alone, as layers in eval mode do. Raises UnsupportedError with all operators that are
    not supported, and ModelError where torch.export fails, where a weight is NaN, where forward has side
    effects, and where the Graph disagrees with the module on random points.
    """
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    for i, x in enumerate(examples):
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 1 or len(x) < 1:
            raise ModelError(
                f"Example input {i} must be a floating tensor [N, *shape] with N >= 1; integer inputs (token "
                "ids, say) cannot be verified: start from their embeddings."
            )
    if not examples:
        raise ModelError("The example holds no tensor, so there is nothing to verify.")
    parameters = dict(module.named_parameters())
    for name, tensor in (*parameters.items(), *module.named_buffers()):
        if bool(tensor.isnan().any()):
            raise ModelError(f"The weight {name!r} holds NaN; nothing can be proved about the module.")
    floating = (p.dtype for p in parameters.values() if p.is_floating_point())
    dtype = next(floating, examples[0].dtype)
    place = _place(module, examples[0])
    examples = tuple(x[:1].detach().to(place, dtype) for x in examples)
    program = _export(module, examples)
    signature = program.graph_signature
    model = TorchModel(
        module=module,
        program=program,
        inputs=tuple(signature.user_inputs),  # pyright: ignore[reportArgumentType]
        outputs=_output_names(program),
        input_shapes=tuple(tuple(x.shape) for x in examples),
        output_shapes=tuple(tuple(n.meta["val"].shape) for n in _output_nodes(program)),
        dtype=dtype,
    )
    check(model, examples)
    return model


def check(model: TorchModel, examples: Sequence[Tensor] = (), samples: int = 2, seed: int = 0) -> None:
    """Compare the graph with the module on random points, and on `examples` [N, *shape without the batch of
    1].

    Raises ModelError that names the first differing node.
    """
    generator = torch.Generator().manual_seed(seed)
    points = []
    for i, shape in enumerate(model.input_shapes):
        normal = torch.randn(samples, *shape, generator=generator, dtype=model.dtype)
        uniform = torch.rand(samples, *shape, generator=generator, dtype=model.dtype)
        given = [x.unsqueeze(1).cpu() for x in examples[i : i + 1]]
        # Far points reach where activations saturate.
        points.append(torch.cat([normal, 10 * normal, uniform, *given]))
    with torch.no_grad(), full_precision():
        conversion = model._convert(torch.float64)
        graph = _simplified(conversion.graph()).to(device="cpu")
        theirs = model.run(points)
        if max(disagreements(graph, points, theirs, torch.finfo(model.dtype).eps)) > 1:
            raise ModelError(_explain(model, conversion, points))


def _simplified(graph: Graph) -> Graph:
    folded = fold(graph)
    joined = join_signs(folded)
    return folded if joined is folded else fold(joined)


def _explain(model: TorchModel, conversion: _Conversion, points: list[Tensor]) -> str:
    """Which node differs first: found by interpreting the exported program node by node."""
    head = "The traced graph disagrees with the module on random inputs"
    kept = [n for n, v in conversion.values.items() if isinstance(v, Value)]
    graph = conversion.builder.graph(*[conversion.values[n] for n in kept]).to(device="cpu")
    rows = []
    for example in zip(*points, strict=True):
        recorder = _Recorder(model.program.graph_module)
        stored = [conversion.stored(s) for s in model.program.graph_signature.input_specs if not _is_user(s)]
        stored = [t.to(model.dtype) if t.is_floating_point() else t for t in stored]
        recorder.run(*stored, *[x.to(stored[0].device) if stored else x for x in example])
        rows.append([recorder.seen[n].cpu() for n in kept])
    theirs = [torch.stack(values) for values in zip(*rows, strict=True)]
    worst = disagreements(graph, points, theirs, torch.finfo(model.dtype).eps)
    for node, ratio in zip(kept, worst, strict=True):
        if ratio > 1:
            advice = "The import is wrong, which is a bug of verifier: please report it with the module."
            return f"{head}, first at node {_name(node)!r} ({node.target}). {advice}"
    return (
        f"{head}, although each exported node agrees: the export is not what the module computes. Does its "
        "forward pass depend on random numbers, or on state outside its parameters and buffers?"
    )


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n] = super().run_node(n)
        return self.seen[n]


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside, every submodule's own mode afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _place(module: nn.Module, otherwise: Tensor) -> torch.device:
    return next((t.device for t in (*module.parameters(), *module.buffers())), otherwise.device)


def _export(module: nn.Module, examples: tuple[Tensor, ...]) -> ExportedProgram:
    """The program in functional form, of operators that have a converter as far as torch can decompose the
    others."""
    with _evaluating(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks about its own internals
        try:
            program = torch.export.export(module, examples)
            if not all(_understood(node) for node in program.graph.nodes):
                table = torch.export.default_decompositions()
                for overload in list(table.keys()):
                    if aten_converter(getattr(overload, "__name__", "")) is not None:
                        del table[overload]
                program = program.run_decompositions(table)
        except Exception as error:  # export raises whatever forward and the compiler raise
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            reason = lines[0].strip() if lines else type(error).__name__
            raise ModelError(
                f"torch.export cannot trace {type(module).__name__} for inputs of shape "
                f"{', '.join(str(tuple(x.shape)) for x in examples)}: {type(error).__name__}: {reason} "
                "The example's first dimension must be the batch, and forward must compute by tensor "
                "operations whose course does not depend on values: replace `if`, `while`, `.item()` and "
                "`.numpy()` on tensors, or trace the part of the module that is free of them."
            ) from error
    for spec in program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise ModelError(
                f"The forward pass of {type(module).__name__} changes its state or its input "
                f"({spec.target!r}), so its output depends on earlier calls; return the new value instead."
            )
    _output_names(program)
    return program


def _understood(node: fx.Node) -> bool:
    """Whether a node can stay as it is: it writes into no tensor, and has a converter or no effect."""
    target = node.target
    if node.op != "call_function" or target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    return not node.users or aten_converter(target.__name__) is not None


def _outputs(result: Any) -> list[Tensor]:
    """The tensors of a module's result in the order in which the export flattens them."""
    return list(pytree.tree_leaves(result))


def _output_nodes(program: ExportedProgram) -> list[fx.Node]:
    return list(program.graph.output_node().args[0])  # pyright: ignore[reportArgumentType]


def _output_names(program: ExportedProgram) -> tuple[str, ...]:
    """`output`, or `output_0` and so on; raises ModelError for results that are not floating tensors."""
    nodes = _output_nodes(program)
    for node in nodes:
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ModelError(
                f"The module returns something other than a floating tensor ({node}); wrap it in a module "
                "that returns only the scores."
            )
    if not nodes:
        raise ModelError("The module returns no tensor, so there is nothing to verify.")
    return ("output",) if len(nodes) == 1 else tuple(f"output_{i}" for i in range(len(nodes)))


def _name(node: fx.Node) -> str:
    """Where in the module the node comes from, then its own name: block1.conv1.conv2d, say."""
    path = next(reversed((node.meta.get("nn_module_stack") or {"": ("", None)}).values()))[0]
    return f"{path}.{node.name}" if path else node.name


@cache
def _signature(converter: Converter) -> inspect.Signature:
    return inspect.signature(converter)


def _is_user(spec: Any) -> bool:
    return spec.kind is InputKind.USER_INPUT


class _Conversion:
    """One conversion. `values` maps the program's nodes to graph values, or to tensors that no input
    reaches."""

    def __init__(
        self,
        program: ExportedProgram,
        own: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
        instead: Mapping[str, Converter],
    ) -> None:
        self.program, self.instead = program, instead
        self.own, self.dtype, self.device = own, dtype, device
        self.builder = Builder()
        self.values: dict[fx.Node, Any] = {}
        self.refused: list[UnsupportedNode] = []

    def stored(self, spec: Any) -> Tensor:
        """The module's current tensor behind a parameter, buffer or constant of the program."""
        tensor = self.own.get(spec.target)
        if tensor is None:
            tensor = self.program.constants.get(spec.target)
        if not isinstance(tensor, Tensor):
            raise ModelError(f"The module no longer has {spec.target!r}; trace it again.")
        return self._cast(tensor)

    def convert(self) -> None:
        """Convert all nodes into `values`; raises UnsupportedError with all that are refused."""
        specs = iter(self.program.graph_signature.input_specs)
        needed = self._needed()
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                spec = next(specs)
                if _is_user(spec):
                    shape = tuple(node.meta["val"].shape)
                    self.values[node] = self.builder.at(node.name).input(node.name, shape)
                elif node in needed:
                    self.values[node] = self.stored(spec)
            elif node.op == "call_function" and node in needed:
                self._node(node)
        if self.refused:
            raise UnsupportedError(self.refused)

    def graph(self) -> Graph:
        outputs = [self._value(self.values[n], n.name) for n in _output_nodes(self.program)]
        return self.builder.graph(*outputs).to(self.dtype, self.device)

    def _needed(self) -> set[fx.Node]:
        """Nodes that an output needs; checks of the program about itself are not among them."""
        needed = set(_output_nodes(self.program))
        for node in reversed(self.program.graph.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        return needed

    def _node(self, node: fx.Node) -> None:
        """Convert one node, or record why it cannot be and let its descendants be examined."""
        try:
            result = self._convert(node)
        except Unsupported as reason:
            self.refused.append(UnsupportedNode(_name(node), str(node.target), 0, str(reason)))
            self.values[node] = self._placeholders(node)
            return
        except ValueError as error:
            raise ModelError(
                f"Node {_name(node)!r} ({node.target}) does not fit its inputs: {error} The import is wrong, "
                "which is a bug of verifier: please report it with the module."
            ) from error
        self.values[node] = result

    def _convert(self, node: fx.Node) -> Any:
        target = node.target
        args: Any = map_arg(node.args, self.values.__getitem__)
        kwargs: Any = map_arg(node.kwargs, self.values.__getitem__)
        if target is operator.getitem:
            items, index = args
            if index >= len(items):
                raise Unsupported(f"its result number {index} is used")
            return items[index]
        if not isinstance(target, torch._ops.OpOverload):
            raise Unsupported("control flow inside the module")
        if not any(isinstance(self.values[n], Value) for n in node.all_input_nodes):
            return self._evaluate(target, args, kwargs)
        converter = aten_converter(target.__name__) if target.namespace == "aten" else None
        converter = self.instead.get(node.name, converter)
        if converter is None:
            raise Unsupported("the operator is not known")
        args, kwargs = self._wrap(args, node.name), self._wrap(kwargs, node.name)
        try:
            _signature(converter).bind(self.builder, *args, **kwargs)
        except TypeError as error:
            raise Unsupported(f"its arguments are not treated: {error}") from None
        result = converter(self.builder.at(_name(node)), *args, **kwargs)
        return self._checked(result, node.meta["val"])

    def _checked(self, result: Value | Sequence[Value], expected: Any) -> Any:
        """Constant results as tensors; raises ValueError where a shape is not `expected`, as torch has it."""
        if not isinstance(result, Value):
            return [self._checked(r, e) for r, e in zip(result, expected, strict=False)]
        shape = self.builder.shape(result)
        if shape != tuple(expected.shape):
            raise ValueError(f"The result has shape {shape}, in torch {tuple(expected.shape)}.")
        tensor = self.builder.tensor(result)
        return result if tensor is None else self._cast(tensor)

    def _evaluate(self, target: torch._ops.OpOverload, args: Any, kwargs: Any) -> Any:
        """Compute what no input reaches, differentiably."""
        if torch.Tag.nondeterministic_seeded in target.tags:
            raise Unsupported("random numbers in the forward pass")
        return pytree.tree_map_only(Tensor, self._cast, target(*args, **kwargs))

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def _value(self, item: Value | Tensor, name: str) -> Value:
        return item if isinstance(item, Value) else self.builder.constant(item, name)

    def _wrap(self, argument: Any, name: str) -> Any:
        """Tensors in (nested) arguments as constants of the builder."""
        if isinstance(argument, Tensor):
            return self.builder.constant(argument, name)
        if isinstance(argument, (list, tuple)):
            return [self._wrap(a, name) for a in argument]
        if isinstance(argument, dict):
            return {k: self._wrap(a, name) for k, a in argument.items()}
        return argument

    def _placeholders(self, node: fx.Node) -> Any:
        """Inputs in place of a refused node's results, so that the nodes after it are examined too."""

        def stand_in(value: Any) -> Any:
            return self.builder.input(node.name, tuple(value.shape)) if isinstance(value, Tensor) else value

        value = node.meta.get("val")
        return [stand_in(v) for v in value] if isinstance(value, (list, tuple)) else stand_in(value)
