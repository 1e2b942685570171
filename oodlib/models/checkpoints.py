"""Opening any checkpoint: folders of safetensors, PEFT adapters, GGUF files.

Nothing is loaded whole: files are memory-mapped, and an adapter is added to its base matrix by matrix. No pickle is
read.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from oodlib.io import read_json
from oodlib.models.gguf import GGUF
from oodlib.models.names import text_names
from oodlib.models.sources import locate
from oodlib.models.weights import Safetensors, Weights


class Renamed(Weights):
    """Some tensors of other weights under other names (new name -> name there)."""

    def __init__(self, whole: Weights, names: dict[str, str]):
        self.whole, self.path, self._names = whole, whole.path, names
        self.shapes = {new: whole.shapes[name] for new, name in names.items()}
        self.quantised = {new: whole.quantised[name] for new, name in names.items() if name in whole.quantised}

    def tensor(self, name: str) -> Tensor:
        return self.whole.tensor(self._names[name])


def open_weights(where: str | Path, base: Weights | None = None) -> Weights:
    """The weights at `where`: any place that `sources.locate` knows, which holds safetensors, a GGUF file, or a PEFT
    adapter, on the base that it names (or on `base`, if that goes by the same name or none is named).

    ValueError where there is nothing of the kind, or it is damaged.
    """
    path = locate(str(where))
    if path.is_file():
        return GGUF(path)
    if (path / "adapter_config.json").exists():
        from oodlib.models.adapters import Adapter  # late: peft takes seconds

        return Adapter(path, _base_of(path, base))
    if any(path.glob("*.safetensors*")):
        return Safetensors(path)
    raise ValueError(f"{path} holds no safetensors file (pickled weights are not read)")


def _base_of(adapter: Path, given: Weights | None) -> Weights:
    """The base that an adapter names; the one given, if none is named, or one of its name that is not here."""
    named, given = read_json(adapter / "adapter_config.json")["base_model_name_or_path"], getattr(given, "base", given)
    if given is not None:
        path = Path(named or given.path).expanduser()
        if not named or (not path.exists() and path.name == given.path.name):
            return given
    if not named:
        raise ValueError(f"{adapter} does not name its base")
    return open_weights(named)


def open_text(where: str | Path) -> Weights:
    """As `open_weights`, but of a model that also sees only the language model, as if it stood alone."""
    weights = open_weights(where)
    return Renamed(weights, text_names(weights.shapes))
