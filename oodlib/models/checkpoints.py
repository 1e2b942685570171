"""Opening any checkpoint: folders of safetensors, PEFT adapters, GGUF files.

Nothing is loaded whole: files are memory-mapped, and an adapter is added to its base matrix by matrix. No pickle is
read.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from oodlib.models.adapters import CONFIG, Adapter, base_of, read_settings
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
        self.remarks = whole.remarks

    def tensor(self, name: str) -> Tensor:
        return self.whole.tensor(self._names[name])

    def _item(self, name: str, index: int) -> Tensor:
        return self.whole._item(self._names[name], index)


def open_weights(where: str | Path, base: Weights | None = None, adapter_base: str | Path | None = None) -> Weights:
    """The weights at `where`: any place that `sources.locate` knows, which holds safetensors, a GGUF file, or a PEFT
    adapter.

    An adapter stands on `adapter_base`, where that is given; else on the base that it names; else, if that is not here
    and `base` goes by the same name, or if none is named, on `base`.
    ValueError where there is nothing of the kind, or it is damaged.
    """
    return _open(where, base, adapter_base, ())


def _open(where: str | Path, base: Weights | None, adapter_base: str | Path | None, above: tuple[Path, ...]) -> Weights:
    path = locate(str(where))
    if path.is_file():
        return GGUF(path)
    if (path / CONFIG).exists():
        if path.resolve() in above:
            raise ValueError(f"{path / CONFIG} names an adapter as base that stands on this one itself")
        return _adapter(path, base, adapter_base, (*above, path.resolve()))
    if any(path.glob("*.safetensors*")):
        return Safetensors(path)
    inside = sorted(file.parent.name for file in path.glob(f"*/{CONFIG}"))
    hint = f"; there are adapters in its sub-folders {', '.join(inside)}" if inside else ""
    if files := sorted(file.name for file in path.glob("*.gguf")):
        hint = f"; give the GGUF file itself: {files[0]}"
    raise ValueError(f"{path} holds no safetensors file (pickled weights are not read){hint}")


def _adapter(path: Path, base: Weights | None, adapter_base: str | Path | None, above: tuple[Path, ...]) -> Adapter:
    """An adapter on its base; with a remark where that is not the one that it names."""
    read_settings(path)  # what kind it is, before its base is looked for
    named, given = base_of(path), getattr(base, "base", base)
    if adapter_base is not None:
        return Adapter(path, _open(adapter_base, None, None, above))
    if named is None and given is None:
        raise ValueError(f"the adapter {path} does not name its base: give its folder with --base")
    if named is None:
        return Adapter(path, given, {"base": f"the adapter names none; it is taken to be {given.path}"})
    here = Path(named).expanduser()
    if given is not None and not here.exists() and here.name == given.path.name:
        return Adapter(path, given, {"base": f"{named} is not here; {given.path}, of the same name, is taken for it"})
    try:
        locate(named)
    except ValueError:
        raise ValueError(
            f"the adapter {path} stands on {named!r}, which is not here nor to be had from the hub: give the folder "
            "of that model with --base"
        ) from None
    return Adapter(path, _open(named, None, None, above))


def open_text(where: str | Path) -> Weights:
    """As `open_weights`, but of a model that also sees only the language model, as if it stood alone."""
    weights = open_weights(where)
    return Renamed(weights, text_names(weights.shapes))
