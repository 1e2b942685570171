"""Presets: the parameters of a run, read from a YAML file in params/, validated before any work.

Names are flat, with the stage as prefix. A notebook or a command may override any of them; None means
"as the preset says".
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from oodlib.tasks import FILES, STYLES, check_choice, get_task, task_names

_SCIENTIFIC = re.compile(r"[+-]?\d+[eE][+-]?\d+")  # 2e-4, which YAML takes for text
ROOT = Path(__file__).resolve().parents[1]
PARAMS = ROOT / "params"
ARMS = (
    "rl",
    "sft_continued",
    "rejection_sampling",
    "averaging",
    "interpolation_base",
    "interpolation_peak",
    "random_reward",
    "format_reward",
)
# Parameters that an arm's result does not depend on, so that runs which differ in them alone can share it.
_ALGORITHM = (
    "rl_algorithm",
    "rl_clip",
    "rl_kl",
    "rl_discount",
    "rl_gae_lambda",
    "rl_value_coefficient",
    "rl_entropy_coefficient",
    "rl_options",
)
_TRAINING = ("rl_prompts", "rl_samples", "rl_updates_per_batch", "rl_epochs", "rl_learning_rate")
_TRAINING += ("rl_schedule", "rl_warmup_steps", "rl_max_grad_norm", "rl_turns", "rl_temperature")
_EDITED = (*_ALGORITHM, *_TRAINING)  # (rl_steps names the folder of the weights)
INDEPENDENT = {
    "sft_continued": (*_ALGORITHM, "rl_turns", "rl_temperature"),
    "rejection_sampling": _ALGORITHM,
    "averaging": _EDITED,
    "interpolation_base": _EDITED,
    "interpolation_peak": _EDITED,
}
REMEDIES = ("none", "rpsft", "kl", "lora", "averaging", "interpolation", "early_stopping")
EVALUATION = ("max_new_tokens", "eval_every", "verify_turns")  # weights do not depend on these; RL's on the first
SCHEDULES = Literal["constant_with_warmup", "cosine", "linear"]

Whole = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Turns = Annotated[int, Field(ge=1, le=5)]
Steps = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Machine(BaseModel):
    """Where and how a run is computed; results do not depend on it but for rounding. See params/README.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    launch: str | None = None  # training by `accelerate launch`: ddp, fsdp2, or the path of its configuration
    processes: Whole | None = None  # of `launch`; None: as its configuration says
    micro_batch: Whole | None = None  # sequences in one forward pass of training a process; None: the whole batch
    gradient_checkpointing: bool = False
    executor: Literal["local", "ray"] = "local"  # where independent jobs run
    ray_address: str | None = None  # of a running cluster; None: the one that RAY_ADDRESS names, or one started here
    job_gpus: Annotated[float, Field(ge=0)] = 1.0  # GPUs a job reserves on a cluster that has any
    rollouts: Literal["auto", "vllm", "dynamic", "static", "continuous"] = "auto"  # what generates answers

    @property
    def engine(self) -> str:
        """Of oodlib/engines.py, for all answers but those that vLLM generates."""
        return "auto" if self.rollouts == "vllm" else self.rollouts


