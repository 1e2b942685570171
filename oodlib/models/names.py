"""What weights are called: the one table of names, and what a name says about a weight's place in the model.

Words for layers, embeddings and heads, wrappers, models that also see or hear, GGUF files and adapters stand here and
nowhere else. A family that uses other words is added here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby

from torch import Tensor

LAYERS = r"\w*layers?|\w*blocks?|blk|h|attentions|ffns"  # a layer's number follows one of these
WRITERS = (
    "o_proj", "down_proj", "c_proj", "out_proj", "dense", "dense_h_to_4h", "dense_4h_to_h", "fc2", "wo", "w2", "o",
    "fc_out",
)  # fmt: skip
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "shared")  # in no layer
HEADS = ("lm_head", "output", "embed_out")  # in no layer
OUTER_WRAPPERS = ("module", "base_model.model", "_forward_module")  # of distributed training and PEFT, before a name
WRAPPERS = (
    "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer", r"modules_to_save(?:\.default)?",
    "original_module",
)  # fmt: skip  # of torch.compile, FSDP and PEFT, anywhere in a name
# The parts of a model that have layers of their own, however their names are wrapped; "" is the language model's.
TOWERS = {"visual": "vision", "vision": "vision", "image": "vision", "speech": "audio", "audio": "audio"}
TOWERS |= {word: word for word in ("encoder", "decoder", "mtp")}
TEXT = "language_model."  # what a model that also sees puts into the names of its language model
VISION, CROSS_ATTENTION = "vision", ".cross_attn."  # parts of such a model that text alone does not reach
EXPERTS = re.compile(
    r"expert|moe|(?:in|out)put_linear"
)  # in the path of weights that stacks of experts are made of, [experts, ., .]
FUSED = {"gate_up_proj": ("gate_proj", "up_proj")}  # matrices that are also kept as one, one above the other
ALIASES = {  # paths of Mixtral and its like, by what newer ones call them
    r"^block_sparse_moe\.": "mlp.", r"(experts\.\d+)\.w1$": r"\1.gate_proj", r"(experts\.\d+)\.w3$": r"\1.up_proj",
    r"(experts\.\d+)\.w2$": r"\1.down_proj",
}  # fmt: skip
CONTAINERS = ("model", "transformer", "language_model", "text_model", "bert")  # around a whole model or its text part
NORMS = re.compile(r"\w*norm(?:_?\d+|_[a-z])?|(?:\w+_)?ln(?:_?\w)?")  # modules with gains, some [heads, dimensions]
BESIDE = re.compile(  # a module's last words for what stands beside a weight: biases, and what quantising left
    r"(?:.*[._])?(?:bias|scales?|scale_inv|zeros?|zero_point|qweight|qzeros|g_idx|absmax|quant_map|SCB|packed)"
)
LORA = r"(.+?)\.lora_(?:embedding_)?([AB])(?:\.\w+)?"
UNMERGED = re.compile(  # in a name of a whole model's tensor: an adapter of PEFT's, or of another library's
    r"\.(?:modules_to_save|base_layer)\.|lora_[abe](?:[._]|$)|lora\.(?:up|down)\.|\.(?:hada_w\d|lokr_w\d|vera_lambda|"
    r"oft_r|boft_|ia3_l|fourierft_|shira_|hra_u|c3a_kernel)",
    re.IGNORECASE,
)
GGUF_LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj", "ffn_down_exps": "mlp.experts.down_proj",
}  # fmt: skip
GGUF_OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}

_IN_LAYER = re.compile(rf"(?:^|.*?\.)(?:{LAYERS})\.([0-9]{{1,9}})\.(.+?)(?:\.weight)?(?:\[(\d+)\])?")
_OUTER = re.compile(rf"(?:^|.*\.)({'|'.join((*EMBEDDINGS, *HEADS))})\.weight")
_WRAPPED = re.compile("^(?:(?:" + "|".join(map(re.escape, OUTER_WRAPPERS)) + r")\.)+")
_WITHIN = re.compile(r"(?<![^.])(?:" + "|".join(WRAPPERS) + r")\.")
_TOWERS = re.compile("|".join(TOWERS))
_ITEM = re.compile(r"(.+)\[(\d+)\]")


@dataclass(frozen=True)
class Place:
    """A weight's place: its layer (None: in no layer), and its path there, such as "self_attn.q_proj".

    index: which one it is of a stack of experts.
    """

    layer: int | None
    path: str
    index: int | None = None

    @property
    def module(self) -> str:
        return self.path.rpartition(".")[2]

    def fits(self, patterns: Iterable[str] | None = None) -> bool:
        """Whether a glob pattern matches the module or the path; without patterns, whether it is in a layer."""
        if patterns is None:
            return self.layer is not None
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in (self.module, self.path))


def place_of(name: str) -> Place | None:
    """The place of a weight; None where it is in no layer and is neither embedding nor head."""
    name = unwrapped(name)
    if match := _IN_LAYER.fullmatch(name):
        return Place(int(match[1]), match[2], None if match[3] is None else int(match[3]))
    if match := _OUTER.fullmatch(name):
        return Place(None, match[1])
    return None


def key_of(name: str) -> tuple[str, ...]:
    """What a tensor's name says however the model is wrapped: two names with one key are one tensor's.

    The parts of the model that it is in (`TOWERS`), its layer's number, and its path there (in no layer: what an
    embedding or a head is called, else the path without CONTAINERS). An expert has the same key in a stack and on its
    own.
    """
    name = unwrapped(name)
    if match := _IN_LAYER.fullmatch(name):
        stem, layer, path, index = name[: match.start(1)], *match.groups()
        if index:
            parent, _, module = path.rpartition(".")
            path = f"{parent}.{index}.{module}"
        for pattern, new in ALIASES.items():
            path = re.sub(pattern, new, path)
    else:
        stem, layer, outer = name.rpartition(".")[0], "", _OUTER.fullmatch(name)
        words = (word for word in name.split(".") if word not in CONTAINERS and not _TOWERS.search(word))
        path = f"{outer[1]}.weight" if outer else ".".join(words)
    towers = (TOWERS[word] for word in _TOWERS.findall(stem))
    return (*(tower for tower, _ in groupby(towers)), layer, path)


def bare(name: str) -> str:
    """A name without wrappers and CONTAINERS, wherever they stand in it."""
    return ".".join(word for word in unwrapped(name).split(".") if word not in CONTAINERS)


def parts_of(key: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The keys of the matrices that a fused one is made of, one above the other; none of any other."""
    parent, dot, module = key[-1].rpartition(".")
    return [(*key[:-1], f"{parent}{dot}{part}") for part in FUSED.get(module, ())]


