"""The loss that verl calls, against a plain computation token by token; one process, no Ray."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from caopd_verl.config import CaopdConfig, LossConfig
from caopd_verl.losses.divergence import reference_divergence

from .rows import V, loss_of, make_row, mixed_rows, random_tables

pytestmark = pytest.mark.usefixtures("verl_on_cpu")


@pytest.fixture
def tables():
    return random_tables()


def dense(config, tables, rows, *, old=None):
    """The same loss token by token, in fp64 and without packing, from the definition; full vocabulary."""
    student, teacher = (t.double() for t in tables)
    trained = [row for row in rows if row.n_trained]
    full = [row for row in trained if not row.trajectory.confidence_only]
    if config.loss.average == "token":
        share = dict.fromkeys(
            (row.key for row in trained), 1 / sum(row.n_trained for row in trained)
        )
    else:
        mean = sum(row.n_trained for row in full) / len(full)
        sizes = {row.key: row.n_trained if row in full else mean for row in trained}
        denominator = sum(row.n_trained / sizes[row.key] for row in trained)
        share = {key: 1 / size / denominator for key, size in sizes.items()}
    total, position = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        ids = row.trajectory.token_ids if row.n_trained else row.trajectory.token_ids[:1]
        previous = [row.prompt_ids[-1], *ids]
        shown = [(row.teacher_prompt_ids or (0,))[-1], *ids]  # the teacher has a prompt of its own
        for i, token in enumerate(ids):
            position += 1
            if not (row.n_trained and row.trajectory.trained_mask[i]):
                continue
            logits_s, logits_t = student[previous[i]], teacher[shown[i]]
            alpha = (
                config.confidence_alpha if row.trajectory.confidence_mask[i] else config.loss.alpha
            )
            d = reference_divergence(
                logits_s[None], logits_t[None], alpha_T=torch.tensor([alpha]), temperature=1.0
            )[0]
            now = float(logits_s.log_softmax(-1)[token])
            before = now if old is None else float(old[position - 1])
            weight = min(math.exp(now - before), config.loss.is_clip)
            if i < row.trajectory.n_kept and config.loss.tis_clip is not None:
                weight *= min(math.exp(before - row.rollout_log_probs[i]), config.loss.tis_clip)
            total = total + share[row.key] * weight * d
    return total


def gradient(loss, table):
    return torch.autograd.grad(loss, table)[0]


SETTINGS = {
    "paper": {},
    "proper": {"confidence_alpha": 0.0, "average": "token"},
    "jsd": {"alpha": 0.5, "tis_clip": None},
    "tight clips": {"is_clip": 0.9, "tis_clip": 1.1},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("with_old", [False, True], ids=["one mini-batch", "old log-probs"])
def test_loss_and_gradient_are_those_of_the_definition(tables, name, with_old):
    config = CaopdConfig(loss=LossConfig(**{"top_k": None, "chunk_tokens": 5, **SETTINGS[name]}))
    rows = mixed_rows()
    n = sum(len(r.trajectory.token_ids) if r.n_trained else 1 for r in rows)
    old = -4 * torch.rand(n) if with_old else None
    found, _ = loss_of(config, tables, rows, old=old)
    expected = dense(config, tables, rows, old=old)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(
        gradient(found, tables[0]), gradient(expected, tables[0]).float(), rtol=1e-4, atol=1e-6
    )


def test_k_of_the_whole_vocabulary_equals_null(tables):
    rows = mixed_rows()
    losses = [
        float(loss_of(CaopdConfig(loss=LossConfig(top_k=k)), tables, rows)[0].detach())
        for k in (None, V)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_gradient_is_exactly_zero_where_nothing_is_trained(tables):
    """Tokens that stand only before untrained tokens get no gradient at all."""
    rows = [
        make_row(0, kind="confidence_only", n_prompt=5, n_response=8),
        make_row(1, kind="masked"),
        make_row(4),
    ]
    row = rows[0]
    weights = [torch.tensor(row.trajectory.trained_mask).float(), torch.zeros(6), torch.zeros(6)]
    config = CaopdConfig(loss=LossConfig(top_k=10))
    loss, _ = loss_of(config, tables, rows, weights)
    touched = gradient(loss, tables[0]).abs().sum(-1).nonzero().flatten().tolist()
    previous = [row.prompt_ids[-1], *row.trajectory.token_ids]
    assert set(touched) == {
        previous[i] for i, trained in enumerate(row.trajectory.trained_mask) if trained
    }


def test_zero_loss_and_gradient_where_student_is_teacher(tables):
    config = CaopdConfig(loss=LossConfig(top_k=6, confidence_alpha=0.0))
    student = tables[0]
    rows = [
        replace(r, teacher_prompt_ids=r.teacher_prompt_ids and [9, *r.prompt_ids])
        for r in mixed_rows()
    ]
    loss, _ = loss_of(config, (student, student.detach().clone()), rows)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-7)
    assert gradient(loss, student).abs().max() < 1e-6


def test_t8_a_forced_value_pulls_only_as_far_as_the_teacher_takes_it_up(tables):
    """A written p_hat is no label: where the teacher ignores it the student is not moved, and the metric says so."""
    config = CaopdConfig(loss=LossConfig(top_k=6, confidence_alpha=0.0))
    student, other = tables
    rows = [make_row(0, ids=[5, 6, 7, 8, value, 2]) for value in (10, 20)]
    rows = [replace(row, teacher_prompt_ids=[9, *row.prompt_ids]) for row in rows]

    deaf = student.detach().clone()  # says the same whatever its context states
    for row in rows:
        loss, metrics = loss_of(config, (student, deaf), [row])
        assert gradient(loss, student)[8].abs().max() < 1e-6, "the value is predicted from token 8"
        assert metrics["sum/value_teacher_prob"].aggregate() == pytest.approx(
            metrics["sum/value_student_prob"].aggregate(), rel=1e-5
        )
    for row, value in zip(rows, (10, 20), strict=True):
        copying = other.clone()
        copying[8, value] = 20.0
        loss, metrics = loss_of(config, (student, copying), [row])
        assert metrics["sum/value_teacher_prob"].aggregate() > 0.99
        assert gradient(loss, student)[8, value] < 0, "descent raises the value's logit"


@pytest.mark.parametrize(
    "split", [[[0], [1], [2], [3], [4], [5]], [[5, 0, 3], [4, 2, 1]], [[2, 1], [0, 5, 4, 3]]]
)
def test_micro_batches_of_any_size_and_order_sum_to_the_whole(tables, split):
    from caopd_verl.verl_ext import codec

    config = CaopdConfig(loss=LossConfig(top_k=6, confidence_alpha=0.0))
    rows = mixed_rows()
    weights = codec.loss_weights(rows, config.loss)
    whole, metrics = loss_of(config, tables, rows)
    parts = [
        loss_of(config, tables, [rows[i] for i in part], [weights[i] for i in part])
        for part in split
    ]
    total = sum(loss for loss, _ in parts)
    assert float(total.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)
    torch.testing.assert_close(
        gradient(total, tables[0]), gradient(whole, tables[0]), rtol=1e-5, atol=1e-7
    )
    for name, metric in metrics.items():
        assert sum(m[name].aggregate() for _, m in parts) == pytest.approx(
            metric.aggregate(), rel=1e-5, abs=1e-7
        )


@pytest.mark.parametrize(("dp_size", "n_mini_batches"), [(2, 1), (1, 4), (2, 3)])
def test_scaled_by_ranks_whose_gradients_are_averaged_and_by_mini_batches(
    tables, dp_size, n_mini_batches
):
    config, rows = CaopdConfig(loss=LossConfig(top_k=6)), mixed_rows()
    plain = loss_of(config, tables, rows)[0]
    scaled = loss_of(config, tables, rows, dp_size=dp_size, n_mini_batches=n_mini_batches)[0]
    assert float(scaled.detach()) == pytest.approx(
        dp_size * n_mini_batches * float(plain.detach()), rel=1e-6
    )


@pytest.mark.parametrize("average", ["sequence", "token"])
def test_ranks_with_uneven_rows_average_to_the_loss_of_one_rank(tables, average):
    """FSDP averages the ranks' gradients, however few trained tokens one of them has."""
    from caopd_verl.verl_ext import codec

    config = CaopdConfig(loss=LossConfig(top_k=6, average=average))
    rows = mixed_rows()
    weights = codec.loss_weights(rows, config.loss)
    whole = gradient(loss_of(config, tables, rows)[0], tables[0])
    ranks = [
        gradient(
            loss_of(config, tables, [rows[i] for i in own], [weights[i] for i in own], dp_size=2)[
                0
            ],
            tables[0],
        )
        for own in ([0, 5, 2], [1, 3, 4])
    ]
    torch.testing.assert_close(sum(ranks) / 2, whole, rtol=1e-5, atol=1e-7)


