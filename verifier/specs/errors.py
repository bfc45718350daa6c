"""The one error class for everything wrong with a property."""

from __future__ import annotations

from verifier.errors import VerifierError


class SpecError(VerifierError):
    """A property that cannot be used: syntax, names, shapes, missing bounds.

    ``str`` gives ``file:line:column: message; hint`` without what is unknown. Lines and columns count from 1.
    """

    def __init__(
        self,
        message: str,
        line: int | None = None,
        column: int | None = None,
        hint: str | None = None,
        file: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column
        self.hint = hint
        self.file = file

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        text = f"{place}: {self.message}" if place else self.message
        return f"{text}; {self.hint}" if self.hint else text

    @classmethod
    def at(cls, text: str, offset: int, message: str, hint: str | None = None) -> SpecError:
        """The error for position ``offset`` of ``text``."""
        before = text[: max(0, min(offset, len(text)))]
        line = before.count("\n") + 1
        return cls(message, line, len(before) - (before.rfind("\n") + 1) + 1, hint)