class Preset(BaseModel):
    """All parameters of a run; the comments in params/tiny.yaml say what each is."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    preset: str
    like: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    n_seeds: Annotated[int, Field(ge=1, le=100)]
    out: str | None = None
    reference: bool = True
    jobs: Annotated[int, Field(ge=0)] = 0
    base_train: bool = False
    machine: Machine = Machine()

    task: str
    task_options: dict[str, str] = {}
    model: str
    peft: dict[str, Any] = {}
    prompt_style: str
    max_new_tokens: Whole
    eval_batch_size: Whole
    eval_every: Whole
    verify_turns: Turns

    sft_steps: Whole
    sft_checkpoints: Steps
    sft_batch_size: Whole
    sft_learning_rate: Rate
    sft_schedule: SCHEDULES
    sft_warmup_steps: Annotated[int, Field(ge=0)]
    sft_remedy: str
    sft_remedy_weight: Annotated[float, Field(ge=0)]
    sft_remedy_share: Share
    sft_options: dict[str, Any] = {}

    rl_algorithm: Literal["grpo", "rloo", "ppo"]
    rl_turns: Turns | None = None
    rl_arms: list[str]
    rl_from: Steps
    rl_steps: Whole
    rl_prompts: Whole
    rl_samples: Annotated[int, Field(ge=2)]
    rl_updates_per_batch: Whole
    rl_epochs: Whole
    rl_learning_rate: Rate
    rl_schedule: SCHEDULES
    rl_warmup_steps: Annotated[int, Field(ge=0)]
    rl_max_grad_norm: Annotated[float, Field(gt=0)]
    rl_clip: Rate
    rl_kl: Annotated[float, Field(ge=0)]
    rl_temperature: Annotated[float, Field(gt=0, le=5)]
    rl_discount: Share
    rl_gae_lambda: Annotated[float, Field(ge=0, le=1)]
    rl_value_coefficient: Annotated[float, Field(ge=0)]
    rl_entropy_coefficient: Annotated[float, Field(ge=0)]
    rl_options: dict[str, Any] = {}

    rotation_share: Share
    surgery_shares: list[Share]
    surgery_tail_shares: list[Share]
    surgery_layers: list[Whole]
    surgery_embeddings: bool
    surgery_draws: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _possible(self) -> Preset:
        check_choice("task", self.task, tuple(task_names()))
        get_task(self.task, self.task_options)
        check_choice("prompt_style", self.prompt_style, STYLES)
        check_choice("sft_remedy", self.sft_remedy, REMEDIES)
        for arm in self.rl_arms:
            check_choice("arm in rl_arms", arm, ARMS)
        if self.rl_algorithm == "rloo" and self.turns_in_rl > 1:
            raise ValueError(
                f"rl_algorithm 'rloo' plays one try an episode, not {self.turns_in_rl}: take grpo, ppo, or rl_turns 1"
            )
        if "format_reward" in self.rl_arms and self.turns_in_rl > 1:
            raise ValueError(
                "the arm format_reward plays one try an episode, for with several it would pay for failing"
            )
        if self.rl_algorithm == "ppo" and self.rl_kl:
            raise ValueError("rl_kl is for grpo and rloo; ppo here has no KL term, so rl_kl must be 0")
        if self.peft and (self.sft_remedy != "none" or self.rl_algorithm == "ppo"):
            raise ValueError("peft goes with sft_remedy 'none' and with rl_algorithm 'grpo' or 'rloo'")
        if self.machine.launch == "fsdp2" and self.rl_algorithm == "grpo" and self.turns_in_rl > 1:
            raise ValueError(
                "grpo with several tries an episode cannot play with sharded weights: take machine.launch 'ddp', "
                "rl_algorithm 'ppo', or rl_turns 1"
            )
        if self.sft_options or self.rl_options or self.peft:
            from oodlib.training import check_options  # late: it takes seconds

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check_options(self)
        checkpoints = self.sft_checkpoints
        if checkpoints != sorted(set(checkpoints)) or checkpoints[0] != 0 or checkpoints[-1] != self.sft_steps:
            raise ValueError(
                f"sft_checkpoints {checkpoints} must rise from 0 to sft_steps ({self.sft_steps}), none twice"
            )
        for name in ("rl_arms", "rl_from", "surgery_shares", "surgery_tail_shares", "surgery_layers"):
            if len(set(values := getattr(self, name))) != len(values):
                raise ValueError(f"{name} {values} names something twice")
        strangers = sorted(set(self.rl_from) - set(checkpoints))
        if strangers:
            raise ValueError(f"rl_from names steps {strangers}, which are not among sft_checkpoints {checkpoints}")
        parts, cycle = self.rl_updates_per_batch, self.rl_updates_per_batch * self.rl_epochs
        if self.rl_prompts % parts:
            raise ValueError(f"rl_prompts ({self.rl_prompts}) must be a multiple of rl_updates_per_batch ({parts})")
        if self.rl_steps % cycle:
            raise ValueError(
                f"rl_steps ({self.rl_steps}) must be a multiple of rl_updates_per_batch x rl_epochs ({cycle})"
            )
        return self

    @property
    def turns_in_rl(self) -> int:
        """Tries an episode in RL: `rl_turns`, or as many as in evaluation."""
        return self.rl_turns or self.verify_turns

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.n_seeds))

    def folder(self) -> Path:
        """Where the run goes: `out`, or outputs/NAME, with a mark of what differs from the preset's file."""
        if self.out:
            return Path(self.out).expanduser().resolve()
        name = self.preset
        path = PARAMS / f"{name}.yaml"
        changed = {}
        if path.exists():
            filed = load_preset(name)
            changed = {k: v for k, v in self.model_dump().items() if v != getattr(filed, k)}
            changed = {k: v for k, v in changed.items() if k in self.parameters() or k == "n_seeds"}
        if set(changed) == {"seed"}:
            name += f"-seed{self.seed}"
        elif changed:
            name += "-" + digest(changed)[:6]
        return ROOT / "outputs" / name

    def parameters(self, *prefixes: str) -> dict[str, Any]:
        """The parameters that change results; with prefixes, the common ones and those of these stages.

        Options that are empty are left out; data files stand there by their digests.
        """
        values = self.model_dump()
        if self.task_options:
            values["task_options"] = get_task(self.task, self.task_options).parameters()
        plain = ("preset", "like", "n_seeds", "out", "reference", "jobs", "base_train", "machine", "eval_batch_size")
        stages = ("sft", "rl", "rotation", "surgery")
        return {
            name: value
            for name, value in values.items()
            if name not in plain
            and value != {}
            and (not prefixes or (p := name.split("_")[0]) not in stages or p in prefixes)
        }


