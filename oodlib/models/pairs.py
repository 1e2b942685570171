"""Which matrices of two checkpoints belong together, and why others are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from oodlib.models.names import (
    EMBEDDINGS,
    HEADS,
    KEYS,
    Place,
    by_key,
    is_beside,
    is_stack,
    item_of,
    key_of,
    parts_of,
    place_of,
)
from oodlib.models.weights import JOIN, Weights, is_turned, turned_by_bias


@dataclass(frozen=True)
class Pair:
    """A matrix that two checkpoints share, under its name in each (see `Weights.matrix`); layer None: in no layer."""

    name: str
    other: str
    layer: int | None
    module: str
    shape: tuple[int, int]


class Partners:
    """A checkpoint's matrices, found under the names of another one.

    The same name, or else the first of `names.KEYS` under which there is one alone on either side, or the last of them
    of the names that both have in memory; of a fused matrix those that it is made of. others: the names of the other
    one; in_memory: as `Weights.in_memory`, of the other one.
    """

    def __init__(self, weights: Weights, others: Iterable[str], in_memory: Callable[[str], str] = str):
        self.weights, others = weights, set(others)
        theirs = [name for name in weights.matrices if name not in others]
        ours = [name for name in others if name not in weights.matrices]
        self._keys = [*KEYS, lambda name: key_of(in_memory(name))]
        self._by_key = [by_key(theirs, key) for key in (*KEYS, lambda name: key_of(weights.in_memory(name)))]
        self._rivals = [by_key(ours, key) for key in self._keys]

    def of(self, name: str) -> tuple[list[str], int]:
        """The names that may be meant, and to how many names of the other they may belong: one and 1 where all is
        well."""
        if name in self.weights.matrices:
            return [name], 1
        for key, there, rivals in zip(self._keys, self._by_key, self._rivals, strict=True):
            if len(alone := there.get(key(name), [])) == 1 and len(rivals.get(key(name), [name])) == 1:
                return alone, 1
        key, there = self._keys[-1](name), self._by_key[-1]
        n_rivals = len(self._rivals[-1].get(key, [name]))
        parts = [there.get(part, []) for part in parts_of(key)]
        if parts and key not in there and all(len(part) == 1 for part in parts):
            return [JOIN.join(part[0] for part in parts)], n_rivals
        return there.get(key, []), n_rivals


class Turned:
    """Which square matrices two checkpoints keep the other way round, [in, out] or [out, in]; of others shapes tell.

    base, other: the shapes of all their tensors, by name.
    """

    def __init__(self, base: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]]):
        self.both = base, other
        self.some = any(turned_by_bias(shapes, name) for shapes in self.both for name in shapes)

    def differ(self, name: str, partner: str, shape: tuple[int, ...]) -> bool:
        if not self.some or shape[0] != shape[1] or JOIN in partner:
            return False
        return is_turned(self.both[0], item_of(name)[0]) != is_turned(self.both[1], item_of(partner)[0])


def unfit(weights: Weights, name: str, shape: tuple[int, ...]) -> str | None:
    """Why a matrix of a checkpoint cannot be compared with one of this shape; None where it can."""
    parts = name.split(JOIN) if name not in weights.matrices else [name]
    if missing := [part for part in parts if part not in weights.matrices]:
        here = weights.shapes.get(missing[0])
        return f"shapes differ: {shape} and {here}" if here else f"missing in {weights.path.name}"
    for part in parts:
        if reason := weights.quantised.get(item_of(part)[0]):
            known = reason.replace("_", "").isalnum()  # the name of a type
            return f"quantised in {weights.path.name} ({reason})" if known else f"{weights.path.name}: {reason}"
    if len(shape) != 2:
        return f"has {len(shape)} dimensions"
    shapes = [weights.matrices[part] for part in parts]
    here = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    if here != shape or len({shape[1:] for shape in shapes}) > 1:
        return f"shapes differ: {shape} and {here}"
    return None


def pair_up(
    base: Weights, other: Weights, modules: Iterable[str] | None = None, layers: Iterable[int] | None = None
) -> tuple[list[Pair], dict[str, str]]:
    """The chosen matrices of `base` with their partners; and remarks by name, on those left out or renamed.

    modules: glob patterns over the module's name, "q_proj", or over its path in the layer, "self_attn.*"; embedding and
    head by name. By default every matrix of a layer. layers: their numbers, all by default. See `Partners`; a partner
    is none if several could be it, on either side. ValueError where nothing is chosen.
    """
    modules, layers = None if modules is None else list(modules), None if layers is None else set(layers)
    ours, theirs = _chosen(base, modules, layers), _chosen(other, modules, layers)
    partners_of, turned = Partners(other, base.matrices, base.in_memory), Turned(base.shapes, other.shapes)
    headless = not any((p := place_of(name)) and p.layer is None and p.module in HEADS for name in other.shapes)
    pairs, remarks, taken = [], {}, set()
    for name, place in ours.items():
        partners, n_candidates = partners_of.of(name)
        partners = partners or [name]
        taken.update(part for partner in partners for part in partner.split(JOIN))
        partner, shape = partners[0], base.matrices[name]
        if len(partners) > 1:
            remarks[name] = f"could be any of {', '.join(partners)} in {other.path.name}"
        elif n_candidates > 1:
            remarks[name] = f"one of {n_candidates} that {partner} in {other.path.name} could belong to"
        elif reason := unfit(base, name, shape) or unfit(other, partner, shape):
            tied = headless and place.layer is None and place.module in HEADS
            remarks[name] = f"{reason} (tied to the embedding)" if tied else reason
        elif turned.differ(name, partner, shape):
            remarks[name] = (
                f"kept as [in, out] in one of {base.path.name} and {other.path.name}, as [out, in] in the other"
            )
        else:
            pairs.append(Pair(name, partner, place.layer, place.module, shape))
            notes = [f"taken for {partner} there (renamed)"] if partner != name else []
            notes += [base.rounded.get(item_of(name)[0]), other.rounded.get(item_of(partner)[0])]
            notes = [note for note in notes if note]
            remarks |= {name: "; ".join(notes)} if notes else {}
    remarks |= {name: f"only in {other.path.name}" for name in theirs if name not in taken}
    if pairs:
        places = [*ours.values(), *theirs.values()]
        lacking = sorted((layers or set()) - {place.layer for place in places})
        remarks |= {f"layer {n}": "in neither checkpoint" for n in lacking}
        unused = [p for p in modules or () if not any(place.fits([p]) for place in places)]
        remarks |= {f"modules {pattern}": "fits no matrix" for pattern in unused}
    if not pairs and not remarks:
        asked = "" if layers is None else f" in layers {', '.join(map(str, sorted(layers)))}"
        there = _chosen(base, ["*"], None).values()
        known = ", ".join(sorted({place.module for place in there}))
        raise ValueError(
            f"no matrix matches modules {', '.join(modules or ['*'])}{asked}; modules here: {known or 'none'}"
        )
    return pairs, remarks


def left_out(weights: Weights) -> dict[str, str]:
    """Remarks, by name, on what the default choice of modules does not take; those on vectors stand together."""
    remarks, vectors = dict(weights.remarks), 0
    for name, shape in weights.shapes.items():
        place = place_of(name)
        if len(shape) < 2:
            vectors += 1
        elif is_stack(name, shape):
            remarks[name] = f"a stack of {shape[0]} matrices, taken one by one"
        elif is_beside(name):
            remarks[name] = "no matrix that maps vectors: biases, gains, or scales of quantised numbers"
        elif place is None:
            remarks[name] = "in no layer"
        elif place.layer is None:
            word = "embedding" if place.module in EMBEDDINGS else "head"
            remarks[name] = f"the {word}, in no layer: --modules {place.module} takes it"
    return remarks | ({"vectors": f"{vectors} tensors, such as norms and biases, are no matrices"} if vectors else {})


def _chosen(weights: Weights, modules: list[str] | None, layers: set[int] | None) -> dict[str, Place]:
    """The matrices of a checkpoint that are asked for, by layer and then by name."""
    names = (name for name in weights.matrices if not is_beside(name))
    places: Mapping[str, Place] = {name: place for name in names if (place := place_of(name))}
    wanted = {n: p for n, p in places.items() if (layers is None or p.layer in layers) and p.fits(modules)}

    def order(name: str) -> tuple[bool, int, str, int]:
        stack, index = item_of(name)
        return wanted[name].layer is None, wanted[name].layer or 0, stack, index or 0

    return {name: wanted[name] for name in sorted(wanted, key=order)}
