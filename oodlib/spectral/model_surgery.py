"""`oodlib restore`: surgery on a whole model folder, written shard by shard.

The result is a normal transformers folder: the recipient's, with some matrices edited by `surgery.restore`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from oodlib.io import clear_error
from oodlib.models.checkpoints import Safetensors, device, open_weights
from oodlib.models.names import MODULES, Pair, pair_up
from oodlib.spectral.comparison import count_of
from oodlib.spectral.surgery import PARTS, restore
from oodlib.tasks import check_choice

COPIED = (".json", ".txt", ".model", ".tiktoken", ".jinja", ".md", ".py", "")  # beside the weights; nothing is run


@dataclass
class Restoration:
    """What is to be done: the donor's part of the spectrum, at the first k_top and last k_tail directions.

    k_top and k_tail are numbers or shares ("20%"); with neither, all directions. ValueError: unknown part, what
    `checkpoints.open_weights` and `pair_up` refuse, a chosen matrix that the donor lacks, a recipient that is no
    folder of safetensors, an `out` that holds something already.
    """

    recipient: str
    donor: str
    out: Path | None
    part: str = "vectors"
    k_top: str | None = None
    k_tail: str | None = None
    modules: tuple[str, ...] = MODULES
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_choice("part", self.part, PARTS)
        self.own = open_weights(self.recipient)
        if not isinstance(self.own, Safetensors):
            raise ValueError(f"the recipient must be a folder of safetensors, {self.recipient} is not")
        self.other = open_weights(self.donor, self.own)
        pairs, remarks = pair_up(self.own, self.other, self.modules, self.layers)
        self.remarks = {pair.name: remarks[pair.name] for pair in pairs if pair.name in remarks}
        self.pairs = {pair.name: pair for pair in pairs}
        if lacking := [f"{n}: {why}" for n, why in remarks.items() if n not in self.pairs and n in self.own.shapes]:
            raise ValueError("cannot be edited: " + "; ".join(lacking))
        self.out = Path(self.out).resolve() if self.out else None  # None: for a look alone
        if self.out and self.out.exists() and any(self.out.iterdir()):
            raise ValueError(f"{self.out} holds something already: choose another folder")
        for pair in pairs:
            self.counts(pair)

    def equal(self, pair: Pair) -> bool:
        """Whether a matrix is the same in both, so that nothing can be restored."""
        return torch.equal(self.own.tensor(pair.name).double(), self.other.tensor(pair.other).double())

    def counts(self, pair: Pair) -> tuple[int, int]:
        """How many leading and trailing directions of a matrix are edited."""
        rank = min(pair.shape)
        tail = count_of(self.k_tail, rank) if self.k_tail else 0
        top = count_of(self.k_top, rank) if self.k_top else (0 if tail else rank)
        if top + tail > rank:
            raise ValueError(f"{pair.name}: k_top + k_tail must be at most {rank}, got {top} + {tail}")
        return top, tail

    def run(self) -> Iterator[tuple[str, float]]:
        """Write the edited model; yields each edited matrix's name and its relative change, ||edited - own|| / ||own||.

        The folder appears under its name when it is whole.
        """
        unfinished = self.out.with_name(f".{self.out.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            for shard in self.own.shards:
                yield from self._shard(shard, unfinished / shard.relative_to(self.own.path))
            for file in self.own.path.iterdir():
                if file.is_file() and file.suffix in COPIED:
                    shutil.copy(file, unfinished)
            about = {"recipient": self.recipient, "donor": self.donor, "part": self.part, "k_top": self.k_top}
            about |= {"k_tail": self.k_tail, "matrices": list(self.pairs)}
            (unfinished / "oodlib_restore.json").write_text(json.dumps(about, indent=1) + "\n")
            if self.out.exists():
                self.out.rmdir()
            unfinished.replace(self.out)
        except OSError as error:
            raise clear_error(error, self.out.parent) from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _shard(self, source: Path, target: Path) -> Iterator[tuple[str, float]]:
        with safe_open(source, framework="pt") as tensors:
            metadata, names = tensors.metadata(), list(tensors.keys())
            state = {name: tensors.get_tensor(name) for name in names}
        for name in names:
            if pair := self.pairs.get(name):
                own, other = (w.to(device()) for w in (state[name], self.other.tensor(pair.other)))
                edited = restore(own, other, self.part, *self.counts(pair))
                moved = float((edited.double() - own.double()).norm() / own.double().norm())
                state[name] = edited.cpu().contiguous()
                yield name, moved
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, target, metadata or {"format": "pt"})