def item_of(name: str) -> tuple[str, int | None]:
    """The stack and the number in it of an expert's name, "stack[3]"; the name and None of any other."""
    match = _ITEM.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, None)


def is_stack(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a stack of experts' matrices [experts, ., .]."""
    place = place_of(name)
    inside = place and place.layer is not None and not is_beside(name)
    return bool(inside and len(shape) == 3 and min(shape) > 0 and EXPERTS.search(place.path))


def is_beside(name: str) -> bool:
    """Whether a tensor is no matrix that maps vectors: a bias, a norm's gains, a scale of quantised numbers."""
    *_, module, last = ("", *name.split("."))
    return bool(BESIDE.fullmatch(last) or (last == "weight" and NORMS.fullmatch(module)))


def matrices(tensors: Mapping[str, Tensor | tuple[int, ...]], embeddings: bool = False) -> dict[str, Place]:
    """The 2-D weights of the layers among tensors (or shapes), by name; with `embeddings` embedding and head too.

    Of a model that also sees, those that text does not reach are left out: the vision tower and the layers of
    cross-attention.
    """
    shapes = {name: tuple(getattr(tensor, "shape", tensor)) for name, tensor in sorted(tensors.items())}
    seeing = tuple(f"{name.split(CROSS_ATTENTION)[0]}." for name in shapes if CROSS_ATTENTION in name)
    reached = (n for n, s in shapes.items() if len(s) == 2 and VISION not in n and not n.startswith(seeing))
    places = {name: place for name in reached if not is_beside(name) and (place := place_of(name))}
    inside = {name: place for name, place in places.items() if place.fits()}
    return inside | {name: place for name, place in places.items() if embeddings and place.layer is None}


def unwrapped(name: str) -> str:
    """A name, or a module's path, without what wrappers put before it and into it."""
    return _WRAPPED.sub("", _WITHIN.sub("", name))


KEYS = (unwrapped, bare, key_of)  # by which names of one tensor are found, the closest first


def by_key(names: Iterable[str], key: Callable[[str], Hashable]) -> dict[Hashable, list[str]]:
    """Names by one of KEYS."""
    found: dict[Hashable, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return found


def text_names(names: Iterable[str]) -> dict[str, str]:
    """The language model's tensors under the names that it has when it stands alone -> the names here."""
    names = {unwrapped(name): name for name in names}
    inside = {}
    for plain, name in names.items():
        if match := re.fullmatch(rf"(?:model\.)?{TEXT}(?:model\.)?(?:(lm_head\..+)|(.+))", plain):
            inside[match[1] or f"model.{match[2]}"] = name
    heads = {plain: name for plain, name in names.items() if plain.startswith("lm_head.")}
    return {**heads, **inside} if inside else names


def from_gguf(name: str) -> str:
    """The transformers name of a tensor in a GGUF file; names that are not in the table stay."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in GGUF_LAYER:
        return f"model.layers.{parts[1]}.{GGUF_LAYER[parts[2]]}.{parts[3]}"
    return GGUF_OUTER.get(name, name)


def is_of_adapter(name: str) -> bool:
    """Whether a tensor in a model's file belongs to an adapter of PEFT's that is not merged, or lies under one."""
    return adapted(name)[1] is not None or bool(UNMERGED.search(name))


def adapted(name: str) -> tuple[str, str | None]:
    """The base's tensor that a tensor of an adapter changes, and its part in the change.

    "A" and "B" of a weight, "magnitude" (DoRA), "B" of a bias, "rows" (of single tokens), or None: the whole tensor.
    """
    name = unwrapped(name).replace(".token_adapter.weight", ".weight")
    name = re.sub(r"\.token_adapter\.trainable_tokens_(delta|original)(\.\w+)?$", r".rows_\1", name)
    if match := re.fullmatch(r"(.+)\.lora_magnitude_vector(?:\.\w+)*", name):
        return f"{match[1]}.weight", "magnitude"
    if match := re.fullmatch(rf"{LORA}\.bias", name):
        return f"{match[1]}.bias", match[2]
    if match := re.fullmatch(rf"{LORA}(?:\.weight)?", name):
        return f"{match[1]}.weight", match[2]
    if match := re.fullmatch(r"(.+)\.rows_(?:delta|original)", name):
        return f"{match[1]}.weight", "rows"
    return name, None
