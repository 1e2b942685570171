"""The tokens that a weight matrix's singular directions read and write (the logit lens on singular vectors).

A right singular vector of a matrix that reads the residual stream is compared with the embeddings, a left one of a
matrix that writes to it with the unembeddings (Millidge & Black 2022; nostalgebraist 2020). No layer norm is folded in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oodlib.models.checkpoints import Weights
from oodlib.spectral.svd import Comparison, Spectrum

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WRITERS = ("o_proj", "down_proj", "c_proj", "out_proj", "dense", "dense_4h_to_h", "fc2", "wo", "w2")
COLUMNS = ["side", "direction", "when", "index", "match", "sign", "place", "token", "score"]
LEADING, DIRECTIONS, TOKENS = 0.2, 3, 6
ROWS_AT_ONCE = 2**14
_IN, _OUT = (("embed_tokens.weight", "wte.weight"), ("lm_head.weight", "output.weight"))


@dataclass(frozen=True)
class Lens:
    """Embedding and unembedding [tokens, hidden] of a model, and its tokenizer."""

    embedding: Tensor
    unembedding: Tensor
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, weights: Weights) -> Lens | None:
        """A checkpoint's; None without an embedding or a sound tokenizer. Without an unembedding the two are tied."""
        found = [next((n for n in weights.shapes if n.endswith(names)), None) for names in (_IN, _OUT)]
        if found[0] is None or not (weights.path / "tokenizer.json").exists():
            return None
        from oodlib.models.loading import load_tokenizer  # late, for it takes seconds

        try:
            tokenizer = load_tokenizer(weights.path)
        except (KeyError, OSError, TypeError, ValueError):  # what transformers says of a broken one
            return None
        embedding = weights.tensor(found[0])
        return cls(embedding, weights.tensor(found[1]) if found[1] else embedding, tokenizer)

    def look(self, found: Comparison, module: str) -> list[tuple]:
        """The tokens of the directions that turned most: rows of `COLUMNS`.

        Those are, among the leading fifth of the second matrix's directions, the ones with the smallest best |cosine|
        (`match`) with any direction of the first. Each stands beside that best match, as "after" and "before", with
        the TOKENS tokens of largest dot product with the unit vector at either end (a direction has no sign).
        Empty where the matrix does not reach the residual stream.
        """
        writes = module in WRITERS
        side, table = ("left", self.unembedding) if writes else ("right", self.embedding)
        rank = len(found.values0)
        if found.first.shape[0 if writes else 1] != table.shape[1]:
            return []
        match, partner = getattr(found, side).cosines.abs().cpu().max(0)
        chosen = match[: max(1, round(LEADING * rank))].argsort()[:DIRECTIONS]
        rows = []
        for when, spectrum, indices in (("before", found.first, partner[chosen]), ("after", found.second, chosen)):
            scores = self._scores(table, _columns(spectrum, side, indices))
            for column, (direction, index) in enumerate(zip(chosen.tolist(), indices.tolist(), strict=True)):
                for sign in (1, -1):
                    best = torch.topk(sign * scores[:, column], min(TOKENS, len(scores)))
                    for place, (score, token) in enumerate(zip(*(x.tolist() for x in best), strict=True)):
                        text = self.tokenizer.decode([token])
                        rows.append(
                            (side, direction, when, index, float(match[direction]), sign, place, text, sign * score)
                        )
        return rows

    @staticmethod
    def _scores(table: Tensor, vectors: Tensor) -> Tensor:
        vectors = vectors.float().cpu()
        return torch.cat([part.float() @ vectors for part in table.split(ROWS_AT_ONCE)])


def _columns(spectrum: Spectrum, side: str, index: Tensor) -> Tensor:
    """Some singular vectors of a side, without forming the others."""
    index = index.to(spectrum.short.device)
    if (side == "left") == spectrum.tall and spectrum.given is None:
        return spectrum.matrix.T @ spectrum.short[:, index] / spectrum.values[index]
    return getattr(spectrum, side)[:, index]
