"""What to try, from what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from verifier.explanation.findings import Disjunct, Explanation, Hint, Kind
from verifier.options import Options
from verifier.results import Reason, Status

NEAR = 0.1
"""An attack is near where it has come within this part of the way from the middle of the box to a counterexample."""
LOSES, LOOSE, TOLD = 0.4, 3.0, 1.5
"""A layer is named where it loses this part of what relaxations may cost, or bounds are so many times as wide as what
was seen (worth telling from TOLD on)."""
SLOW = 20.0
"""Subdomains per second below which a GPU is likely to help."""
ROOT = 0.7
"""First bounds are slow where they take this part of the search's time."""


def hints(found: Explanation, options: Options) -> tuple[Hint, ...]:
    """What follows from the findings, the most promising first."""
    if found.decided:
        return (Hint(Kind.DECIDED, found.result.explanation),)
    every = (_reason, _bounds, _attack, _set, _search, _layer, _disjuncts, _gpu)
    return tuple(hint for rule in every for hint in rule(found, options))


def _reason(found: Explanation, options: Options) -> Iterator[Hint]:
    if found.result.reason is not Reason.NONE:
        yield Hint(Kind.REASON, found.result.explanation)


def _bounds(found: Explanation, options: Options) -> Iterator[Hint]:
    if options.method in ("interval", "crown"):
        yield Hint(
            Kind.TIGHTER_BOUNDS,
            f"--method {options.method} was asked for; leave it out, and relaxations are optimised.",
        )


def _attack(found: Explanation, options: Options) -> Iterator[Hint]:
    if not options.attack:
        yield Hint(Kind.NEAR_COUNTEREXAMPLE, "No attack was made (--no-attack); the property may be false.")
        return
    near = [d for d in found.disjuncts if _nearness(d) < NEAR]
    if near:
        worst = min(near, key=_nearness)
        yield Hint(
            Kind.NEAR_COUNTEREXAMPLE,
            f"An attack nearly succeeded: {worst.text} is missed by {worst.attack:.3g}, where the middle of the box "
            f"misses it by {worst.middle:.3g}. The property may well be false: search longer, or with another --seed. "
            "If it holds, it holds by no more than that.",
        )


def _nearness(disjunct: Disjunct) -> float:
    """The part of the middle's margin that the attack could not take away."""
    if disjunct.attack is None or not disjunct.middle or disjunct.middle <= 0:
        return 1.0
    return disjunct.attack / disjunct.middle


def _set(found: Explanation, options: Options) -> Iterator[Hint]:
    radius = found.radius
    if radius is None:
        return
    if radius.proved > 0:
        text = (
            f"A smaller input set: bounds alone, without any search, prove the property for boxes {radius.proved:.3g} "
            f"times as wide about the same middle (and not at {radius.open:.3g} times). A search reaches further."
        )
    else:
        text = (
            f"Even for boxes {radius.open:.2g} times as wide the bounds prove nothing: the property may fail near the "
            "middle, or hold by next to nothing."
        )
    yield Hint(Kind.SMALLER_SET, text)


def _search(found: Explanation, options: Options) -> Iterator[Hint]:
    seconds, region = found.phases.get("search", 0.0), found.region
    if found.result.status is not Status.TIMEOUT:
        return
    root = found.result.stats.seconds.get("root", 0.0)
    if region is None or root > ROOT * seconds:
        yield Hint(
            Kind.FIRST_BOUNDS,
            f"The first bounds took {root:.1f} of {seconds:.1f} s, so that next to nothing was left for branching: "
            "raise --timeout, or try --method crown for cheaper ones.",
        )
    elif found.disjuncts:
        told = [1.0 if d.left is None else d.left for d in found.disjuncts]
        closed = 1 - sum(told) / len(told)
        text = f"{region.bounded} subdomains were bounded in {seconds:.1f} s, and {region.open} are open. "
        if closed >= 0.01:
            text += f"{_percent(closed)} of the open disjuncts' boxes is closed: branching works, so raise --timeout."
        else:
            text += (
                "Less than 1 % of the open disjuncts' boxes is closed, so a few times more time alone will not do: "
                "tighter bounds, a smaller set or fewer disjuncts at once are needed."
            )
        yield Hint(Kind.RAISE_TIMEOUT, text)


def _layer(found: Explanation, options: Options) -> Iterator[Hint]:
    told = [layer for layer in found.layers if layer.loses is not None]
    if not told:
        return
    worst = max(told, key=lambda layer: layer.loses or 0.0)
    loose = (
        ""
        if (worst.loose or 0.0) < TOLD
        else f", with bounds {worst.loose:.3g} times as wide as what inputs reach"
    )
    if (worst.loses or 0.0) >= LOSES or (worst.loose or 0.0) >= LOOSE:
        yield Hint(
            Kind.LOOSE_LAYER,
            f"Most is lost at {worst.name} ({worst.readers}): {_percent(worst.loses or 0.0)} of what relaxations may "
            f"cost, in {worst.undecided} undecided neurons of {worst.neurons}{loose}. Fewer undecided neurons there (a "
            "smaller set, or a network trained for it) help most.",
        )


def _disjuncts(found: Explanation, options: Options) -> Iterator[Hint]:
    if 0 < found.open < found.total:
        yield Hint(
            Kind.FEWER_DISJUNCTS,
            f"{found.total - found.open} of {found.total} disjuncts are proved: ask for the others alone, each with "
            "the whole time.",
        )


def _gpu(found: Explanation, options: Options) -> Iterator[Hint]:
    stats, seconds = found.result.stats, found.phases.get("search", 0.0)
    slow = seconds > 0 and stats.domains / seconds < SLOW
    if stats.device == "cpu" and slow:
        yield Hint(
            Kind.GPU,
            f"{stats.domains} subdomains were bounded in {seconds:.1f} s on the CPU; a GPU takes many at once "
            "(--device cuda).",
        )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
