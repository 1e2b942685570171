"""Which matrices of two checkpoints belong together, and what cannot be compared, by name and with the reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from oodlib.models.names import HEADS, MODULES, Place, place_of
from oodlib.models.weights import Weights


@dataclass(frozen=True)
class Pair:
    """A matrix that two checkpoints share, under its name in each; layer None: in no layer."""

    name: str
    other: str
    layer: int | None
    module: str
    shape: tuple[int, int]


def unfit(weights: Weights, name: str, shape: tuple[int, ...]) -> str | None:
    """Why a matrix of a checkpoint cannot be compared with one of this shape; None where it can."""
    if name not in weights.shapes:
        return f"missing in {weights.path.name}"
    if name in weights.quantised:
        return f"quantised in {weights.path.name} ({weights.quantised[name]})"
    if len(shape) != 2:
        return f"has {len(shape)} dimensions"
    if weights.shapes[name] != shape:
        return f"shapes differ: {shape} and {weights.shapes[name]}"
    return None


def pair_up(
    base: Weights, other: Weights, modules: Iterable[str] = MODULES, layers: Iterable[int] | None = None
) -> tuple[list[Pair], dict[str, str]]:
    """The chosen matrices of `base` with their partners; and remarks by name, on those left out or renamed.

    modules: glob patterns over the module's name, "q_proj", or over its path in the layer, "self_attn.*"; embedding and
    head by name. layers: their numbers, all by default. Partners have the same name, or else the same path from the
    layer on, if there is just one such on either side. ValueError where nothing is chosen.
    """
    modules, layers = list(modules), None if layers is None else set(layers)
    ours, theirs = _chosen(base, modules, layers), _chosen(other, modules, layers)
    our_tails, their_tails = _by_tail(ours), _by_tail(theirs)
    pairs, remarks, taken = [], {}, set()
    for name, place in ours.items():
        partners = [name] if name in other.shapes else their_tails[place.tail] or [name]
        taken.update(partners)
        partner, shape = partners[0], base.shapes[name]
        n_candidates = len(our_tails[place.tail]) if partner != name else 1
        if len(partners) > 1:
            remarks[name] = f"could be any of {', '.join(partners)} in {other.path.name}"
        elif n_candidates > 1:
            remarks[name] = f"one of {n_candidates} that {partner} in {other.path.name} could belong to"
        elif reason := unfit(base, name, shape) or unfit(other, partner, shape):
            tied = partner not in other.shapes and place.module in HEADS
            remarks[name] = f"{reason} (tied to the embedding)" if tied else reason
        else:
            pairs.append(Pair(name, partner, place.layer, place.module, shape))
            notes = [f"taken for {partner} there (renamed)"] if partner != name else []
            notes += [note for note in (base.rounded.get(name), other.rounded.get(partner)) if note]
            remarks |= {name: "; ".join(notes)} if notes else {}
    remarks |= {name: f"only in {other.path.name}" for name in theirs if name not in taken}
    if pairs:
        places = [*ours.values(), *theirs.values()]
        lacking = sorted((layers or set()) - {place.layer for place in places})
        remarks |= {f"layer {n}": "in neither checkpoint" for n in lacking}
        unused = [p for p in modules if modules != list(MODULES) and not any(place.fits([p]) for place in places)]
        remarks |= {f"modules {pattern}": "fits no matrix" for pattern in unused}
    if not pairs and not remarks:
        asked = "" if layers is None else f" in layers {', '.join(map(str, sorted(layers)))}"
        there = _chosen(base, ["*"], None).values()
        known = ", ".join(sorted({place.module for place in there}))
        raise ValueError(f"no matrix matches modules {', '.join(modules)}{asked}; modules here: {known}")
    return pairs, remarks


def _chosen(weights: Weights, modules: list[str], layers: set[int] | None) -> dict[str, Place]:
    """The matrices of a checkpoint that are asked for, by layer and then by name."""
    places = {name: place for name in weights.shapes if len(weights.shapes[name]) > 1 and (place := place_of(name))}
    wanted = {n: p for n, p in places.items() if (layers is None or p.layer in layers) and p.fits(modules)}
    return dict(sorted(wanted.items(), key=lambda item: (item[1].layer is None, item[1].layer or 0, item[0])))


def _by_tail(places: dict[str, Place]) -> dict[str, list[str]]:
    tails = defaultdict(list)
    for name, place in places.items():
        tails[place.tail].append(name)
    return tails
