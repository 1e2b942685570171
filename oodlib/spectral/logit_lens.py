"""The tokens that a weight matrix's singular directions read and write (the logit lens on singular vectors).

A right singular vector of a matrix that reads the residual stream is compared with the embeddings, a left one of a
matrix that writes to it with the unembeddings (Millidge & Black 2022; nostalgebraist 2020). No layer norm is folded in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oodlib.models.names import EMBEDDINGS, HEADS, WRITERS, place_of
from oodlib.models.weights import Weights
from oodlib.spectral.angles import Comparison
from oodlib.spectral.svd import count_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN_COLUMNS = ["side", "direction", "when", "index", "match", "sign", "place", "token", "score"]
LEADING, DIRECTIONS, TOKENS = 0.2, 3, 6


@dataclass(frozen=True)
class LogitLens:
    """Embedding and unembedding [tokens, hidden] of a model, and its tokenizer."""

    embedding: Tensor
    unembedding: Tensor
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, weights: Weights) -> LogitLens | None:
        """A checkpoint's; None without embedding or tokenizer. Without an unembedding the two are tied.

        ValueError: an embedding or a tokenizer that cannot be read.
        """
        outer = {place.module: name for name in weights.shapes if (place := place_of(name)) and place.layer is None}
        embedding, head = (next((outer[m] for m in words if m in outer), None) for words in (EMBEDDINGS, HEADS))
        if embedding is None or not (weights.path / "tokenizer.json").exists():
            return None
        from oodlib.models.loading import load_tokenizer  # late, for it takes seconds

        tokenizer = load_tokenizer(weights.path)
        if problem := next((weights.quantised[name] for name in (embedding, head) if name in weights.quantised), None):
            raise ValueError(f"{embedding} of {weights.path} cannot be read ({problem})")
        table = weights.tensor(embedding)
        return cls(table, weights.tensor(head) if head else table, tokenizer)

    def look(self, both: Comparison, module: str, turned: bool = False) -> list[tuple]:
        """The tokens of the directions that turned most: rows of `TOKEN_COLUMNS`.

        Those are, among the leading fifth of the second matrix's directions, the ones with the smallest best |cosine|
        (`match`) with any direction of the first. Each stands beside that best match, as "after" and "before", with
        the TOKENS tokens of largest dot product with the unit vector at either end (a direction has no sign).
        turned: the matrix is kept as [in, out]. Empty where the matrix does not reach the residual stream.
        """
        writes = module in WRITERS
        table = self.unembedding if writes else self.embedding
        side = "left" if writes != turned else "right"
        if both.first.whole.shape[0 if side == "left" else 1] != table.shape[1]:
            return []
        match, partner = getattr(both, side).cosines.abs().cpu().max(0)
        chosen = match[: count_of(LEADING, len(match))].argsort()[:DIRECTIONS]
        rows = []
        for when, spectrum, indices in (("before", both.first, partner[chosen]), ("after", both.second, chosen)):
            scores = table.float() @ getattr(spectrum, side)[:, indices.to(spectrum.values.device)].float().cpu()
            for column, (direction, index) in enumerate(zip(chosen.tolist(), indices.tolist(), strict=True)):
                about = (side, direction, when, index, float(match[direction]))
                for sign in (1, -1):
                    best = torch.topk(sign * scores[:, column], min(TOKENS, len(scores)))
                    for place, (score, token) in enumerate(zip(*(x.tolist() for x in best), strict=True)):
                        rows.append((*about, sign, place, self.tokenizer.decode([token]), sign * score))
        return rows
