"""What weights are called: the one table of names, and what a name says about a weight's place in the model.

Words for layers, modules, embeddings and heads, wrappers, models that also see, GGUF files and adapters stand here
and nowhere else. A family that uses other words is added here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

LAYERS = ("layers", "layer", "h", "blocks", "block")  # a layer's number follows one of these
# The attention and MLP projections, as LLaMA, Qwen and most others call them, and GPT-2, OPT, BLOOM, Falcon, Phi.
MODULES = (
    "*_proj", "c_attn", "c_fc", "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "fc1", "fc2", "Wqkv",
    "wq", "wk", "wv", "wo", "w1", "w2", "w3",
)  # fmt: skip
WRITERS = ("o_proj", "down_proj", "c_proj", "out_proj", "dense", "dense_4h_to_h", "fc2", "wo", "w2")  # to the residual
EMBEDDINGS, HEADS = ("embed_tokens", "wte"), ("lm_head", "output")  # matrices in no layer
WRAPPERS = ("module", "_orig_mod", "base_model.model")  # of distributed training, torch.compile, PEFT
TEXT = "language_model."  # what a model that also sees puts before the names of its language model
VISION, CROSS_ATTENTION = "vision", ".cross_attn."  # parts of such a model that text alone does not reach
LORA = r"(.+)\.lora_([AB])(?:\.\w+)?\.weight"
GGUF_LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
GGUF_OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}

_IN_LAYER = re.compile(rf"(?:^|\.)((?:{'|'.join(LAYERS)})\.(\d+)\.(.+?)(?:\.weight)?)$")
_OUTER = re.compile(rf"(?:^|\.)({'|'.join((*EMBEDDINGS, *HEADS))})\.weight$")
_WRAPPED = re.compile("^(?:(?:" + "|".join(map(re.escape, WRAPPERS)) + r")\.)+")


@dataclass(frozen=True)
class Place:
    """A weight's place: its layer (None: in no layer), and its path there, such as "self_attn.q_proj".

    tail: the name from the layer on, which is the same however a model is wrapped.
    """

    layer: int | None
    path: str
    tail: str

    @property
    def module(self) -> str:
        return self.path.rpartition(".")[2]

    def fits(self, patterns: Iterable[str] = MODULES) -> bool:
        """Whether a glob pattern matches the module or the path."""
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in (self.module, self.path))


def place_of(name: str) -> Place | None:
    """The place of a weight; None where it is in no layer and is neither embedding nor head."""
    if match := _IN_LAYER.search(name):
        return Place(int(match[2]), match[3], match[1])
    if match := _OUTER.search(name):
        return Place(None, match[1], match[1])
    return None


def matrices(names: Iterable[str], embeddings: bool = False) -> dict[str, Place]:
    """The attention and MLP projections among weight names, by name; with `embeddings` the embedding and head too.

    Of a model that also sees, those that text does not reach are left out: the vision tower and the layers of
    cross-attention.
    """
    names = sorted(names)
    seeing = tuple(f"{name.split(CROSS_ATTENTION)[0]}." for name in names if CROSS_ATTENTION in name)
    reached = (n for n in names if n.endswith(".weight") and VISION not in n and not n.startswith(seeing))
    places = {name: place for name in reached if (place := place_of(name))}
    inside = {name: place for name, place in places.items() if place.layer is not None and place.fits()}
    return inside | {name: place for name, place in places.items() if embeddings and place.layer is None}


def unwrapped(name: str) -> str:
    """A name, or a module's path, without what wrappers put before it."""
    return _WRAPPED.sub("", name)


def text_names(names: Iterable[str]) -> dict[str, str]:
    """The language model's tensors under the names that it has when it stands alone -> the names here."""
    names = list(names)
    inside = {n.removeprefix(TEXT): n for n in names if re.match(rf"{TEXT}(model|lm_head)\.", n)}
    return inside or {name: name for name in names}


def from_gguf(name: str) -> str:
    """The transformers name of a tensor in a GGUF file; names that are not in the table stay."""
    parts = name.split(".")
    if parts[0] == "blk" and parts[2] in GGUF_LAYER:
        return f"model.layers.{parts[1]}.{GGUF_LAYER[parts[2]]}.{parts[3]}"
    return GGUF_OUTER.get(name, name)


def adapted(name: str) -> tuple[str, str | None]:
    """The base's weight that a tensor of an adapter changes, and the tensor's part: "A", "B", or None (the weight)."""
    match = re.fullmatch(LORA, unwrapped(name))
    return (f"{match[1]}.weight", match[2]) if match else (unwrapped(name), None)
