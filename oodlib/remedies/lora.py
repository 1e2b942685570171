"""LoRA (Hu et al. 2021): only a low-rank change of every projection is learnt; checkpoints are merged.

`sft_remedy_share`: the rank as a share of the model's width. Alpha is twice the rank. Embeddings stay as they are.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from oodlib.models import load_model


def prepare(model: nn.Module, preset) -> nn.Module:
    rank = max(1, round(preset.sft_remedy_share * model.config.hidden_size))
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def finish(checkpoint: Path, base: Path) -> None:
    """Put a merged, plain model in place of the adapter in a checkpoint's folder."""
    if not (checkpoint / "adapter_config.json").exists():
        return
    adapter = checkpoint / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    adapter.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(checkpoint / name, adapter)
    merged = PeftModel.from_pretrained(load_model(base, to_train=True)[0], adapter).merge_and_unload()
    merged.save_pretrained(checkpoint)
    (checkpoint / "adapter_model.safetensors").unlink()
    (checkpoint / "adapter_config.json").unlink()
