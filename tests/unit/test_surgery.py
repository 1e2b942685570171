"""oodlib.spectral.surgery against closed forms and a term-by-term sum in numpy."""

import dataclasses
import json
import math
from functools import partial
from zlib import crc32

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oodlib.config import load_config
from oodlib.io import COLUMNS, as_measurements
from oodlib.plots.spectral import surgery
from oodlib.plots.style import style
from oodlib.run import Run
from oodlib.spectral import Edit, restore, spectrum, stage
from oodlib.spectral.surgery import ends, random_change, random_frame, random_turn, random_vectors
from oodlib.stages import check, edit_name, edits, waves
from oodlib.tasks import Split, Splits, get_task

SHAPES = [(1, 1), (1, 5), (5, 1), (7, 4), (4, 7), (6, 6)]
few = settings(max_examples=25, deadline=None)


def gaussian(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape))


def frame(m, k, seed=0):
    return np.linalg.qr(gaussian(m, k, seed=seed).numpy())[0]


random_signs = partial(random_vectors, signs=True)


def pair(shape, seed=0):
    return gaussian(*shape, seed=seed), gaussian(*shape, seed=seed + 1)


def rebuilt(s_vectors, s_values):
    return (s_vectors.left * s_values.values) @ s_vectors.right.T


def values_of(W):
    return np.linalg.svd(np.asarray(W, dtype=np.float64), compute_uv=False)


def cosines_and_sines(U, A):
    """Of the principal angles between span(U) and span(A) [m, k]; together they fix each to rounding."""
    return values_of(U.T @ A), values_of(A - U @ (U.T @ A))


def term_by_term(recipient, donor, part, chosen):
    """The definition of restore as a sum of rank-one terms, by numpy's SVD."""
    (u, s, vt), (a, t, bt) = (np.linalg.svd(W.numpy(), full_matrices=False) for W in (recipient, donor))
    total = np.zeros(recipient.shape)
    for i in range(len(s)):
        value = t[i] if i in chosen and part == "values" else s[i]
        left, right = (a[:, i], bt[i]) if i in chosen and part == "vectors" else (u[:, i], vt[i])
        total += value * np.outer(left, right)
    return total


# restore


