"""The row `families`: a model of a family of transformers, built small, its weights in memory against its own files."""

import logging
import tempfile
import warnings
from functools import cache
from pathlib import Path

BIG = 4e7  # weights of a model that is not built
SMALL = {  # what configurations call their sizes
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "head_dim": 8, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_embd": 32, "n_layer": 2,
    "n_head": 4, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "decoder_layers": 2,
    "encoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32, "image_size": 28, "patch_size": 14,
    "n_group": 1, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "v_head_dim": 8,
    "qk_nope_head_dim": 8, "shared_expert_intermediate_size": 16,
}  # fmt: skip


@cache
def names() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_MAPPING_NAMES})


def small(name: str):
    """A small model of a family with random weights; None where it needs other sizes or packages."""
    import torch
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    make = (AutoModelForCausalLM if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModel).from_config
    for left_out in ((), ("num_key_value_heads", "head_dim"), tuple(SMALL)):
        try:
            known = CONFIG_MAPPING[name]().to_dict()
            sizes = {k: v for k, v in SMALL.items() if k in known and k not in left_out}
            if known.get("layer_types") and sizes:
                sizes["layer_types"] = None
            config = AutoConfig.for_model(name, **sizes)
            with torch.device("meta"):
                count = sum(weight.numel() for weight in make(config).parameters())
            if count <= BIG:
                torch.manual_seed(0)
                return make(config, dtype=torch.float32)
        except Exception:  # whatever a family says of sizes that do not suit it
            continue
    return None


def families(seed: int, number: int, size: int) -> tuple[str, str | None]:
    """Every matrix that is paired has equal values; what is not is remarked, or refused in one line."""
    import torch
    from safetensors.torch import save_file

    from oodlib.models.checkpoints import open_weights
    from oodlib.models.pairs import pair_up

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    name = names()[number % len(names())]
    if (model := small(name)) is None:
        return f"{name}: not built", None
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        draws = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            weight.data = torch.randn(weight.shape, generator=draws)
        model.save_pretrained(Path(folder) / "saved")
        (Path(folder) / "memory").mkdir()
        state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, Path(folder) / "memory" / "model.safetensors")
        memory, saved = (open_weights(Path(folder) / where) for where in ("memory", "saved"))
        try:
            pairs, remarks = pair_up(memory, saved)
        except ValueError as error:
            return f"{name}: {error}", None
        wrong = [p.name for p in pairs if not torch.equal(memory.matrix(p.name), saved.matrix(p.other))]
    left = [why for why in remarks.values() if "renamed" not in why and "dimensions" not in why and "tied" not in why]
    return f"{name}: {len(pairs)} paired, {len(left)} left", f"{wrong[0]} is another matrix there" if wrong else None
