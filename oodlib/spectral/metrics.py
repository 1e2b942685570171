"""Every number that `oodlib compare` writes of a pair of matrices, with its source: `METRICS`.

Angles are in radians. Those of the leading (or trailing) k directions stand beside what they can mean: the gap, Wedin's
bound, and the angles that plain noise of the same size would give.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from oodlib.spectral.angles import Comparison, compare

ZERO = 1e-12  # a singular value below this share of the largest is none
INTRUDER = 0.5  # a new direction that matches no old one better than this cosine (Shuttleworth et al. 2024)
TOLERANCE = 1e-5  # a weight that changed by no more is unchanged (arXiv:2505.11711)
SIDES = ("left", "right")
METRICS = {
    # of the whole matrix; k is missing
    "norm": "Frobenius norm of the first matrix",
    "change_norm": "Frobenius norm of the change, the second minus the first",
    "change_ratio": "change_norm / norm",
    "change_spectral_norm": "largest singular value of the change",
    "value_change_mean": "mean over the singular values above 0 of |after - before| / before",
    "value_change_max": "the largest of these",
    "stable_rank_before": "squared Frobenius norm / squared largest singular value (Rudelson & Vershynin 2007)",
    "stable_rank_after": "the same of the second matrix",
    "effective_rank_before": "exp of the entropy of the singular values' shares of their sum (Roy & Vetterli 2007)",
    "effective_rank_after": "the same of the second matrix",
    "scaling_share": "share of change_norm^2 on the diagonal of the first matrix's singular basis: values changed",
    "rotation_share": "share off that diagonal, within the basis: vectors turned among themselves",
    "outside_share": "share outside the span of the basis's longer side: vectors turned out of it",
    "null_value_change_mean": "value_change_mean that noise of the same change_norm gives",
    "null_scaling_share": "scaling_share that such noise gives",
    # of the leading k directions, and for tail_* of the last k
    "gap": "k-th minus (k+1)-th singular value of the first matrix",
    "wedin_bound": "no principal angle at this k can be larger; pi/2 says nothing (see angles.wedin_bound)",
    "angle_SIDE_mean": "mean principal angle between the leading-k singular subspaces (Björck & Golub 1973)",
    "angle_SIDE_max": "the largest of them",
    "chordal_SIDE": "Frobenius norm of the sines of the principal angles (Conway, Hardin & Sloane 1996)",
    "match_SIDE_mean": "mean over the second matrix's leading k directions of the best |cosine| with any old one",
    "intruders_SIDE": f"how many of these match no old direction better than {INTRUDER} (arXiv:2410.21228)",
    "tail_angle_SIDE_mean": "mean principal angle between the trailing-k singular subspaces",
    "tail_angle_SIDE_max": "the largest of them",
    "null_angle_SIDE_mean": "what noise of the same change_norm gives: mean principal angle, leading k",
    "null_angle_SIDE_max": "the largest of them",
}
MEASURES = {  # of how far a model has moved from its base, see `drift`
    "kl_from_base": "nats an answer: KL(base || model) over the base's own answers (arXiv:2509.04259)",
    "kl_to_base": "nats an answer: KL(model || base) over the model's own answers (arXiv:2509.04259)",
    "kl_from_base_formed": "the first, over the base's answers that open as demonstrations do, after that first token",
    "kl_to_base_formed": "the second, over the model's answers that open as demonstrations do, after that first token",
    "entropy": "nats a token of the model's own answers",
    "margin": "probability of the likeliest token less that of the next, mean over the model's own answers' tokens",
    "cka": "linear centred kernel alignment of the hidden states with the base's, last layer (Kornblith et al. 2019)",
    "mmd": "squared maximum mean discrepancy of the hidden states, Gaussian kernel, same inputs (Gretton et al. 2012)",
    "frechet": "Fréchet distance of Gaussians fitted to the hidden states (Dowson & Landau 1982)",
    "weight_change": "Frobenius norm of the change of all weights / that of the base's",
    "angle": "radians: mean principal angle of the leading quarter of directions, all matrices of the layers",
    "value_change": "mean relative change of the singular values, all matrices of the layers",
    "intruders": f"share of the leading quarter of new directions that match no old one better than {INTRUDER}, all "
    "matrices of the layers (arXiv:2410.21228)",
    "effective_rank": "of the change, mean over the matrices of the layers (Roy & Vetterli 2007)",
    "unchanged": "share of the weights that changed by 1e-5 or less in float32 (arXiv:2505.11711)",
    "unchanged_bfloat16": "share of the weights that are the same number in bfloat16 (arXiv:2505.11711)",
    "principal": "share of the weights changed in bfloat16 that are principal: among the largest quarter of the base's "
    "best approximation of a quarter of its rank (arXiv:2511.08567); chance: 0.25",
}
Row = tuple[int | None, str, float]


def measure(both: Comparison, ks: Sequence[int], seed: int | None = None) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Every metric of a pair of matrices [m, n] as rows (k, metric, value), and the arrays behind them.

    ks: numbers of leading (and trailing) directions. seed: of the noise whose angles are the null; None leaves the null
    out. Arrays, float64, r = min(m, n): values_before, values_after, values_change [r] (singular values),
    direction_SIDE [r] (angle of the i-th vectors), match_SIDE [r], angle_SIDE_k [k], null_angle_SIDE_k [k].
    """
    rank, values = len(both.values0), both.values0
    rows: list[Row] = [(None, metric, float(value)) for metric, value in _whole(both).items()]
    arrays = {"values_before": values, "values_after": both.values1, "values_change": both.change}
    null = None if seed is None else noise_null(both, seed)
    if null is not None:
        whole = _whole(null)
        rows += [(None, f"null_{metric}", float(whole[metric])) for metric in ("value_change_mean", "scaling_share")]
    for k in ks:
        rows += [(k, "gap", float(values[k - 1] - np.append(values, 0)[k])), (k, "wedin_bound", both.wedin_bound(k))]
    for side in SIDES:
        overlap = getattr(both, side)
        arrays |= {f"direction_{side}": overlap.directions(), f"match_{side}": overlap.best_match()}
        for k in ks:
            match = arrays[f"match_{side}"][:k]
            arrays[f"angle_{side}_{k}"] = angles = overlap.angles(0, k)
            rows += _mean_and_max(k, f"angle_{side}", angles)
            rows += _mean_and_max(k, f"tail_angle_{side}", overlap.angles(rank - k, rank))
            rows += [(k, f"chordal_{side}", float(np.linalg.norm(np.sin(angles))))]
            rows += [(k, f"match_{side}_mean", float(match.mean()))]
            rows += [(k, f"intruders_{side}", float((match < INTRUDER).sum()))]
            if null is not None:
                arrays[f"null_angle_{side}_{k}"] = angles = getattr(null, side).angles(0, k)
                rows += _mean_and_max(k, f"null_angle_{side}", angles)
    return rows, arrays


