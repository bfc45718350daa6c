"""Properties: formulas, VNN-LIB 1 and 2, Python properties, normal form, point evaluator, witnesses."""
