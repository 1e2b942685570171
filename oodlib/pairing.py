"""Which matrices of two checkpoints belong together, and what cannot be compared, by name and with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from oodlib.checkpoints import Weights

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
    the same path from the layer on, if there is just one such.
    ValueError where nothing is chosen.
    """
    modules, layers = list(modules), None if layers is None else set(layers)
    theirs, ours = _chosen(other, modules, layers), _chosen(base, modules, layers)
    by_tail: dict[str, list[str]] = {}
    for name in theirs:
        by_tail.setdefault(_tail(name), []).append(name)
    pairs, remarks, taken = [], {}, set()
    for name, (layer, module) in ours.items():
        candidates = [name] if name in other.shapes else by_tail.get(_tail(name), [])
        if len(candidates) > 1:
            remarks[name] = f"could be any of {', '.join(candidates)} in {other.path.name}"
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
    if not pairs and not remarks:
        known = {place[1] for n, s in base.shapes.items() if len(s) == 2 and (place := layer_of(n))}
        raise ValueError(
            f"no matrix matches modules {', '.join(modules)} and the layers given; modules here: "
            + ", ".join([*sorted(known), *(name for name in OUTER if any(_outer(n) == name for n in base.shapes))])
        )
    return pairs, remarks


def _chosen(weights: Weights, modules: list[str], layers: set[int] | None) -> dict[str, tuple[int | None, str]]:
    """The matrices of a checkpoint that are asked for, by layer and then by name: name -> (layer, module)."""
    found = {}
    for name in sorted(weights.shapes, key=lambda n: (_LAYER.search(n) is None, (layer_of(n) or (0, ""))[0], n)):
        place, outer = _LAYER.search(name), _outer(name)
        names = (place[2].split(".")[-1], place[2]) if place else (outer,) if outer else ()
        layer = int(place[1]) if place else None
        wanted = layers is None or layer in layers
        if wanted and len(weights.shapes[name]) > 1 and any(fnmatchcase(n, p) for n in names for p in modules):
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