def digest(value: Any) -> str:
    """A SHA-256 of anything that JSON can write, as hexadecimal text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def preset_names() -> list[str]:
    """The presets in params/."""
    return sorted(p.stem for p in PARAMS.glob("*.yaml"))


def load_preset(name: str | os.PathLike, **changes: Any) -> Preset:
    """The preset called `name` (a file in params/, or a path to a YAML file), with changes that are not None.

    Raises ValueError, in one short sentence, for an unknown preset, an unknown key, a value of the wrong
    type, or an impossible one. Relative paths of data and of a model's folder in a preset's file are relative to the
    file, in changes to the working directory; where nothing is there, the other way round.
    """
    values = _filed(name)
    if values.get("like"):
        values = {**_filed(values["like"]), **values}
    changes = {k: v for k, v in changes.items() if v is not None}
    values.update(_absolute(changes, Path.cwd(), _path(name).parent))
    values = {k: float(v) if isinstance(v, str) and _SCIENTIFIC.fullmatch(v) else v for k, v in values.items()}
    if isinstance(values.get("model"), str) and Path(values["model"]).expanduser().is_dir():
        values["model"] = str(Path(values["model"]).expanduser().resolve())
    try:
        return Preset(**values)
    except ValidationError as error:
        raise ValueError(_sentence(error)) from None


def _path(name: str | os.PathLike) -> Path:
    return Path(name).resolve() if str(name).endswith((".yaml", ".yml")) else PARAMS / f"{name}.yaml"


def _filed(name: str | os.PathLike) -> dict[str, Any]:
    path = _path(name)
    if not path.exists():
        raise ValueError(f"unknown preset {str(name)!r}; the presets are: {', '.join(preset_names())}, or a path")
    values = yaml.safe_load(path.read_text())
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no parameters (names and values, one a line)")
    return {"preset": path.stem, **_absolute(values, path.parent, Path.cwd())}


def _absolute(values: dict[str, Any], *folders: Path) -> dict[str, Any]:
    """The same parameters, paths of data and of a model absolute: in the first of these folders that holds them."""
    values = dict(values)

    def places(path: str) -> list[Path]:
        found = [(folder / Path(path).expanduser()).resolve() for folder in folders]
        return [p for p in found if p.exists()] or found

    model, options = values.get("model"), values.get("task_options")
    if isinstance(model, str) and len(Path(model).parts) > 1 and places(model)[0].is_dir():
        values["model"] = str(places(model)[0])
    if isinstance(options, dict):
        paths = {k: str(places(v)[0]) for k, v in options.items() if k in FILES and isinstance(v, str)}
        values["task_options"] = {**options, **paths}
    return values


def preset_from(namespace: Mapping[str, Any], ignore_unknown: bool = False) -> Preset:
    """The preset that a notebook's variables name and change (its `parameters` cell and papermill's).

    Every variable in lower case that holds plain data is taken for a parameter, so that a misspelt one is an
    error; `ignore_unknown` is for a notebook that has made variables of its own since.
    """
    plain = (bool, int, float, str, list, dict, tuple, type(None))
    hidden = {"exit", "quit"}
    mine = {
        k: v
        for k, v in namespace.items()
        if isinstance(v, plain) and k[0].islower() and k not in hidden
        if k in Preset.model_fields or not ignore_unknown
    }
    return load_preset(mine.pop("preset", "tiny"), **mine)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown parameter {name!r}; the parameters are: {', '.join(Preset.model_fields)}"
    if first["type"] == "missing":
        return f"the parameter {name!r} is missing"
    if not name:
        return first["msg"].removeprefix("Value error, ")
    return f"{name} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
