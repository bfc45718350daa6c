"""Turns the fields of Options into flags, so that the two cannot differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from verifier.options import Options


def with_options(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replaces a command's parameter `options` by one flag per field; `defaults` override the Python ones."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name != "options"]
        flags = _flags(defaults)

        @wraps(command)
        def wrapper(**values: Any) -> None:
            chosen = {flag.name: values.pop(flag.name) for flag in flags}
            command(**values, options=Options(**chosen))

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + flags
        wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _flags(defaults: dict[str, Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(Options)
    return [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(f.name, f.default),
            annotation=Annotated[hints[f.name], typer.Option(help=f.metadata["help"])],
        )
        for f in fields(Options)
    ]
