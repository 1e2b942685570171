"""Surgery on weight matrices: a recipient gets a donor's singular vectors, singular values, or whole weights.

The paper puts the singular vectors (or values) of the checkpoint with the best OOD accuracy back into a later
one, to see which of the two carries the lost accuracy. `random_vectors` and `random_change` add the null edits that
the paper lacks. An `Edit` says what is done to a whole model. All arithmetic is in float64; results have the
recipient's shape, dtype and device.

What the paper's official scripts do: `restore_layers` always puts back `embed_tokens` and `lm_head` too, and where
k_top + k_tail equals the rank it returns the donor's matrix, so that "the first n layers" is a transplant of their
whole weights with embedding and head. `restore_directions` edits every 2-D parameter, embedding and head included.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from oodlib.io import one_line, write_json, write_whole
from oodlib.models.checkpoints import open_weights
from oodlib.models.names import EMBEDDINGS, HEADS, VISION, is_stack, item_of, matrices, place_of
from oodlib.models.pairs import left_out, pair_up
from oodlib.models.weights import Safetensors, beside, device
from oodlib.spectral.svd import Count, Spectrum, as_matrix, as_spectrum, check_same_shape, count_of
from oodlib.stages import NULLS
from oodlib.tasks import check_choice

PARTS = ("vectors", "values")
State = Mapping[str, Tensor]


# ---- one matrix ----------------------------------------------------------------------------------------


def restore(
    recipient: Tensor | Spectrum,
    donor: Tensor | Spectrum,
    part: str = "vectors",
    k_top: Count | None = None,
    k_tail: Count = 0,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """The recipient [m, n] with the donor's part of its spectrum at the first k_top and last k_tail indices.

    With recipient = sum_i s_i u_i v_i^T and donor = sum_i t_i a_i b_i^T, part "vectors" replaces u_i, v_i by
    a_i, b_i and keeps s_i; part "values" replaces s_i by t_i and keeps u_i, v_i. The other terms stay. New
    vectors are not made orthogonal to those that stay, so that a partial edit may shift singular values.
    k_top and k_tail: see `ends`. `indices` are edited instead, if given. Either matrix may be given as its Spectrum,
    which saves a decomposition; the result is then in float64.
    ValueError: unknown part; what `ends` refuses; shapes that differ; an unfit matrix (see `svd.as_matrix`).
    """
    check_choice("part", part, PARTS)
    own, other = _spectra(recipient, donor)
    if indices is None:
        rank = len(own.values)
        top, tail = ends(k_top, k_tail, rank)
        indices = [*range(top), *range(rank - tail, rank)]
    chosen = torch.tensor(indices, dtype=torch.long, device=own.values.device)
    u, s, v = own.left[:, chosen], own.values[chosen], own.right[:, chosen]
    if part == "vectors":
        new = (other.left[:, chosen] * s) @ other.right[:, chosen].T
    else:
        new = (u * other.values[chosen]) @ v.T
    return _like(recipient, own.whole + new - (u * s) @ v.T)


def ends(top: Count | None, tail: Count, rank: int) -> tuple[int, int]:
    """How many leading and trailing of `rank` directions `top` and `tail` mean, as `svd.count_of` takes them, or 0.

    top None means all of them where tail is 0, and none otherwise. ValueError where there are not so many.
    """
    k_tail = count_of(tail, rank) if tail else 0
    k_top = (0 if tail else rank) if top is None else count_of(top, rank) if top else 0
    if k_top + k_tail == rank + 1 and isinstance(top, float):
        k_tail -= 1  # two shares of the whole, both rounded up
    if k_top + k_tail > rank:
        raise ValueError(f"k_top + k_tail must be at most {rank}, got {k_top} + {k_tail}")
    return k_top, k_tail


def random_vectors(
    recipient: Tensor | Spectrum,
    donor: Tensor | Spectrum,
    k_top: Count | None = None,
    seed: int = 0,
    signs: bool = False,
) -> Tensor:
    """The null edits of restore(part="vectors"): the same principal angles, in random directions.

    The recipient's leading k_top (default min(m, n)) left and right singular vectors are each turned by
    `random_turn`, with independent draws, and keep their singular values. The donor's vectors, with signs
    chosen jointly for u_i and v_i so that they are closest to the recipient's, only set the angles.
    Equal angles are not an equal change of the matrix: a donor's rotation among nearly equal singular values,
    common to left and right, changes little, while the random one does not respect it. So compare the distances
    ||edited - recipient|| of the two edits before reading anything into their accuracies.

    signs: the closest null, with the same angles AND the same distance, where each mixing has a random sign. In the
    recipient's singular bases the donor's vectors are M = U^T A on the left and N = V^T B on the right. With a random
    diagonal D of +1 and -1, the same on both sides, D M D and D N D have the same principal angles, and since
    D S D = S the change D (M S N^T - S) D has the same norm: every direction mixes with the same others, as strongly,
    only one way or the other at random. Outside the spans the directions are random, as in `random_turn`.

    The same seed gives the same draws on every device. ValueErrors as for `restore`.
    """
    own, other = _spectra(recipient, donor)
    k, _ = ends(k_top, 0, len(own.values))
    u, s, v = own.left[:, :k], own.values[:k], own.right[:, :k]
    a, b = other.left[:, :k], other.right[:, :k]
    nearest = torch.where((u * a).sum(0) + (v * b).sum(0) < 0, -1.0, 1.0).to(s.dtype)
    generator = torch.Generator().manual_seed(seed)
    H = torch.diag(2.0 * torch.randint(2, (k,), generator=generator).to(s) - 1) if signs else None
    left, right = (random_turn(*pair, generator, H) for pair in ((u, a * nearest), (v, b * nearest)))
    return _like(recipient, own.whole + (left * s) @ right.T - (u * s) @ v.T)


def random_change(recipient: Tensor, edited: Tensor, seed: int = 0) -> Tensor:
    """The other null edit: the recipient [m, n] moved as far as `edited` is, in a random direction.

    The change is a Gaussian matrix scaled to the Frobenius norm of edited - recipient. It matches the distance,
    as `random_vectors` matches the angles. A vector [n] is taken as [1, n]. ValueError: shapes that differ, an unfit
    matrix.
    """
    weight, other = as_matrix(torch.atleast_2d(recipient), "recipient"), as_matrix(torch.atleast_2d(edited), "edited")
    check_same_shape(weight.shape, other.shape, "recipient and edited")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
    moved = weight + noise * ((other - weight).norm() / noise.norm())
    return rounded(moved.reshape(recipient.shape), recipient.dtype)


def random_turn(U: Tensor, A: Tensor, generator: torch.Generator, H: Tensor | None = None) -> Tensor:
    """U [m, k] turned as A [m, k] is against it, but in random directions; all with orthonormal columns.

    Split A = U M + Y R, where M = U^T A and the columns of Y, at most min(k, m - k), are an orthonormal basis
    of what lies outside span(U). With H a Haar-random orthogonal matrix [k, k] (or the one given) and X a Haar-random
    orthonormal frame outside span(U), the result is U H M H^T + X R H^T. Why that is right:

    - its columns are orthonormal: M^T M + R^T R = A^T A = I, and U^T X = 0;
    - U^T times it is H M H^T, so that its principal angles to U are A's (the singular values of M), as are
      the eigenvalues of M and the distance ||A - U||_F;
    - for k = m nothing lies outside, and it is the rotation M conjugated by a random orthogonal matrix.
    """
    m, k = U.shape
    if k == 0:
        return U.clone()
    outside = min(k, m - k)
    M = U.T @ A
    _, sines, Z_t = torch.linalg.svd(A - U @ M, full_matrices=False)
    R = sines[:outside, None] * Z_t[:outside]
    H = random_frame(U.new_zeros(k, 0), k, generator) if H is None else H
    X = random_frame(U, outside, generator)
    return (U @ H @ M + X @ R) @ H.T


def random_frame(U: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` orthonormal columns, Haar-random in the complement of the orthonormal columns of U [m, k].

    QR of a Gaussian matrix with R's diagonal made positive (Mezzadri 2007). The second pass removes what
    rounding left along U.
    """
    frame = torch.randn(U.shape[0], count, generator=generator, dtype=torch.float64).to(U.device)
    for _ in range(2):
        frame, r = torch.linalg.qr(frame - U @ (U.T @ frame))
        frame = frame * torch.where(r.diagonal() < 0, -1.0, 1.0).to(frame.dtype)
    return frame


