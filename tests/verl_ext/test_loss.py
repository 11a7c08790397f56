"""The loss that verl calls, against a plain computation token by token; one process, no Ray."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from caopd_verl.config import CaopdConfig, ConfidenceLoss, LossConfig
from caopd_verl.methods import METHODS
from tests.losses.reference import reference_divergence

from .rows import V, loss_of, make_row, mixed_rows, random_tables, weights_of

pytestmark = pytest.mark.usefixtures("verl_on_cpu")


@pytest.fixture
def tables():
    return random_tables()


def dense(config, tables, rows, *, old=None):
    """The same loss token by token, in fp64 and without packing, from the definition."""
    student, teacher = (table.double() for table in tables)
    shares = row_shares(config, rows)
    total, position = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        trajectory = row.trajectory
        is_trained = trajectory.n_trained > 0
        ids = trajectory.token_ids if is_trained else trajectory.token_ids[:1]
        previous = [trajectory.prompt_ids[-1], *ids]
        shown = [(row.teacher_prompt_ids or (0,))[-1], *ids]  # the teacher has its own prompt
        for place, token in enumerate(ids):
            position += 1
            if not is_trained or trajectory.weights[place] == 0:
                continue
            student_V, teacher_V = student[previous[place]], teacher[shown[place]]
            alpha_1 = torch.tensor([trajectory.alphas[place]])
            divergence = reference_divergence(
                student_V[None], teacher_V[None], alpha_T=alpha_1, temperature=1.0
            )[0]
            now = float(student_V.detach().log_softmax(-1)[token])
            before = now if old is None else float(old[position - 1])
            weight = min(math.exp(now - before), config.loss.is_clip)
            if place < trajectory.n_sampled and config.loss.tis_clip is not None:
                ratio = math.exp(before - trajectory.sampler_log_probs[place])
                weight *= min(ratio, config.loss.tis_clip)
            total = total + shares[trajectory.uid] * weight * divergence
    return total


def row_shares(config, rows):
    """The weight of each of a row's trained tokens, by the definition of the two averages."""
    trained = [row.trajectory for row in rows if row.trajectory.n_trained]
    if config.loss.average == "token":
        n_tokens = sum(t.n_trained for t in trained)
        return {t.uid: 1 / n_tokens for t in trained}
    whole = [t for t in trained if t.counts_as == "row"]
    mean = sum(t.n_trained for t in whole) / len(whole)
    sizes = {t.uid: t.n_trained if t in whole else mean for t in trained}
    denominator = sum(t.n_trained / sizes[t.uid] for t in trained)
    return {uid: 1 / size / denominator for uid, size in sizes.items()}


def gradient(loss, table):
    return torch.autograd.grad(loss, table)[0]


def with_the_students_prompt(row):
    """The teacher sees what the student saw (behind one more token)."""
    if row.teacher_prompt_ids is None:
        return row
    return replace(row, teacher_prompt_ids=[9, *row.trajectory.prompt_ids])


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
    rows = mixed_rows((config.loss.alpha, config.confidence_alpha))
    trajectories = [row.trajectory for row in rows]
    n = sum(len(t.token_ids) if t.n_trained else 1 for t in trajectories)
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
        make_row(0, kind="by_tokens", n_prompt=5, n_response=8),
        make_row(1, kind="masked"),
        make_row(4),
    ]
    first = rows[0].trajectory
    weights = [torch.tensor(first.weights), torch.zeros(6), torch.zeros(6)]
    config = CaopdConfig(loss=LossConfig(top_k=10))
    loss, _ = loss_of(config, tables, rows, weights)
    touched = gradient(loss, tables[0]).abs().sum(-1).nonzero().flatten().tolist()
    previous = [first.prompt_ids[-1], *first.token_ids]
    assert set(touched) == {previous[i] for i, weight in enumerate(first.weights) if weight}


