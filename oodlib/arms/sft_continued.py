"""Control: SFT simply goes on, on fresh ID demonstrations, at RL's learning rate.

If this brings OOD accuracy back as well as RL does, then what healed was the lower learning rate or the
larger batch, not RL. The paper has no such arm.
"""

from __future__ import annotations

from transformers import Trainer

from oodlib.arms import Setup
from oodlib.training import demonstrations, sft_trainer


def make_trainer(setup: Setup) -> Trainer:
    preset = setup.preset
    # other demonstrations than those of the SFT stage, which were drawn with the seed itself
    data = demonstrations(setup.task, preset, setup.seed + 2**31, preset.rl_steps * setup.batch)
    return sft_trainer(
        setup.model,
        setup.tokenizer,
        data,
        setup.folder,
        setup.seed,
        preset.rl_steps,
        preset.rl_learning_rate,
        per_device_train_batch_size=setup.batch,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=preset.rl_warmup_steps,
    )
