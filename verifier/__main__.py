"""`python -m verifier` is the command `verifier`."""

from verifier.cli.main import main

main()
