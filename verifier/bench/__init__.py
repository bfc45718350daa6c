"""Runs the verifier over folders of benchmark instances, one process each, and counts."""
