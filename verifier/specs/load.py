"""Reading a property file: plain or gzipped, VNN-LIB 1 or 2."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from verifier.environment import find_file, without_collections
from verifier.specs.errors import SpecError
from verifier.specs.query import Query

_LEADING = re.compile(r"(?:\s|;[^\n]*(?:\n|\Z))*+\(\s*vnnlib-version\b")


def read_text(path: str | Path) -> str:
    """The text of a file, gzipped or not; ``.gz`` is added or removed when only that file exists.

    Raises `SpecError` when it cannot be read.
    """
    given = Path(path)
    try:
        data = find_file(given).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise SpecError("no such file", file=str(given), hint="check the path") from None
    except (OSError, EOFError, zlib.error) as error:
        raise SpecError(f"cannot be read ({error})", file=str(given), hint="is it complete?") from None
    except UnicodeDecodeError as error:
        hint = "a VNN-LIB file is plain text; was the model given in its place?"
        raise SpecError(f"not text (byte {error.start})", file=str(given), hint=hint) from None


def load_query(path: str | Path) -> Query:
    """The query in a VNN-LIB 1 or 2 file, gzipped or not.

    A file that starts with ``(vnnlib-version ...)`` is read as version 2. Raises `SpecError`.
    """
    return parse_query(read_text(path), str(path))


@without_collections()
def parse_query(text: str, source: str | None = None) -> Query:
    """Like `load_query`, for a text; `source` is named in errors."""
    if _LEADING.match(text):
        from verifier.specs import vnnlib2

        return vnnlib2.parse(text, source)
    from verifier.specs import vnnlib1

    return vnnlib1.parse(text, source)
