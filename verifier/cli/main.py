"""The entry point: what happens before and after a command. It imports no typer, to fork before that.

Exit codes: 0 for any verdict. 2: bad input, the message says what, where and what to do. 1: a bug. 130: Ctrl-C.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NoReturn

from verifier.cli.failures import explain
from verifier.cli.supervise import Session, Worker


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if word != "--debug"]
    debug = len(words) < len(given)
    try:
        with ExitStack() as stack:
            worker = None
            if words[:1] in (["verify"], ["explain"]) and "--help" not in words:
                worker = stack.enter_context(
                    Worker(_load_engine)
                )  # loads while this process parses the words
            from verifier.cli.app import app

            app(words, prog_name="verifier", obj=Session(debug, worker))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        text, code = explain(error, debug)
        sys.stderr.write(text + "\n")
        sys.exit(code)
    sys.exit(0)


def _load_engine() -> None:
    """Loads torch and the engine. Nothing of that is garbage, so the collector is spared looking through it."""
    # Threads of OpenMP that spin while they wait make a machine that does other work as well several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.disable()
    try:
        import verifier.api  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
