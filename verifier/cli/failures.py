"""What an exception that ended a command means to the user."""

from __future__ import annotations

import traceback

from verifier.errors import VerifierError


def explain(error: BaseException, debug: bool = False) -> tuple[str, int]:
    """The text for stderr and the exit code: 2 for bad input, 1 for a bug."""
    if isinstance(error, VerifierError):
        return f"error: {error}", 2
    lines = [
        f"internal error: {type(error).__name__}: {error}",
        "This is a bug in verifier, and no verdict. Please report it with the command, the files and what",
        "`verifier doctor` prints; the same command with --debug also prints the traceback.",
    ]
    if debug:
        lines.insert(0, "".join(traceback.format_exception(error)).rstrip())
    return "\n".join(lines), 1
