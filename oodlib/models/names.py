"""Which matrices of two checkpoints belong together, and what cannot be compared, by name and with the reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from oodlib.models.checkpoints import Weights

# The attention and MLP projections, as LLaMA, Qwen and most others call them, and GPT-2, OPT, BLOOM, Falcon, Phi.
MODULES = (
    "*_proj", "c_attn", "c_fc", "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "fc1", "fc2", "Wqkv",
    "wq", "wk", "wv", "wo", "w1", "w2", "w3",
)  # fmt: skip
OUTER = ("embed_tokens", "lm_head", "wte")  # matrices in no layer, that may be chosen by name
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.(.+?)(?:\.weight)?$")
_OUTER = re.compile(rf"(?:^|\.)({'|'.join(OUTER)})\.weight$")


@dataclass(frozen=True)
class Pair:
    """A matrix that two checkpoints share, under its name in each; layer None: in no layer."""

    name: str
    other: str
    layer: int | None
    module: str
    shape: tuple[int, int]


def pair_up(
    base: Weights, other: Weights, modules: Iterable[str] = MODULES, layers: Iterable[int] | None = None
) -> tuple[list[Pair], dict[str, str]]:
    """The chosen matrices of `base` with their partners; and remarks by name, on those left out or renamed.

    modules: glob patterns over the module's name, "q_proj", or over its path in the layer, "self_attn.*"; the
    matrices in no layer (`OUTER`) by name. layers: their numbers, all by default. Partners have the same name, or else
    the same path from the layer on, if there is just one such on either side.
    ValueError where nothing is chosen.
    """
    modules, layers = list(modules), None if layers is None else set(layers)
    theirs, ours = _chosen(other, modules, layers), _chosen(base, modules, layers)
    by_tail: dict[str, list[str]] = {}
    for name in theirs:
        by_tail.setdefault(_tail(name), []).append(name)
    own_tails = Counter(_tail(name) for name in ours)
    pairs, remarks, taken = [], {}, set()
    for name, (layer, module) in ours.items():
        candidates = [name] if name in other.shapes else by_tail.get(_tail(name), [])
        if len(candidates) > 1:
            remarks[name] = f"could be any of {', '.join(candidates)} in {other.path.name}"
            taken |= set(candidates)
            continue
        if candidates and candidates != [name] and own_tails[_tail(name)] > 1:
            remarks[name] = f"one of {own_tails[_tail(name)]} that {candidates[0]} in {other.path.name} could belong to"
            taken |= set(candidates)
            continue
        partner = candidates[0] if candidates else None
        taken.add(partner)
        if reason := _unfit(name, partner, base, other):
            remarks[name] = reason
            continue
        pairs.append(Pair(name, partner, layer, module, base.shapes[name]))
        notes = [f"taken for {partner} there (renamed)"] if partner != name else []
        notes += [kind for weights, own in ((base, name), (other, partner)) if (kind := weights.rounded.get(own))]
        if notes:
            remarks[name] = "; ".join(notes)
    remarks |= {name: f"only in {other.path.name}" for name in theirs if name not in taken}
    if pairs:
        remarks |= _asked_in_vain([*ours, *theirs], modules, layers)
    if not pairs and not remarks:
        numbers = sorted({place[0] for n in base.shapes if (place := layer_of(n))})
        asked = "" if layers is None else f" in layers {', '.join(map(str, sorted(layers)))}"
        there = f"layers here: {numbers[0]} to {numbers[-1]}; " if numbers else ""
        known = {place[1] for n, s in base.shapes.items() if len(s) == 2 and (place := layer_of(n))}
        raise ValueError(
            f"no matrix matches modules {', '.join(modules)}{asked}; {there}modules here: "
            + ", ".join([*sorted(known), *(name for name in OUTER if any(_outer(n) == name for n in base.shapes))])
        )
    return pairs, remarks


def _asked_in_vain(found: list[str], modules: list[str], layers: set[int] | None) -> dict[str, str]:
    """Remarks on layers, and on patterns of the caller's own, that fit nothing."""
    there = {place[0] for name in found if (place := layer_of(name))}
    vain = {f"layer {n}": "in neither checkpoint" for n in sorted((layers or set()) - there)}
    own = [] if modules == list(MODULES) else modules
    fits = {pattern: any(is_projection(n, [pattern]) for name in found for n in _names(name)) for pattern in own}
    return vain | {f"modules {pattern}": "fits no matrix" for pattern, some in fits.items() if not some}


def _names(weight: str) -> tuple[str, ...]:
    """What a pattern may call a weight: its module, or the path in its layer; () for what is neither in a layer nor in
    `OUTER`."""
    place, outer = _LAYER.search(weight), _outer(weight)
    return (place[2].split(".")[-1], place[2]) if place else (outer,) if outer else ()


def _chosen(weights: Weights, modules: list[str], layers: set[int] | None) -> dict[str, tuple[int | None, str]]:
    """The matrices of a checkpoint that are asked for, by layer and then by name: name -> (layer, module)."""
    found = {}
    for name in sorted(weights.shapes, key=lambda n: (_LAYER.search(n) is None, (layer_of(n) or (0, ""))[0], n)):
        place, names = _LAYER.search(name), _names(name)
        layer = int(place[1]) if place else None
        wanted = layers is None or layer in layers
        if wanted and len(weights.shapes[name]) > 1 and any(is_projection(n, modules) for n in names):
            found[name] = (layer, names[0])
    return found


def _outer(name: str) -> str | None:
    found = _OUTER.search(name)
    return found[1] if found else None


def _tail(name: str) -> str:
    place = _LAYER.search(name)
    return place[0].lstrip(".") if place else _outer(name) or name


def _unfit(name: str, partner: str | None, base: Weights, other: Weights) -> str | None:
    if partner is None:
        tied = " (tied to the embedding)" if _outer(name) == "lm_head" else ""
        return f"missing in {other.path.name}{tied}"
    for weights, own in ((base, name), (other, partner)):
        if own in weights.quantised:
            return f"quantised in {weights.path.name} ({weights.quantised[own]})"
    if len(base.shapes[name]) != 2:
        return f"has {len(base.shapes[name])} dimensions"
    if base.shapes[name] != other.shapes[partner]:
        return f"shapes differ: {base.shapes[name]} and {other.shapes[partner]}"
    return None


def is_projection(module: str, patterns: Iterable[str] = MODULES) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def layer_of(name: str) -> tuple[int, str] | None:
    """The layer and the module of a weight's name, such as (3, "q_proj"); None for one that is in no layer."""
    place = _LAYER.search(name)
    return (int(place[1]), place[2].split(".")[-1]) if place else None
