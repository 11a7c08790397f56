"""Top-k divergence: values, gradients, numerics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from caopd_verl.errors import ConfigError
from caopd_verl.losses.divergence import topk_divergence
from tests.losses.reference import reference_divergence

ALPHAS = [0.0, 0.3, 0.5, 1.0]


def logits(n_tokens, n_vocabulary, *, scale=3.0, seed=0):
    """Student's and teacher's logits, not far from one another."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(n_tokens, n_vocabulary, generator=generator) * scale
    return student, student + torch.randn(n_tokens, n_vocabulary, generator=generator)


def run(student, teacher, *, k, alpha, temperature=1.0, chunk=3, ids=None):
    n_tokens = student.shape[0]
    if not isinstance(alpha, torch.Tensor):
        alpha = torch.full((n_tokens,), float(alpha))
    if ids is None:
        ids = torch.zeros(n_tokens, dtype=torch.long)
    return topk_divergence(
        student, teacher, ids, k=k, alpha_T=alpha, temperature=temperature, chunk_tokens=chunk
    )


def leaves(student):
    """Two copies with gradients of their own: one as it is, one in fp64 for the reference."""
    mine = student.clone().requires_grad_()
    slow = student.clone().double().requires_grad_()
    return mine, slow


def buckets(probs_V, top):
    """Log-probs of the tokens in `top`, and of all others together."""
    is_rest = torch.ones_like(probs_V, dtype=torch.bool)
    is_rest[top] = False
    rest = probs_V[is_rest].sum()
    return torch.cat([probs_V[top], rest[None]]).log()[None]


def bucket_reference(student, teacher, k, alpha):
    """fp64, token by token: the student's k most probable tokens, and the rest as one bucket."""
    alpha_1 = torch.tensor([alpha])
    student_probs = student.double().softmax(-1)
    teacher_probs = teacher.double().softmax(-1)
    losses = []
    for student_V, teacher_V in zip(student_probs, teacher_probs, strict=True):
        top = student_V.topk(k).indices
        pair = buckets(student_V, top), buckets(teacher_V, top)
        losses.append(reference_divergence(*pair, alpha_T=alpha_1, temperature=1.0))
    return torch.cat(losses)