def _spectra(recipient: Tensor | Spectrum, donor: Tensor | Spectrum) -> tuple[Spectrum, Spectrum]:
    """Both spectra; the donor is moved to the recipient's device."""
    check_same_shape(_whole(recipient).shape, _whole(donor).shape, "recipient and donor")
    own = as_spectrum(recipient, "recipient")
    return own, as_spectrum(donor if isinstance(donor, Spectrum) else donor.to(own.values.device), "donor")


def _whole(W: Tensor | Spectrum) -> Tensor:
    return W.whole if isinstance(W, Spectrum) else W


def _like(recipient: Tensor | Spectrum, edited: Tensor) -> Tensor:
    return edited if isinstance(recipient, Spectrum) else rounded(edited, recipient.dtype)


def rounded(edited: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another dtype. ValueError where that cannot hold its numbers."""
    new = edited.to(dtype)
    if beyond := int((~new.isfinite()).sum()):
        raise ValueError(f"{beyond} of {new.numel()} entries would be larger than {dtype} can hold")
    return new


# ---- a model -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """What is done to a recipient's weights with a donor's.

    part: what of the donor's replaces the recipient's: "vectors" or "values" of a spectrum (see `restore`), or the
    "whole" weight; or a null edit of part `of`: "random" (`random_vectors`), "signs" (the same with random signs), both
    of vectors only, or "noise" (`random_change`, as far as `of` would move each weight).
    top and tail: how many leading and trailing directions of a spectrum, see `ends`.
    layers: their numbers, None for all. Of the layers, the projections are edited; where part (or `of`) is "whole" and
    layers are given, all their tensors, norms and biases too: a transplant.
    embeddings: the embedding and the head too, once where they are tied.
    rows: the whole weights of these rows (tokens) of embedding and head, and nothing else.
    seed: of the nulls' draws. ValueError: an unknown part, or settings that do not go together.
    """

    part: str = "vectors"
    top: Count | None = None
    tail: Count = 0
    layers: Collection[int] | None = None
    embeddings: bool = False
    seed: int = 0
    of: str = "vectors"
    rows: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_choice("part", self.part, (*PARTS, "whole", *NULLS))
        check_choice("part", self.of, (*PARTS, "whole"))
        if self.part in NULLS and self.tail:
            raise ValueError(f"part {self.part!r} edits leading directions only, not a tail")
        if self.part in ("random", "signs") and self.of != "vectors":
            raise ValueError(f"part {self.part!r} is a null of vectors, not of {self.of}")
        if self.whole and (self.tail or self.top is not None):
            raise ValueError("part 'whole' takes the whole weight: it has no leading or trailing directions")
        if self.rows is not None and not self.whole:
            raise ValueError(f"rows are edited whole, not their {self._replaced}")

    @property
    def _replaced(self) -> str:
        return self.of if self.part in NULLS else self.part

    @property
    def whole(self) -> bool:
        """Whether whole weights are replaced, by the donor's or in size."""
        return self._replaced == "whole"

    def matrix(self, name: str, recipient: Tensor | Spectrum, donor: Tensor | Spectrum) -> Tensor:
        """The edited weight; nulls draw anew for each name, the same on every run."""
        seed, weight = self.seed + crc32(name.encode()), _whole(recipient)
        if self.rows is not None:
            edited, rows = weight.clone(), list(self.rows)
            edited[rows] = replace(self, rows=None).matrix(name, weight[rows], _whole(donor)[rows])
            return edited
        if self.part in ("random", "signs"):
            return random_vectors(recipient, donor, self.top, seed, signs=self.part == "signs")
        if self.whole:
            edited = rounded(_whole(donor).to(weight.device), weight.dtype)
        else:
            edited = restore(recipient, donor, self._replaced, self.top, self.tail)
        return random_change(weight, edited, seed) if self.part == "noise" else edited

    def chosen(self, state: State) -> list[str]:
        """The names of the tensors that are edited; of a tied embedding and head the embedding's."""
        outer, layers = self.embeddings or self.rows is not None, () if self.rows is not None else self.layers
        places = matrices(state, outer)
        if self.whole and layers is not None:
            inside = ((name, place_of(name)) for name in sorted(state) if VISION not in name)
            places |= {name: place for name, place in inside if place and place.layer is not None}
        twins = _tied(state) if outer else {}
        chosen = (n for n, p in places.items() if layers is None or p.layer is None or p.layer in layers)
        return [name for name in chosen if name not in twins]

    def state(self, recipient: State, donor: State, spectra: Mapping[str, tuple] | None = None) -> dict[str, Tensor]:
        """A copy of the recipient's state dict with the chosen tensors edited; the others are the recipient's.

        spectra: by name the recipient's and the donor's Spectrum, where they are known.
        ValueError naming the tensor that the donor lacks or has in another shape.
        """
        edited = dict(recipient)
        for name in self.chosen(recipient):
            if name not in donor:
                raise ValueError(f"{name}: missing in the donor")
            check_same_shape(recipient[name].shape, donor[name].shape, name)
            pair = (spectra or {}).get(name, (recipient[name], donor[name]))
            edited[name] = rounded(self.matrix(name, *pair), recipient[name].dtype)
        return edited | {head: edited[embedding] for head, embedding in _tied(recipient).items()}


def _tied(state: State) -> dict[str, str]:
    """The name of the head -> that of the embedding, where the two are one matrix."""
    outer = {name: place.module for name, place in matrices(state, embeddings=True).items() if place.layer is None}
    heads, embeddings = ([name for name, word in outer.items() if word in words] for words in (HEADS, EMBEDDINGS))
    return {head: embedding for head in heads for embedding in embeddings if torch.equal(state[head], state[embedding])}


class ModelEdit:
    """`oodlib restore`: an Edit of a whole model folder, by default of every matrix of the recipient's layers.

    adapter_base: where the base of an adapter (the donor) lies, if not where it says. remarks: by name, on what is not
    edited, and not copied. ValueError: what `open_weights` and `pair_up` refuse, a chosen matrix that the donor lacks,
    a recipient that is no folder of safetensors.
    """

    def __init__(
        self,
        recipient: str,
        donor: str,
        edit: Edit,
        modules: Sequence[str] | None = None,
        adapter_base: str | None = None,
    ):
        self.names = {"recipient": recipient, "donor": donor}
        self.edit, self.recipient = edit, open_weights(recipient)
        if not isinstance(self.recipient, Safetensors):
            raise ValueError(f"the recipient must be a folder of safetensors, {recipient} is not")
        self.donor = open_weights(donor, self.recipient, adapter_base)
        pairs, remarks = pair_up(self.recipient, self.donor, modules, edit.layers)
        self.pairs = {pair.name: pair for pair in pairs}
        no_matrix = {name for name, shape in self.recipient.matrices.items() if len(shape) != 2}
        missing = [n for n in remarks if n in self.recipient.matrices and n not in {*self.pairs, *no_matrix}]
        if missing:
            raise ValueError("cannot be edited: " + "; ".join(f"{name}: {remarks[name]}" for name in missing))
        every = modules is None and edit.layers is None
        self.remarks = {**self.donor.remarks, **(left_out(self.recipient) if every else {}), **remarks}
        self.copied, not_copied = beside(self.recipient.path, self.recipient.shards)
        self.remarks |= dict.fromkeys(map(str, not_copied), "not copied: weights, or what training left")
        for pair in pairs:
            ends(edit.top, edit.tail, min(pair.shape))

    def write(self, out: Path, done: Callable[[], None] = lambda: None) -> list[float]:
        """Write the edited model: a transformers folder like the recipient's, which appears when it is whole.

        Returns each edited matrix's change, relative in the Frobenius norm; `done` is called after each.
        ValueError: `out` holds something already; a matrix that is not finite, before or after.
        """
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out} holds something already: choose another folder")
        about = {**self.names, "part": self.edit.part, "k_top": self.edit.top, "k_tail": self.edit.tail or None}
        moved = []

        def write(folder: Path) -> None:
            for shard in self.recipient.shards:
                for change in self._shard(shard, folder / shard.relative_to(self.recipient.path)):
                    moved.append(change)
                    done()
            for file in self.copied:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.recipient.path / file, folder / file)
            write_json(folder / "oodlib_restore.json", {**about, "matrices": list(self.pairs)})

        write_whole(out.resolve(), write)
        return moved

    def _shard(self, source: Path, target: Path) -> Iterator[float]:
        with safe_open(source, framework="pt") as tensors:
            metadata = tensors.metadata()
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        for name, tensor in list(state.items()):
            items = []
            if is_stack(name, tuple(tensor.shape)):
                state[name] = tensor = tensor.clone()
                items = [f"{name}[{i}]" for i in range(len(tensor))]
            for matrix in items or [name]:
                if pair := self.pairs.get(matrix):
                    _, index = item_of(matrix)
                    before = (tensor if index is None else tensor[index]).to(device())
                    edited = self._edited(matrix, before, self.donor.matrix(pair.other).to(device()))
                    moved, norm = (float(W.norm()) for W in (edited.double() - before.double(), before.double()))
                    yield moved / norm if norm else math.inf * bool(moved)
                    if index is None:
                        state[name] = edited.cpu().contiguous()
                    else:
                        tensor[index] = edited.cpu()
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, target, metadata or {"format": "pt"})

    def _edited(self, name: str, recipient: Tensor, donor: Tensor) -> Tensor:
        recipient, donor = (  # so that the message says which file
            W if W.isfinite().all() else as_matrix(W, f"{name} of {weights.path}")
            for W, weights in ((recipient, self.recipient), (donor, self.donor))
        )
        try:
            return self.edit.matrix(name, recipient, donor)
        except (ValueError, torch.linalg.LinAlgError) as error:
            raise ValueError(f"{name}: {one_line(error)}") from None
