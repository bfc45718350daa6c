"""A later snapshot keeps what an earlier one knew."""

from __future__ import annotations

from verifier.results import Progress


def test_bound_and_margin_outlive_snapshots_without_them() -> None:
    search = Progress(domains_done=3, domains_open=2, worst_bound=-0.5)
    attack = Progress(best_attack_margin=0.1, seconds=2.0).after(search)
    assert (attack.worst_bound, attack.best_attack_margin, attack.seconds) == (-0.5, 0.1, 2.0)
    assert Progress(worst_bound=-0.2).after(attack) == Progress(worst_bound=-0.2, best_attack_margin=0.1)
