"""The package's front door: lazy names, and what importing it does not import."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import verifier


def test_version_is_the_distribution_s():
    assert verifier.__version__ == version("nn-verifier")


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'verifier' has no attribute 'verfy'"):
        _ = verifier.verfy  # type: ignore[attr-defined]


def test_the_leaves_import_neither_torch_nor_numpy():
    code = (
        "import sys, verifier, verifier.results, verifier.progress; verifier.Options, verifier.VerifierError;"
        "print({'torch', 'numpy', 'rich', 'typer'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
