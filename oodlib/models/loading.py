"""Models with their tokenizers, and state dicts: loaded, mixed, and saved whole. Safetensors only."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MllamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    logging,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from oodlib.io import one_line, read_object, write_whole
from oodlib.models.adapters import CONFIG, FILE, base_of, merge
from oodlib.models.checkpoints import open_text
from oodlib.models.weights import INDEX, beside, device

MARK = "complete"  # an empty file in a checkpoint's folder, written after everything else in it
NOT_KEPT = ("trainer_state.json", CONFIG, INDEX, MARK)  # of weights as they were

AutoModelForCausalLM.register(MllamaTextConfig, MllamaForCausalLM, exist_ok=True)  # transformers leaves it out


def quiet() -> None:
    """Silence what the training libraries say at every start; errors still show."""
    import datasets  # late: most who load models train none

    warnings.filterwarnings("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def sharded() -> bool:
    """Whether this process is one of several among which accelerate shards the model (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def working_dtype(precision: str = "auto") -> torch.dtype:
    """What models compute in, by `machine.precision`; auto: bfloat16 on a GPU that has it, else float32."""
    if precision == "auto":
        precision = "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
    return getattr(torch, precision)


def load_model(
    folder: Path, to_train: bool = False, adapter: bool = False, precision: str = "auto"
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """The causal language model and the tokenizer in `folder`, in the `working_dtype` of `precision`.

    `to_train`: float32 anywhere, for an update of 1e-6 is lost in bfloat16 weights; trainers compute in that dtype.
    `adapter`: if the folder holds a PEFT adapter, leave it one, to be trained; otherwise it is merged into its base.
    Code in the folder is never run. ValueError: an adapter that is pickled or whose base is not here; what transformers
    or PEFT refuse.
    """
    where = device()
    whole = base_folder(folder)
    model = _read(
        whole,
        lambda: AutoModelForCausalLM.from_pretrained(
            whole,
            dtype=torch.float32 if to_train else working_dtype(precision),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        ),
    )
    if model.base_model is model and hasattr(model, "model"):  # Mllama's text path names it otherwise than TRL looks
        model.base_model_prefix = "model"
    seeing = getattr(model.config.get_text_config(), "cross_attention_layers", None) or ()
    for name, parameter in model.named_parameters():
        if any(f"layers.{layer}." in name for layer in seeing):  # text does not reach it
            parameter.requires_grad_(False)
    if is_adapter(folder):
        model = _read(folder, lambda: PeftModel.from_pretrained(model, folder, is_trainable=adapter))
        model = model if adapter else merge(model)
    return model if sharded() else model.to(where), load_tokenizer(folder)  # accelerate moves it, a shard to each GPU


def is_adapter(folder: Path) -> bool:
    return (Path(folder) / CONFIG).exists()


def base_folder(folder: Path) -> Path:
    """The folder of the whole model: `folder` itself, or the base that its adapter names."""
    if not is_adapter(folder):
        return Path(folder)
    if not (Path(folder) / FILE).exists():
        raise ValueError(f"{folder} holds no {FILE} (pickled weights are not read)")
    named = base_of(Path(folder))
    if not named or not (Path(named) / "config.json").exists():
        raise ValueError(f"the adapter in {folder} belongs to {named!r}, which is not here")
    return Path(named)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, of the class that its own configuration names, padding on the left.

    (transformers 5 gives any model of type qwen2 Qwen's own tokenizer class, which would misread the tiny
    model's tokenizer without a word; so a plain one is loaded as what it says it is.)
    Code in the folder is never run. ValueError: no tokenizer, or a damaged one.
    """
    settings = Path(folder) / "tokenizer_config.json"
    declared = read_object(settings).get("tokenizer_class") if settings.exists() else None
    plain = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    loader = PreTrainedTokenizerFast if plain else AutoTokenizer
    options = {"padding_side": "left", "local_files_only": True, "trust_remote_code": False}
    tokenizer = _read(folder, lambda: loader.from_pretrained(folder, **options))
    if tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer in {folder} has no end-of-sequence token (eos_token), so answers would not end"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _read(folder: Path, load: Callable[[], Any]) -> Any:
    """What `load` reads. OSError or ValueError, one line with the folder's name, whatever the libraries raise."""
    try:
        return load()
    except Exception as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        said = one_line(error)
        if "trust_remote_code" in said:
            said = "it needs code of its own, which is not run"
        raise kind(f"{folder} cannot be loaded: {said}") from None


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in `folder` by name, on the CPU; an adapter is added to its base, a seeing model gives the text's."""
    weights = open_text(folder)
    tensors = ((name, weights.tensor(name)) for name in weights.shapes)
    return {name: t.float() if t.dtype == torch.float64 else t for name, t in tensors}


def save_weights(weights: dict[str, torch.Tensor], like: Path, folder: Path) -> None:
    """Write a checkpoint whole: all weights of a model, and configuration and tokenizer of another one."""
    if (folder / MARK).exists():
        return

    def write(path: Path) -> None:
        path.mkdir()
        for source in (base_folder(like), like):
            for file in beside(source, [])[0]:
                if file.name not in NOT_KEPT:
                    (path / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source / file, path / file)
        save_file(weights, path / "model.safetensors", {"format": "pt"})
        (path / MARK).touch()

    write_whole(folder, write)


def mix(parts: list[tuple[Path, float]]) -> dict[str, torch.Tensor]:
    """The weighted sum of several checkpoints' tensors, summed in float64, in the first checkpoint's dtype."""
    first, *others = [(load_weights(folder), share) for folder, share in parts]
    mixed = {}
    for name, tensor in first[0].items():
        total = first[1] * tensor.double()
        for weights, share in others:
            total += share * weights[name].double()
        mixed[name] = total.to(tensor.dtype)
    return mixed