def test_t19_sampler_ratios_weigh_kept_tokens_only(tables):
    """Whatever stands for the sampler's log-probs at replaced tokens is never read."""
    config = CaopdConfig(loss=LossConfig(top_k=6, tis_clip=1.5))
    row = make_row(0, n_response=8)
    n = row.trajectory.n_kept
    garbage = (*row.rollout_log_probs[:n], *([float("nan")] * 5))
    loss = loss_of(config, tables, [row])[0]
    assert float(loss_of(config, tables, [replace(row, rollout_log_probs=garbage)])[0]) == float(
        loss
    )
    other = (row.rollout_log_probs[0] + 1.0, *row.rollout_log_probs[1:])
    assert float(loss_of(config, tables, [replace(row, rollout_log_probs=other)])[0]) != float(loss)


def test_t19_a_wholly_replaced_row_is_weighted_as_without_tis(tables):
    row = make_row(0, n_response=8)
    row = replace(row, trajectory=replace(row.trajectory, n_kept=0))
    on, off = (
        float(loss_of(CaopdConfig(loss=LossConfig(top_k=6, tis_clip=clip)), tables, [row])[0])
        for clip in (2.0, None)
    )
    assert on == off


def test_is_weight_is_exactly_one_with_one_mini_batch(tables):
    rows = [make_row(0)]
    tight = CaopdConfig(loss=LossConfig(top_k=6, is_clip=1.0, tis_clip=None))
    wide = CaopdConfig(loss=LossConfig(top_k=6, is_clip=100.0, tis_clip=None))
    assert float(loss_of(tight, tables, rows)[0]) == float(loss_of(wide, tables, rows)[0])