def check_against(expected_T, loss_T, mine, slow, *, rtol=1e-4):
    """Values and gradients are the reference's."""
    assert_close(loss_T.double(), expected_T, rtol=2e-5, atol=1e-6)
    loss_T.sum().backward()
    expected_T.sum().backward()
    assert_close(mine.grad.double(), slow.grad, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("k", [None, 1, 7, 50])
def test_zero_at_equality_with_zero_gradient(alpha, k):
    student, _ = logits(5, 50)
    teacher = student.clone()
    student.requires_grad_()
    loss, _ = run(student, teacher, k=k, alpha=alpha)
    rounding = 0 if alpha in (0.0, 1.0) else 1e-13  # the mixture's logarithm is rounded
    assert (loss >= 0).all()
    assert loss.max() <= rounding
    loss.sum().backward()
    assert student.grad.abs().max() < 1e-7


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("k", [None, 40])
def test_full_vocabulary_equals_the_slow_reference_with_its_gradient(alpha, temperature, k):
    student, teacher = logits(7, 40)
    mine, slow = leaves(student)
    loss, readings = run(mine, teacher, k=k, alpha=alpha, temperature=temperature)
    alpha_T = torch.full((7,), alpha)
    expected = reference_divergence(slow, teacher, alpha_T=alpha_T, temperature=temperature)
    check_against(expected, loss, mine, slow)
    assert_close(readings["topk_mass"], torch.ones(7))


@pytest.mark.parametrize("k", [None, 1, 2])
def test_both_kls_of_two_tokens_in_closed_form(k):
    s, t = 0.8, 0.3
    student, teacher = (torch.tensor([[p, 1 - p]]).log() for p in (s, t))
    reverse = s * math.log(s / t)
    reverse += (1 - s) * math.log((1 - s) / (1 - t))
    forward = t * math.log(t / s)
    forward += (1 - t) * math.log((1 - t) / (1 - s))
    for alpha, expected in ((1.0, reverse), (0.0, forward)):
        loss, _ = run(student, teacher, k=k, alpha=alpha)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("k", [1, 5, 39])
def test_tail_bucket_equals_the_slow_reference_with_its_gradient(alpha, k):
    student, teacher = logits(6, 40)
    mine, slow = leaves(student)
    loss, readings = run(mine, teacher, k=k, alpha=alpha)
    check_against(bucket_reference(slow, teacher, k, alpha), loss, mine, slow)
    top_probs = student.softmax(-1).topk(k).values
    assert_close(readings["topk_mass"], top_probs.sum(-1))


def test_alpha_of_each_token_is_its_own():
    student, teacher = logits(4, 20)
    mixed, _ = run(student, teacher, k=5, alpha=torch.tensor(ALPHAS))
    for position, alpha in enumerate(ALPHAS):
        uniform, _ = run(student, teacher, k=5, alpha=alpha)
        assert mixed[position] == uniform[position]


def test_readings_are_of_the_full_vocabulary_and_detached():
    student, teacher = logits(6, 30)
    ids = torch.arange(6)
    student.requires_grad_()
    _, readings = run(student, teacher, k=3, alpha=1.0, temperature=0.5, ids=ids)
    for model, model_logits in (("student", student.detach()), ("teacher", teacher)):
        log_probs = (model_logits / 0.5).log_softmax(-1)
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        assert_close(readings[f"{model}_log_probs"], log_probs[ids, ids])
        assert_close(readings[f"{model}_entropy"], entropies)
    assert not any(reading.requires_grad for reading in readings.values())


@pytest.mark.parametrize("k", [None, 5])
def test_chunks_change_neither_loss_nor_gradient(k):
    student, teacher = logits(10, 30)
    alpha = torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 1.0])
    results = []
    for chunk in (1, 3, 10, 100):
        mine = student.clone().requires_grad_()
        loss, readings = run(mine, teacher, k=k, alpha=alpha, chunk=chunk)
        loss.sum().backward()
        results.append((loss.detach(), mine.grad, readings["student_entropy"]))
    for other in results[1:]:
        for expected, found in zip(results[0], other, strict=True):
            assert_close(found, expected)


def test_gradient_is_exactly_zero_where_masked_and_never_reaches_the_teacher():
    student, teacher = logits(6, 30)
    student.requires_grad_()
    teacher.requires_grad_()
    loss, _ = run(student, teacher, k=5, alpha=1.0)
    mask = torch.tensor([1, 0, 1, 0, 0, 1]).bool()
    loss[mask].sum().backward()
    assert torch.equal(student.grad[~mask], torch.zeros(3, 30))
    assert (student.grad[mask].abs().sum(-1) > 0).all()
    assert teacher.grad is None


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("k", [None, 2, 6, 10])
def test_infinite_logits_give_no_nan(alpha, k):
    student, teacher = logits(4, 10)
    student[0, 3:] = -math.inf
    teacher[1, :7] = -math.inf
    student[2, 5:] = -math.inf  # and the teacher has its probability where the student has none
    teacher[2, :5] = -math.inf
    student.requires_grad_()
    loss, readings = run(student, teacher, k=k, alpha=alpha)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and (loss >= 0).all()
    assert torch.isfinite(student.grad).all()
    assert all(torch.isfinite(reading).all() for reading in readings.values())