def _mean_and_max(k: int, metric: str, angles: np.ndarray) -> list[Row]:
    return [(k, f"{metric}_mean", float(angles.mean())), (k, f"{metric}_max", float(angles.max()))]


def _whole(both: Comparison) -> dict[str, float]:
    """The metrics of the whole matrix, by name."""
    relative, moved = both.relative_change[both.values0 > ZERO * both.values0[0]], float(np.linalg.norm(both.change))
    return {
        "norm": np.linalg.norm(both.values0),
        "change_norm": moved,
        "change_ratio": both.change_ratio,
        "change_spectral_norm": both.change[0],
        "value_change_mean": relative.mean() if len(relative) else 0.0,
        "value_change_max": relative.max(initial=0.0),
        "stable_rank_before": stable_rank(both.values0),
        "stable_rank_after": stable_rank(both.values1),
        "effective_rank_before": effective_rank(both.values0),
        "effective_rank_after": effective_rank(both.values1),
        **_shares(both, moved),
    }


def _shares(both: Comparison, moved: float) -> dict[str, float]:
    """How the change divides over the singular basis of the first matrix: U0^T (W1 - W0) V0 and the rest."""
    if moved == 0:
        return {"scaling_share": 0.0, "rotation_share": 0.0, "outside_share": 0.0}
    long = both.left if both.first.tall else both.right
    after = torch.from_numpy(both.values1).to(long.cosines)
    along = (both.left.cosines * after * both.right.cosines).sum(1) - torch.from_numpy(both.values0).to(after)
    scaling, outside = float(along.square().sum()) / moved**2, 0.0
    if long.residual is not None:
        outside = float((long.residual * after).square().sum()) / moved**2
    elif long.beyond is not None:
        outside = float(long.beyond.trace()) / moved**2
    outside = min(max(outside, 0.0), 1.0)
    return {"scaling_share": scaling, "rotation_share": max(0.0, 1 - scaling - outside), "outside_share": outside}


def stable_rank(values: np.ndarray) -> float:
    """||W||_F^2 / ||W||_2^2 from the singular values [r], descending; 0 of a zero matrix."""
    return float((values**2).sum() / values[0] ** 2) if values[0] > 0 else 0.0


def effective_rank(values: np.ndarray) -> float:
    """exp(-sum p log p) with p = values / sum(values) (Roy & Vetterli 2007); 0 of a zero matrix."""
    p = values[values > 0] / (values.sum() or 1.0)
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def noise_null(both: Comparison, seed: int) -> Comparison:
    """How the first matrix compares with itself plus Gaussian noise of the change's Frobenius norm."""
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(both.first.whole.shape))
    noise *= float(np.linalg.norm(both.change)) / noise.norm()
    return compare(both.first, both.first.whole + noise.to(both.first.values.device))