@few
@given(st.sampled_from(SHAPES), st.sampled_from(["vectors", "values"]), st.integers(0, 10**6), st.data())
def test_restore_is_the_sum_of_its_terms(shape, part, seed, data):
    r = min(shape)
    k_top = data.draw(st.integers(0, r))
    k_tail = data.draw(st.integers(0, r - k_top))
    recipient, donor = pair(shape, seed)
    chosen = set(range(k_top)) | set(range(r - k_tail, r))
    expected = term_by_term(recipient, donor, part, chosen)
    np.testing.assert_allclose(restore(recipient, donor, part, k_top, k_tail), expected, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_restore_of_everything_has_closed_forms(shape):
    recipient, donor = pair(shape)
    own, other = spectrum(recipient), spectrum(donor)
    vectors, values = restore(recipient, donor), restore(recipient, donor, part="values")
    np.testing.assert_allclose(vectors, rebuilt(other, own), atol=1e-13)
    np.testing.assert_allclose(values, rebuilt(own, other), atol=1e-13)
    np.testing.assert_allclose(values_of(vectors), own.values, atol=1e-13)
    np.testing.assert_allclose(values_of(values), other.values, atol=1e-13)
    np.testing.assert_allclose(restore(vectors, donor, part="values"), donor, atol=1e-12)
    np.testing.assert_allclose(restore(values, donor, part="vectors"), donor, atol=1e-12)


@pytest.mark.parametrize("part", ["vectors", "values"])
def test_restore_of_nothing_or_from_itself_is_the_recipient(part):
    recipient, donor = pair((6, 4))
    np.testing.assert_array_equal(restore(recipient, donor, part, k_top=0), recipient)
    np.testing.assert_allclose(restore(recipient, recipient, part, k_top=2, k_tail=1), recipient, atol=1e-14)


def test_k_top_none_is_all_or_with_a_tail_nothing():
    recipient, donor = pair((6, 4))
    np.testing.assert_array_equal(restore(recipient, donor), restore(recipient, donor, k_top=4))
    tail = restore(recipient, donor, k_tail=1)
    np.testing.assert_array_equal(tail, restore(recipient, donor, k_top=0, k_tail=1))
    np.testing.assert_allclose(tail, term_by_term(recipient, donor, "vectors", {3}), atol=1e-12)
    all_by_both = restore(recipient, donor, k_top=1, k_tail=3)
    np.testing.assert_allclose(all_by_both, restore(recipient, donor), atol=1e-13)


def test_restore_of_diagonal_matrices_by_hand():
    recipient, donor = torch.diag(torch.tensor([4.0, 2.0, 1.0])), torch.diag(torch.tensor([1.0, 3.0, 9.0]))
    swapped = torch.diag(torch.tensor([1.0, 2.0, 4.0]))  # the donor's order of axes is e3, e2, e1
    torch.testing.assert_close(restore(recipient, donor), swapped)
    values = torch.diag(torch.tensor([9.0, 2.0, 1.0]))
    torch.testing.assert_close(restore(recipient, donor, "values", k_top=1), values)
    tail = torch.diag(torch.tensor([5.0, 2.0, 0.0]))  # e1 gets the last value of the recipient on top of its 4
    torch.testing.assert_close(restore(recipient, donor, "vectors", k_tail=1), tail)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_is_like_the_recipient_and_rounded_once(dtype):
    recipient, donor = (W.to(d) for W, d in zip(pair((6, 4)), (dtype, torch.float64), strict=True))
    wide = restore(recipient.double(), donor, k_top=2)
    edited = restore(recipient.requires_grad_(), donor, k_top=2)
    assert edited.dtype == dtype and edited.shape == (6, 4) and not edited.requires_grad
    assert torch.equal(edited, wide.to(dtype))
    assert random_vectors(recipient, donor, k_top=2).dtype == dtype


def test_zero_and_rank_deficient_matrices():
    donor, zero = gaussian(5, 4, seed=1), torch.zeros(5, 4)
    assert torch.equal(restore(zero, donor), zero)
    assert torch.equal(random_vectors(zero, donor), zero)
    np.testing.assert_allclose(restore(zero.double(), donor, "values").norm(), donor.norm())
    thin = gaussian(5, 2) @ gaussian(2, 4, seed=1)
    np.testing.assert_allclose(restore(thin, donor), rebuilt(spectrum(donor), spectrum(thin)), atol=1e-13)


@pytest.mark.parametrize("edit", [restore, random_vectors, random_signs])
def test_either_matrix_may_be_given_as_its_spectrum(edit, monkeypatch):
    recipient, donor = pair((6, 4))
    expected, spectra = edit(recipient, donor, k_top=3), (spectrum(recipient), spectrum(donor))
    monkeypatch.setattr("oodlib.spectral.svd.spectrum", lambda *_: pytest.fail("decomposed again"))
    assert torch.equal(edit(*spectra, k_top=3), expected)


def test_chosen_indices_are_restored():
    recipient, donor = pair((6, 4))
    expected = term_by_term(recipient, donor, "vectors", {1, 3})
    np.testing.assert_allclose(restore(recipient, donor, indices=[1, 3]), expected, atol=1e-12)


@pytest.mark.parametrize("edit", [restore, random_vectors, random_signs])
def test_unfit_matrices_are_named(edit):
    recipient, donor = pair((6, 4))
    with pytest.raises(ValueError, match=r"recipient and donor: shapes differ, \(6, 4\) and \(4, 6\)"):
        edit(recipient, spectrum(donor.T))
    with pytest.raises(ValueError, match="donor: 24 of 24 entries are NaN"):
        edit(recipient, donor * math.nan)
    with pytest.raises(ValueError, match="recipient: 24 of 24 entries are inf"):
        edit(recipient / 0, donor)
    with pytest.raises(ValueError, match="recipient: expected a 2-D matrix"):
        edit(recipient[0], donor[0])
    with pytest.raises(ValueError, match=r"k_top \+ k_tail must be at most 4, got 5 \+ 0"):
        edit(recipient, donor, k_top=5)
    with pytest.raises(ValueError, match="k -1: allowed are"):
        edit(recipient, donor, k_top=-1)


def test_unknown_parts_and_too_many_indices_are_named():
    recipient, donor = pair((6, 4))
    with pytest.raises(ValueError, match="unknown part 'vector'; allowed: vectors, values"):
        restore(recipient, donor, "vector")
    with pytest.raises(ValueError, match=r"k_top \+ k_tail must be at most 4, got 3 \+ 2"):
        restore(recipient, donor, k_top=3, k_tail=2)


# random_turn and random_vectors


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def testrandom_frames_favour_no_sign_and_stay_outside():
    draws = generator()
    H = torch.stack([random_frame(torch.zeros(3, 0).double(), 3, draws) for _ in range(600)])
    np.testing.assert_allclose(H.mean(0), 0, atol=0.12)  # 5 standard errors; QR's own signs would give -0.5
    np.testing.assert_allclose((H**2).mean(0), 1 / 3, atol=0.06)
    U = torch.tensor(frame(64, 63))  # little of a Gaussian vector is outside: one projection loses digits
    assert max((U.T @ random_frame(U, 1, draws)).abs().max() for _ in range(200)) < 5e-15


@pytest.mark.parametrize("m", [1, 2, 5, 8])
@pytest.mark.parametrize("scale", [1e-6, 0.1, 10.0])
def test_random_turn_keeps_every_angle_in_other_directions(m, scale):
    for k in range(1, m + 1):
        U = frame(m, m, seed=k)[:, :k]
        A = np.linalg.qr(U + scale * gaussian(m, k, seed=k + 1).numpy())[0]
        A *= np.sign((U * A).sum(0))
        turned = random_turn(torch.tensor(U), torch.tensor(A), generator()).numpy()
        np.testing.assert_allclose(turned.T @ turned, np.eye(k), atol=1e-13)
        np.testing.assert_allclose(cosines_and_sines(U, turned), cosines_and_sines(U, A), atol=1e-13)
        np.testing.assert_allclose(np.linalg.norm(turned - U), np.linalg.norm(A - U), atol=1e-12)
        # The invariants of U^T A under conjugation: with k = m these are the angles of the rotation itself.
        for power in (1, 2, 3):
            got, expected = (np.trace(np.linalg.matrix_power(U.T @ X, power)) for X in (turned, A))
            assert got == pytest.approx(expected, abs=1e-12)
        if m >= 5 and scale == 0.1:
            assert np.linalg.norm(turned - A) > 0.1 * np.linalg.norm(A - U)


def test_random_turn_of_no_rotation_is_none():
    U = torch.tensor(frame(6, 3))
    np.testing.assert_allclose(random_turn(U, U, generator()), U, atol=1e-14)


def test_random_turn_spreads_evenly():
    """A turn of one vector towards one axis becomes, on average, one of all vectors towards all outside."""
    U, A = torch.eye(6, 3, dtype=torch.float64), torch.eye(6, 3, dtype=torch.float64)
    A[[0, 3], 0] = torch.tensor([math.cos(1.0), math.sin(1.0)], dtype=torch.float64)
    draws = generator()
    outside = torch.stack([random_turn(U, A, draws)[3:] for _ in range(600)])
    share = math.sin(1.0) ** 2 / 9  # of the squared sine to each of 3 x 3 entries; each mean errs by about 6 %
    np.testing.assert_allclose((outside**2).mean(0), share, rtol=0.3)
    np.testing.assert_allclose(outside.mean(0), 0, atol=0.06)


@pytest.mark.parametrize("null", [random_vectors, random_signs])
@pytest.mark.parametrize("shape", [*SHAPES, (12, 5), (5, 12)])
def test_a_null_turn_has_the_donor_s_principal_angles_for_every_k(shape, null):
    r = min(shape)
    _, donor = pair(shape)
    b = spectrum(donor)
    for k in range(1, r + 1):
        # A recipient of rank k is edited to U' S V'^T, whose leading singular vectors are U' and V'.
        U, V = frame(shape[0], k, seed=2), frame(shape[1], k, seed=3)
        recipient = torch.tensor((U * np.arange(k, 0, -1.0)) @ V.T)
        left, values, right_t = np.linalg.svd(null(recipient, donor, k).numpy())
        np.testing.assert_allclose(values[:k], np.arange(k, 0, -1.0), atol=1e-10)
        np.testing.assert_allclose(values[k:], 0, atol=1e-10)
        for base, turned, other in ((U, left, b.left), (V, right_t.T, b.right)):
            expected = cosines_and_sines(base, other[:, :k].numpy())
            np.testing.assert_allclose(cosines_and_sines(base, turned[:, :k]), expected, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_null_turn_of_everything_keeps_the_singular_values(shape):
    recipient, donor = pair(shape)
    for null in (random_vectors, random_signs):
        np.testing.assert_allclose(values_of(null(recipient, donor)), values_of(recipient), atol=1e-12)


@pytest.mark.parametrize("shape", [*SHAPES, (12, 5), (5, 12)])
def test_random_signs_move_as_far_as_the_donor_s_vectors_and_mix_each_pair_as_much(shape):
    recipient, donor = pair(shape)
    own = spectrum(recipient)
    for k in range(1, min(shape) + 1):
        real = restore(recipient, donor, k_top=k) - recipient
        null = random_signs(recipient, donor, k, seed=4) - recipient
        assert float(null.norm()) == pytest.approx(float(real.norm()), rel=1e-10)
        real, null = (own.left[:, :k].T @ change @ own.right[:, :k] for change in (real, null))
        np.testing.assert_allclose(null.abs(), real.abs(), atol=1e-12)
        if k > 3:
            assert (null - real).norm() > 0.1 * real.norm()
    assert torch.equal(random_signs(recipient, donor, seed=1), random_signs(recipient, donor, seed=1))


def test_random_vectors_leaves_the_terms_after_k_top():
    recipient, donor = pair((6, 5))
    own = spectrum(recipient)
    tail = (own.left[:, 2:] * own.values[2:]) @ own.right[:, 2:].T
    turned = random_vectors(recipient, donor, k_top=2) - tail
    np.testing.assert_allclose(values_of(turned), [*own.values[:2], 0, 0, 0], atol=1e-12)
    assert torch.equal(random_vectors(recipient, donor, k_top=0), recipient)


def test_a_donor_equal_to_the_recipient_up_to_signs_turns_nothing():
    recipient = gaussian(6, 5)
    own = spectrum(recipient)
    signs = torch.tensor([-1.0, 1, -1, 1, -1])
    other = dataclasses.replace(own, short=own.short * signs, given=own.long * signs)
    edited = random_vectors(own, other)
    np.testing.assert_allclose(edited, recipient, atol=1e-13)


def test_a_small_rotation_stays_small():
    recipient = gaussian(6, 5)
    edited = random_vectors(recipient, recipient + 1e-9 * gaussian(6, 5, seed=1))
    assert 1e-10 < (edited - recipient).norm() < 1e-7


def test_seeds_draw_and_left_and_right_are_independent():
    recipient, donor = pair((6, 6))
    first = random_vectors(recipient, donor, seed=1)
    assert torch.equal(first, random_vectors(recipient, donor, seed=1))
    assert (first - random_vectors(recipient, donor, seed=2)).norm() > 0.1
    # Symmetric positive matrices have equal left and right vectors; equal draws would keep the symmetry.
    turned = random_vectors(recipient @ recipient.T, donor @ donor.T, seed=1)
    assert (turned - turned.T).norm() > 0.1


# edits of a model

Q, UP, EMBED = "model.layers.1.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"


def models():
    names = (Q, UP, EMBED, "model.layers.0.norm.weight")
    return ({name: gaussian(4, 3, seed=s + i) for i, name in enumerate(names)} for s in (0, 9))


@pytest.mark.parametrize(
    ("where", "chosen"),
    [({}, {Q, UP}), ({"layers": range(1)}, {UP}), ({"layers": [1], "embeddings": True}, {Q, EMBED})],
)
def test_an_edit_replaces_the_chosen_matrices_only(where, chosen):
    recipient, donor = models()
    before, edit = {name: W.clone() for name, W in recipient.items()}, Edit("vectors", 2, **where)
    edited = edit.state(recipient, donor)
    assert set(edit.chosen(recipient)) == chosen and list(edited) == list(recipient)
    for name, weight in recipient.items():
        if name in chosen:
            assert torch.equal(edited[name], restore(weight, donor[name], k_top=2))
        else:
            assert edited[name] is weight
        assert torch.equal(weight, before[name])
    spectra = {name: (spectrum(recipient[name]), spectrum(donor[name])) for name in chosen}
    again = edit.state(recipient, donor, spectra)
    assert all(torch.equal(again[name], edited[name]) for name in recipient)


def test_an_edit_s_parts_are_the_functions_of_matrices():
    recipient, donor = pair((6, 4))
    seed = 7 + crc32(b"a")
    for edit, expected in (
        (Edit(), restore(recipient, donor)),
        (Edit("values", 0.5, "25%"), restore(recipient, donor, "values", 2, 1)),
        (Edit("vectors", 0.0, 0.5), restore(recipient, donor, k_top=0, k_tail=2)),
        (Edit("random", 0.5, seed=7), random_vectors(recipient, donor, 2, seed)),
        (Edit("signs", "50%", seed=7), random_signs(recipient, donor, 2, seed)),
        (Edit("noise", 2, seed=7), random_change(recipient, restore(recipient, donor, k_top=2), seed)),
    ):
        assert torch.equal(edit.matrix("a", recipient, donor), expected)
        given = edit.matrix("a", spectrum(recipient), spectrum(donor))
        torch.testing.assert_close(given, expected)


def test_ends_of_a_spectrum():
    assert ends(None, 0, 7) == (7, 0) and ends(None, 2, 7) == (0, 2) and ends("20%", 1, 7) == (1, 1)
    assert ends(0.5, 0.5, 7) == (4, 3)  # 3.5 and 3.5, both rounded up, are one too many
    with pytest.raises(ValueError, match=r"k_top \+ k_tail must be at most 7, got 6 \+ 2"):
        ends(6, 2, 7)


def test_an_edit_names_what_does_not_fit():
    for wrong, complaint in (
        ({"part": "both"}, "unknown part 'both'; allowed: vectors, values, whole, random, signs, noise"),
        ({"part": "noise", "of": "random"}, "unknown part 'random'; allowed: vectors, values, whole"),
        ({"part": "signs", "tail": 0.1}, "part 'signs' edits leading directions only, not a tail"),
        ({"part": "random", "of": "whole"}, "part 'random' is a null of vectors, not of whole"),
        ({"part": "whole", "top": 0.5}, "part 'whole' takes the whole weight"),
        ({"part": "noise", "of": "whole", "top": 2}, "part 'whole' takes the whole weight"),
        ({"part": "values", "rows": [1]}, "rows are edited whole, not their values"),
    ):
        with pytest.raises(ValueError, match=complaint):
            Edit(**wrong)
    recipient, donor = models()
    with pytest.raises(ValueError, match=rf"{Q}: missing in the donor"):
        Edit().state(recipient, {UP: donor[UP]})
    with pytest.raises(ValueError, match=rf"{UP}: shapes differ, \(4, 3\) and \(3, 4\)"):
        Edit().state(recipient, donor | {UP: donor[UP].T})


# the edits of a run, by name, against numpy

PLAIN = {"Q": 6, "11": 3, "12": 5}


class Model:
    """What `operate` asks of a model and its tokenizer: tensors by name, and words that are tokens."""

    unk_token_id = 0

    def __init__(self, tensors):
        self.tensors = tensors

    def state_dict(self):
        return dict(self.tensors)

    def load_state_dict(self, state):
        self.edited = state

    def to(self, dtype):
        return self

    def encode(self, word, add_special_tokens):
        return [PLAIN[word]] if word in PLAIN else [0] if len(word) == 1 else [1, 2]


def small_model(seed, tied=False):
    tensors = {"model.embed_tokens.weight": gaussian(7, 4, seed=seed)}
    for layer in range(3):
        for i, (name, *shape) in enumerate((("q_proj.weight", 4, 4), ("q_proj.bias", 4), ("up_proj.weight", 6, 4))):
            tensors[f"model.layers.{layer}.mlp.{name}"] = gaussian(*shape, seed=seed + 10 * layer + i + 1)
        tensors[f"model.layers.{layer}.norm.weight"] = gaussian(4, seed=seed + 10 * layer + 5)
    tensors["model.norm.weight"] = gaussian(4, seed=seed + 40)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] if tied else gaussian(7, 4, seed=seed + 41)
    return tensors


@pytest.fixture
def operated(monkeypatch):
    """Makes one edit of `stages.edits` on small models: recipient, donor, the edited state, the relative distance."""

    def operated(name, arguments, tied=False):
        model, donor = Model(small_model(0, tied)), small_model(100, tied)
        if tied:  # as safetensors keeps it
            del donor["lm_head.weight"]
        monkeypatch.setattr(stage, "load_model", lambda folder, to_train: (model, model))
        monkeypatch.setattr(stage, "load_weights", lambda folder: donor)
        monkeypatch.setattr(stage, "evaluate_model", lambda *_: {"measurements": as_measurements([])})
        monkeypatch.setattr(Run, "peak_step", lambda run, seed: 2)
        tables = stage.operate(Run(load_config("tiny")), 10, name, **arguments)
        (row,) = tables["measurements"].to_dict("records")
        assert row["arm"] == name and row["metric"] == "relative_distance" and row["from_step"] == 2
        return model.tensors, donor, model.edited, row["value"]

    return operated


def made_edits(**changes):
    return edits(load_config("tiny", {"surgery": {"words": ["11", "12"], **changes}}))


def places(where, tensors):
    """What an edit may change, by name: a mask."""
    outer = ("model.embed_tokens.weight", "lm_head.weight")
    for name, W in tensors.items():
        layer = int(name.split(".")[2]) if ".layers." in name else None
        mask = np.zeros(W.shape, bool)
        if where in ("projections", "every matrix"):
            mask[:] = "_proj.weight" in name or (where == "every matrix" and name in outer)
        elif where == "numbers" and name in outer:
            mask[[3, 5]] = True
        elif where.endswith("embeddings") and name in outer:
            mask[:] = True
        elif where.startswith("layers"):
            mask[:] = layer is not None and layer < int(where.split()[1])
        yield name, mask


def by_hand(part, end, recipient, donor):
    if part == "whole" or recipient.ndim < 2:
        return donor.numpy()
    kind, share = end.split() if end else ("top", 1)
    r = min(recipient.shape)
    k = max(1, round(float(share) * r))
    chosen = set(range(k) if kind == "top" else range(r - k, r))
    return term_by_term(recipient, donor, part, chosen)


@pytest.mark.parametrize("tied", [False, True])
def test_every_edit_of_the_preset_is_what_its_name_says(operated, tied):
    for name, arguments in made_edits(layers=[1, 2], shares=[0.5, 1.0], tail_shares=[0.25], draws=2).items():
        words, draw = name.split(", "), None
        if words[-1].startswith("draw"):
            draw = words.pop()
        null, _, part = words[0].rpartition(" for ")
        recipient, donor, edited, distance = operated(name, arguments, tied)
        moved, size, other_way = 0.0, 0.0, False
        for tensor, mask in places(words[1], recipient):
            own, other, new = recipient[tensor], donor.get(tensor), edited[tensor].numpy()
            if tied and tensor == "lm_head.weight":
                assert edited[tensor] is edited["model.embed_tokens.weight"]
                continue
            assert np.array_equal(new[~mask], own.numpy()[~mask]), (name, tensor)
            if not mask.any():
                continue
            moved, size = moved + ((new - own.numpy()) ** 2).sum(), size + (own.numpy() ** 2).sum()
            expected = np.where(mask, by_hand(part, "".join(words[2:]), own, other), own.numpy())
            real, got = (np.linalg.norm(W - own.numpy()) for W in (expected, new))
            if not null:
                np.testing.assert_allclose(new, expected, atol=1e-10, err_msg=f"{name}: {tensor}")
            elif null == "random" and not words[2:]:
                np.testing.assert_allclose(values_of(new), values_of(own), atol=1e-10)
            elif null != "random":
                assert got == pytest.approx(real, rel=1e-9), (name, tensor)
            other_way |= not np.allclose(new, expected, atol=1e-6)
        assert distance == pytest.approx((moved / size) ** 0.5)
        assert bool(null) == bool(draw) == other_way, name


def test_edits_are_named_as_the_field_reads_them():
    assert edit_name("vectors", "every matrix") == "vectors, every matrix"
    assert edit_name("vectors", "every matrix", 0.25) == "vectors, every matrix, top 0.25"
    assert edit_name("whole", "layers 1 and embeddings") == "whole, layers 1 and embeddings"
    assert edit_name("noise", "embeddings", draw=0, of="whole") == "noise for whole, embeddings, draw 0"
    assert edit_name("random", "projections", 0.5, 1, "vectors") == "random for vectors, projections, top 0.5, draw 1"
    assert edit_name("vectors", "projections", tail=0.25) == "vectors, projections, tail 0.25"


def test_a_configuration_lists_its_edits_each_once():
    every = made_edits(layers=[1, 2], shares=[0.25, 1.0], tail_shares=[0.25], draws=1)
    jobs = [job for (wave,) in [waves(load_config("tiny"), "surgery")] for job in wave]
    assert len({job.name for job in jobs}) == len(jobs) == len(edits(load_config("tiny"))) <= 36
    assert not any("," in job.name or " " in job.name for job in jobs)
    where = {name.split(", ")[1] for name in every}
    layers = {f"layers {n}{more}" for n in (1, 2) for more in ("", " and embeddings")}
    assert where == {"projections", "every matrix", "embeddings", "numbers"} | layers
    real = [name for name in every if "draw" not in name]
    for name in real:  # its nulls
        part, rest = name.split(", ", 1)
        nulls = {"vectors": ("random", "signs", "noise"), "whole": ("noise",), "values": ()}[part]
        nulls = () if "tail" in name else nulls
        assert {n for n in every if n.endswith(f" for {part}, {rest}, draw 0")} == {
            f"{null} for {part}, {rest}, draw 0" for null in nulls
        }
    assert not [n for n in made_edits(draws=0) if "draw" in n]
    assert {n.split(", ")[1] for n in made_edits(embeddings=False, words=[], layers=[1])} == {"projections", "layers 1"}
    for rows in every.values():  # what a job's key can hold
        assert json.loads(json.dumps(rows)) == rows


def test_other_donors_than_the_peak_make_jobs_of_their_own(monkeypatch):
    alone, more = (
        [job for (wave,) in [waves(load_config("tiny", {"surgery.donors": donors}), "surgery")] for job in wave]
        for donors in ([], [4, 20])
    )
    assert len(more) == 3 * len(alone) == 3 * len({job.arguments["name"] for job in more})
    assert {job.arguments.get("donor") for job in more} == {None, 4, 20} and not any(" " in job.name for job in more)
    asked = []
    monkeypatch.setattr(Run, "peak_step", lambda run, seed: 400)
    monkeypatch.setattr(Run, "sft_weights", lambda run, seed, step: step)
    monkeypatch.setattr(stage, "load_model", lambda folder, to_train: (Model(small_model(0)), Model({})))
    monkeypatch.setattr(stage, "load_weights", lambda folder: asked.append(folder) or small_model(100))
    monkeypatch.setattr(stage, "evaluate_model", lambda *_: {"measurements": as_measurements([])})
    run = Run(load_config("tiny"))
    assert stage.operate(run, 10, "vectors, projections")["measurements"].empty, "the peak is the end"
    assert stage.operate(run, 10, "vectors, projections", donor=20)["measurements"]["from_step"].tolist() == [20]
    assert asked == [20]


def test_words_must_be_tokens():
    tokenizer = Model({})
    assert stage.token_ids(tokenizer, ["12", "11"]) == [5, 3]
    with pytest.raises(ValueError, match="not one token of the model's tokenizer: '21', 'x'"):
        stage.token_ids(tokenizer, ["11", "21", "x"])  # two tokens; the unknown token
    check(load_config("smoke", {"surgery.words": ["11", "J"]}))
    with pytest.raises(ValueError, match="tokenizer: '11 12', 'eleven'"):
        check(load_config("smoke", {"surgery.words": ["11", "11 12", "eleven"]}))


def test_noise_for_rows_and_vectors_stays_where_the_edit_is():
    recipient, donor = gaussian(6, 4), gaussian(6, 4, seed=1)
    moved = Edit("noise", of="whole", rows=[4, 1], seed=3).matrix(EMBED, recipient, donor) - recipient
    assert set(moved.norm(dim=1).nonzero().flatten().tolist()) == {1, 4}
    assert float(moved.norm()) == pytest.approx(float((donor - recipient)[[1, 4]].norm()))
    assert torch.equal(Edit("whole", rows=[2]).matrix(EMBED, recipient, donor)[2], donor[2])
    norm = random_change(recipient[0], donor[0], seed=1)
    assert norm.shape == (4,)
    assert float((norm - recipient[0]).norm()) == pytest.approx(float((donor - recipient)[0].norm()))


def test_a_transplant_leaves_layers_that_text_does_not_reach():
    names = ("model.layers.0.norm.weight", "vision_model.layers.0.norm.weight", "model.layers.1.norm.weight")
    assert Edit("whole", layers=[0]).chosen({name: torch.ones(3) for name in names}) == [names[0]]


# the figure


def table(splits, seeds=(10,), names=()):
    """Accuracy by split and seed at steps 0, 8 and 600, and of edits: the i-th brings i points."""
    rows = []
    for seed in seeds:
        for s, split in enumerate(splits):
            accuracies = {0: 0.1, 8: 0.8 - 0.1 * s, 600: 0.05 + 0.01 * s}
            rows += [("sft", "sft", 0, step, seed, split.name, "accuracy", v, 400) for step, v in accuracies.items()]
            for i, name in enumerate(names):
                rows.append(("surgery", name, 8, 600, seed, split.name, "accuracy", 0.01 * i + 0.02 * s, 400))
    return pd.DataFrame(rows, columns=COLUMNS)


def test_the_surgery_figure_shows_every_edit_under_its_group(smallest_text, texts_on_texts):
    splits, names = get_task("general_points").splits, list(edits(load_config("tiny")))
    style()
    figure = surgery(table(splits, names=names), splits)
    headline, trained, others = figure.axes
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["OOD", "ID", "other splits"]
    texts = [text.get_text() for text in headline.get_yticklabels()]
    groups = ["official edits", "without embeddings", "embeddings and head alone", "rows of some words alone"]
    assert [t for t in texts if t in groups] == groups
    real = [name for name in names if "draw" not in name]
    assert len(texts) == len(real) + len(groups)
    assert texts[1:3] == ["first layer, whole", "vectors, leading 25%"]
    nulls = [name for name in names if "draw" in name]
    for axis, split in ((headline, splits.headline), (trained, splits.trained)):
        s = splits.names.index(split.name)
        drawn = {bars.get_label(): bars.lines[0].get_xdata(orig=False) for bars in axis.containers}
        np.testing.assert_allclose(sorted(drawn.pop(f"edit: {split.label}")),
                                   [0.01 * names.index(n) + 0.02 * s for n in real])  # fmt: skip
        by_null = np.sort(np.concatenate(list(drawn.values())))
        np.testing.assert_allclose(by_null, [0.01 * names.index(n) + 0.02 * s for n in nulls])
        levels = {line.get_label(): line.get_xdata()[0] for line in axis.lines if "_" not in line.get_label()}
        assert levels == pytest.approx({"OOD peak": 0.8 - 0.1 * s, "end of SFT": 0.05 + 0.01 * s})
    assert {bars.get_label() for bars in others.containers} == {"edit: new rule", "edit: new numbers"}
    # The line of an edit is that of its name, and its nulls lie right below it.
    y = texts.index("vectors, all")
    at = {}
    for bars in headline.containers:
        xs, ys = (get(orig=False) for get in (bars.lines[0].get_xdata, bars.lines[0].get_ydata))
        at[bars.get_label()] = dict(zip(ys.round(2), xs, strict=True))
    first = 0.02 * splits.names.index(splits.headline.name)
    assert at["edit: OOD"][round(y - 0.18, 2)] == pytest.approx(first + 0.01 * names.index("vectors, every matrix"))
    noise = [x for height, x in at["null: noise"].items() if y < height < y + 0.5]
    assert noise == pytest.approx([first + 0.01 * names.index("noise for vectors, every matrix, draw 0")])
    assert figure.get_figwidth() <= 9.2 and smallest_text(figure) >= 9 and not texts_on_texts(figure)
    plt.close(figure)


def test_the_surgery_figure_needs_no_further_splits_no_nulls_and_takes_seeds():
    splits = Splits(Split("train", "seen", (), "#000000"), Split("far", "unseen", ("distance",), "#D55E00"))
    figure = surgery(table(splits, (1, 2, 3), ["vectors, projections", "whole, layers 3"]), splits)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["unseen", "seen"]
    texts = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert texts == ["without embeddings", "first 3 layers, whole", "vectors, all"]
    plt.close(figure)


def test_the_surgery_figure_shows_one_donor_and_says_where_there_is_none():
    splits = get_task("general_points").splits
    rows = table(splits, names=["vectors, projections"])
    other = rows.query("stage == 'surgery'").assign(from_step=4, value=0.5)
    before = rows.query("stage == 'sft' and step == 8").assign(step=4, value=0.3)
    every = pd.concat([rows, other, before])
    for donor, name, value in ((None, "OOD peak", 0.06), (4, "donor, step 4", 0.5)):
        axis = surgery(every, splits, donor).axes[0]
        assert name in {line.get_label() for line in axis.lines}
        (bars,) = axis.containers
        assert bars.lines[0].get_xdata(orig=False) == pytest.approx([value])
    (axis,) = surgery(rows.query("stage == 'sft'"), splits).axes
    assert "nothing of an earlier checkpoint" in axis.texts[0].get_text()
    plt.close("all")


def test_random_change_moves_as_far_in_another_direction():
    recipient, edited = torch.randn(12, 7), torch.randn(12, 7)
    moved = random_change(recipient, edited, seed=1)
    assert float((moved - recipient).norm()) == pytest.approx(float((edited - recipient).norm()), rel=1e-6)
    cosine = ((moved - recipient) * (edited - recipient)).sum() / (edited - recipient).norm() ** 2
    assert abs(float(cosine)) < 0.5
    assert torch.equal(moved, random_change(recipient, edited, seed=1))
    assert not torch.equal(moved, random_change(recipient, edited, seed=2))
    with pytest.raises(ValueError, match="shapes differ"):
        random_change(recipient, edited[:3])