def test_no_tokens_at_all_give_an_empty_loss_with_a_graph():
    student = torch.zeros(0, 10, requires_grad=True)
    loss, readings = run(student, torch.zeros(0, 10), k=3, alpha=1.0)
    loss.sum().backward()
    assert loss.shape == (0,) and student.grad.shape == (0, 10)
    assert all(reading.shape == (0,) for reading in readings.values())


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("k", [100, None])
def test_bf16_logits_never_give_a_negative_divergence(alpha, k):
    """Computed in bf16, top-k probabilities sum to more than 1 and the reverse KL falls below 0."""
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(8, 30_000, generator=generator) * 4
    student[:, 0] += 25
    teacher = student + 0.02 * torch.randn(8, 30_000, generator=generator)
    student, teacher = student.bfloat16(), teacher.bfloat16()
    loss, readings = run(student, teacher, k=k, alpha=alpha, chunk=8)
    assert loss.dtype == torch.float32 and (loss >= 0).all()
    assert (readings["topk_mass"] <= 1 + 1e-6).all()
    if k is None:
        alpha_T = torch.full((8,), alpha)
        slow = reference_divergence(student, teacher, alpha_T=alpha_T, temperature=1.0)
        assert_close(loss.double(), slow, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("gap", [10.0, 18.0, 30.0, 60.0])
def test_the_tails_gradient_is_right_where_the_top_k_hold_nearly_everything(alpha, gap):
    """`log(1 - sum)` would cancel there, and clamped it would have no gradient at all."""
    student = torch.zeros(1, 50)
    student[0, :5] = gap
    teacher = torch.zeros(1, 50)
    teacher[0, 2:9] = gap / 2
    mine, slow = leaves(student)
    loss, _ = run(mine, teacher, k=5, alpha=alpha)
    check_against(bucket_reference(slow, teacher, 5, alpha), loss, mine, slow, rtol=2e-4)
    assert torch.isfinite(mine.grad).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(ALPHAS), st.floats(0.001, 30), st.integers(1, 20))
def test_never_negative_and_never_above_the_full_vocabulary(seed, alpha, scale, k):
    """Merging tokens into a bucket loses information, and with it divergence."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 3, 20, generator=generator) * scale
    top, _ = run(student, teacher, k=k, alpha=alpha)
    full, _ = run(student, teacher, k=None, alpha=alpha)
    assert (top >= 0).all()
    assert (top <= full * (1 + 1e-4) + 1e-5).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 11}, "top-k of 11"),
        ({"k": 0}, "top-k of 0"),
        ({"temperature": 0.0}, "temperature"),
        ({"chunk": 0}, "chunk_tokens"),
        ({"alpha": 1.5}, r"alpha outside \[0, 1\]"),
        ({"alpha": float("nan")}, r"alpha outside \[0, 1\]"),
        ({"alpha": torch.ones(3)}, "alpha"),
        ({"ids": torch.zeros(3, dtype=torch.long)}, "target ids"),
    ],
)
def test_bad_arguments_are_an_error(change, message):
    student, teacher = logits(4, 10)
    with pytest.raises(ConfigError, match=message):
        run(student, teacher, **{"k": 5, "alpha": 1.0, **change})


def test_another_vocabulary_is_an_error():
    student, teacher = logits(4, 10)
    with pytest.raises(ConfigError, match="do not match"):
        run(student, teacher[:, :9], k=5, alpha=1.0)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_bf16_model_against_itself_is_zero_at_any_temperature(temperature, alpha):
    """Divided in bf16 on one side and in fp32 on the other, it was 1e-3 away from itself."""
    student, _ = logits(4, 300, scale=10.0)
    student = student.bfloat16()
    loss, _ = run(student, student.clone(), k=20, alpha=alpha, temperature=temperature)
    assert float(loss.abs().max()) < 1e-7


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_tail_of_no_mass_keeps_its_log(alpha):
    """All but exp(-120) of the student sits in the top k; the teacher looks elsewhere."""
    student = torch.full((1, 6), -120.0)
    student[0, :2] = 0.0
    mine, slow = leaves(student)
    loss, _ = run(mine, torch.zeros(1, 6), k=2, alpha=alpha)
    log_probs = slow.log_softmax(-1)
    tail = log_probs[:, 2:].logsumexp(-1, keepdim=True)
    log_s = torch.cat([log_probs[:, :2], tail], dim=-1)
    log_t = torch.tensor([[1 / 6, 1 / 6, 4 / 6]], dtype=torch.float64).log()
    alpha_1 = torch.tensor([alpha])
    expected = reference_divergence(log_s, log_t, alpha_T=alpha_1, temperature=1.0)
    check_against(expected, loss, mine, slow)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_temperatures_gradient_is_that_of_logits_divided_by_it(alpha):
    """By the chain rule, on the top k with a tail; the full vocabulary has a reference above."""
    student, teacher = logits(5, 30)
    hot = student.clone().requires_grad_()
    divided = student.clone().requires_grad_()
    run(hot, teacher, k=4, alpha=alpha, temperature=0.7)[0].sum().backward()
    run(divided / 0.7, teacher / 0.7, k=4, alpha=alpha)[0].sum().backward()
    assert_close(hot.grad, divided.grad)
