"""Small trained classifiers of sequences, one per family of `verifier.models`, and what to prove about them."""