def test_zero_loss_and_gradient_where_student_is_teacher(tables):
    config = CaopdConfig(loss=LossConfig(top_k=6, confidence_alpha=0.0))
    student = tables[0]
    rows = [with_the_students_prompt(row) for row in mixed_rows((1, 0))]
    loss, _ = loss_of(config, (student, student.detach().clone()), rows)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-7)
    assert gradient(loss, student).abs().max() < 1e-6


def test_a_forced_value_pulls_only_as_far_as_the_teacher_takes_it_up(tables):
    """A written p_hat is no label: where the teacher ignores it the student is not moved."""
    config = CaopdConfig(loss=LossConfig(top_k=6, confidence_alpha=0.0))
    student, other = tables
    rows = [make_row(0, ids=[5, 6, 7, 8, value, 2], alphas=(1, 0)) for value in (10, 20)]
    rows = [with_the_students_prompt(row) for row in rows]

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
    config = CaopdConfig(loss=LossConfig(top_k=6, confidence_alpha=0.0))
    rows = mixed_rows()
    weights = weights_of(rows, config)
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
    config = CaopdConfig(loss=LossConfig(top_k=6, average=average))
    rows = mixed_rows()
    weights = weights_of(rows, config)
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


def with_sampler_log_probs(row, log_probs):
    return replace(row, trajectory=replace(row.trajectory, sampler_log_probs=tuple(log_probs)))


def test_sampler_ratios_weigh_sampled_tokens_only(tables):
    """Whatever stands for the sampler's log-probs at replaced tokens is never read."""
    config = CaopdConfig(loss=LossConfig(top_k=6, tis_clip=1.5))
    row = make_row(0, n_response=8)
    own = row.trajectory.sampler_log_probs
    n = row.trajectory.n_sampled
    garbage = [*own[:n], *([float("nan")] * (8 - n))]

    def loss(with_row):
        return float(loss_of(config, tables, [with_row])[0].detach())

    assert loss(with_sampler_log_probs(row, garbage)) == loss(row)
    other = [own[0] + 1.0, *own[1:]]
    assert loss(with_sampler_log_probs(row, other)) != loss(row)


def test_a_wholly_replaced_row_is_weighted_as_without_sampler_ratios(tables):
    row = make_row(0, n_response=8)
    row = replace(row, trajectory=replace(row.trajectory, n_sampled=0))
    losses = [
        float(loss_of(CaopdConfig(loss=LossConfig(top_k=6, tis_clip=clip)), tables, [row])[0])
        for clip in (2.0, None)
    ]
    assert losses[0] == losses[1]


def test_terms_add_up_and_are_logged_by_name(tables):
    """A divergence on the words and a cross-entropy on the number, in one loss."""
    config = CaopdConfig(loss=LossConfig(top_k=None), confidence_loss=ConfidenceLoss.cross_entropy)
    terms = METHODS["sdpo_caopd"].loss_terms(config)
    rows = mixed_rows()
    whole, metrics = loss_of(config, tables, rows, terms=terms)
    parts = [loss_of(config, tables, rows, terms=[term])[0] for term in terms]
    assert float(whole.detach()) == pytest.approx(sum(float(part.detach()) for part in parts))
    logged = [metrics[f"sum/term_{term.name}"].aggregate() for term in terms]
    assert logged == pytest.approx([float(part.detach()) for part in parts])
    by_role = metrics["sum/reasoning_loss"].aggregate() + metrics["sum/confidence_loss"].aggregate()
    assert by_role == pytest.approx(float(whole.detach()))


def test_without_a_divergence_no_teacher_is_run(tables):
    from caopd_verl.losses.terms import ConfidenceCrossEntropy

    class NoTeacher:
        def response_logits(self, *_):
            raise AssertionError("nobody reads the teacher")

    config = CaopdConfig()
    student, _ = tables
    loss, metrics = loss_of(
        config, (student, NoTeacher()), mixed_rows(), terms=[ConfidenceCrossEntropy()]
    )
    assert float(loss.detach()) > 0
    assert "sum/value_teacher_prob" not in metrics and "sum/value_student_prob" in metrics
