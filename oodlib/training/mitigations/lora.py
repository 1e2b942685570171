"""LoRA (Hu et al. 2021): only a low-rank change of every projection is learnt; checkpoints are adapters.

`sft.mitigation_share`: the rank as a share of the model's width. Alpha is twice the rank. Embeddings stay as they
are. RL then starts from the merged model and trains all of it; with `model.lora` RL would train an adapter too.
"""

from __future__ import annotations

from torch import nn

from oodlib.config import Config
from oodlib.training.mitigations import Mitigation
from oodlib.training.trainer import adapted


def prepare(model: nn.Module, config: Config) -> nn.Module:
    rank = max(1, round(config.sft.mitigation_share * model.config.hidden_size))
    return adapted(model, {"r": rank, "lora_alpha": 2 * rank})


MITIGATION = Mitigation("LoRA", prepare=prepare)
