"""Top-k divergence: values, gradients, numerics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caopd_verl.errors import ConfigError
from caopd_verl.losses.divergence import (
    reference_divergence,
    topk_divergence,
)

ALPHAS = [0.0, 0.3, 0.5, 1.0]


def logits(t, v, *, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(t, v, generator=generator) * scale
    return student, student + torch.randn(t, v, generator=generator)


def run(student, teacher, *, k, alpha, temperature=1.0, chunk=3, ids=None):
    t = student.shape[0]
    alpha_t = alpha if isinstance(alpha, torch.Tensor) else torch.full((t,), float(alpha))
    ids = torch.zeros(t, dtype=torch.long) if ids is None else ids
    return topk_divergence(
        student, teacher, ids, k=k, alpha_T=alpha_t, temperature=temperature, chunk_tokens=chunk
    )


def bucket_reference(student, teacher, k, alpha):
    """fp64, loops, probabilities: the k most probable tokens of the student and the rest as one bucket."""
    s, t = student.double().softmax(-1), teacher.double().softmax(-1)
    losses = []
    for s_row, t_row in zip(s, t, strict=True):
        top = s_row.topk(k).indices
        rest = torch.ones_like(s_row, dtype=torch.bool)
        rest[top] = False
        ps, pt = (torch.cat([row[top], row[rest].sum()[None]]) for row in (s_row, t_row))
        losses.append(
            reference_divergence(
                ps.log()[None], pt.log()[None], alpha_T=torch.tensor([alpha]), temperature=1.0
            )
        )
    return torch.cat(losses)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("k", [None, 1, 7, 50])
def test_zero_at_equality_with_zero_gradient(alpha, k):
    student, _ = logits(5, 50)
    student.requires_grad_()
    loss, _ = run(student, student.detach().clone(), k=k, alpha=alpha)
    assert (loss >= 0).all() and loss.max() <= (0 if alpha in (0.0, 1.0) else 1e-13)
    loss.sum().backward()
    assert student.grad.abs().max() < 1e-7


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_full_vocabulary_equals_the_slow_reference_with_its_gradient(alpha, temperature):
    for k in (None, 40):
        student, teacher = logits(7, 40)
        mine, slow = student.clone().requires_grad_(), student.clone().double().requires_grad_()
        loss, metrics = run(mine, teacher, k=k, alpha=alpha, temperature=temperature)
        expected = reference_divergence(
            slow, teacher, alpha_T=torch.full((7,), alpha), temperature=temperature
        )
        torch.testing.assert_close(loss.double(), expected, rtol=2e-5, atol=1e-6)
        loss.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(mine.grad.double(), slow.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(metrics["topk_mass"], torch.ones(7))


def test_reverse_kl_of_two_tokens_in_closed_form():
    s, t = 0.8, 0.3
    student = torch.tensor([[math.log(s), math.log(1 - s)]])
    teacher = torch.tensor([[math.log(t), math.log(1 - t)]])
    reverse = s * math.log(s / t) + (1 - s) * math.log((1 - s) / (1 - t))
    forward = t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s))
    for k in (None, 1, 2):
        assert run(student, teacher, k=k, alpha=1.0)[0].item() == pytest.approx(reverse, rel=1e-5)
        assert run(student, teacher, k=k, alpha=0.0)[0].item() == pytest.approx(forward, rel=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("k", [1, 5, 39])
def test_tail_bucket_equals_the_slow_reference_with_its_gradient(alpha, k):
    student, teacher = logits(6, 40)
    mine, slow = student.clone().requires_grad_(), student.clone().double().requires_grad_()
    loss, metrics = run(mine, teacher, k=k, alpha=alpha)
    expected = bucket_reference(slow, teacher, k, alpha)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-5, atol=1e-6)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(mine.grad.double(), slow.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(metrics["topk_mass"], student.softmax(-1).topk(k).values.sum(-1))


def test_alpha_of_each_token_is_its_own():
    student, teacher = logits(4, 20)
    alpha = torch.tensor(ALPHAS)
    mixed, _ = run(student, teacher, k=5, alpha=alpha)
    for i, a in enumerate(ALPHAS):
        assert mixed[i] == run(student, teacher, k=5, alpha=a)[0][i]


def test_metrics_are_of_the_full_vocabulary_and_detached():
    student, teacher = logits(6, 30)
    ids = torch.arange(6)
    student.requires_grad_()
    _, metrics = run(student, teacher, k=3, alpha=1.0, temperature=0.5, ids=ids)
    for who, raw in (("student", student.detach()), ("teacher", teacher)):
        log_probs = (raw / 0.5).log_softmax(-1)
        torch.testing.assert_close(metrics[f"{who}_log_probs"], log_probs[torch.arange(6), ids])
        torch.testing.assert_close(
            metrics[f"{who}_entropy"], -(log_probs.exp() * log_probs).sum(-1)
        )
    assert not any(m.requires_grad for m in metrics.values())


@pytest.mark.parametrize("k", [None, 5])
def test_chunks_change_neither_loss_nor_gradient(k):
    student, teacher = logits(10, 30)
    alpha = torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 1.0])
    results = []
    for chunk in (1, 3, 10, 100):
        mine = student.clone().requires_grad_()
        loss, metrics = run(mine, teacher, k=k, alpha=alpha, chunk=chunk)
        loss.sum().backward()
        results.append((loss.detach(), mine.grad, metrics["student_entropy"]))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b)


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
    student[0, 3:], teacher[1, :7], student[2, 5:], teacher[2, :5] = (-math.inf,) * 4
    student.requires_grad_()
    loss, metrics = run(student, teacher, k=k, alpha=alpha)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and (loss >= 0).all()
    assert torch.isfinite(student.grad).all()
    assert all(torch.isfinite(m).all() for m in metrics.values())


def test_no_tokens_at_all_give_an_empty_loss_with_a_graph():
    student = torch.zeros(0, 10, requires_grad=True)
    loss, metrics = run(student, torch.zeros(0, 10), k=3, alpha=1.0)
    loss.sum().backward()
    assert loss.shape == (0,) and student.grad.shape == (0, 10)
    assert all(m.shape == (0,) for m in metrics.values())


@pytest.mark.parametrize("alpha", ALPHAS)
def test_t15_bf16_logits_never_give_a_negative_divergence(alpha):
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(8, 30_000, generator=generator) * 4
    student[:, 0] += 25
    teacher = student + 0.02 * torch.randn(8, 30_000, generator=generator)
    for k in (100, None):
        loss, metrics = run(student.bfloat16(), teacher.bfloat16(), k=k, alpha=alpha, chunk=8)
        assert loss.dtype == torch.float32 and (loss >= 0).all()
        assert (metrics["topk_mass"] <= 1 + 1e-6).all()
        if k is None:
            slow = reference_divergence(
                student.bfloat16(),
                teacher.bfloat16(),
                alpha_T=torch.full((8,), alpha),
                temperature=1.0,
            )
            torch.testing.assert_close(loss.double(), slow, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_t15_tail_gradient_is_right_when_the_top_k_mass_is_nearly_one(alpha):
    for gap in (10.0, 18.0, 30.0, 60.0):
        student = torch.zeros(1, 50)
        student[0, :5] = gap
        teacher = torch.zeros(1, 50)
        teacher[0, 2:9] = gap / 2
        mine, slow = student.clone().requires_grad_(), student.clone().double().requires_grad_()
        loss, _ = run(mine, teacher, k=5, alpha=alpha)
        loss.sum().backward()
        expected = bucket_reference(slow, teacher, 5, alpha)
        expected.sum().backward()
        assert torch.isfinite(mine.grad).all()
        torch.testing.assert_close(mine.grad.double(), slow.grad, rtol=2e-4, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(ALPHAS), st.floats(0.001, 30), st.integers(1, 20))
def test_never_negative_and_never_above_the_full_vocabulary(seed, alpha, scale, k):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 3, 20, generator=generator) * scale
    top, _ = run(student, teacher, k=k, alpha=alpha)
    full, _ = run(student, teacher, k=None, alpha=alpha)
    assert (top >= 0).all()
    assert (top <= full * (1 + 1e-4) + 1e-5).all()  # merging tokens into a bucket loses information


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
    with pytest.raises(ConfigError, match="do not match"):
        run(student, teacher[:, :9], k=5, alpha=1.0)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_bf16_model_against_itself_is_zero_at_any_temperature(temperature, alpha):
    """Divided in bf16 on one side and in fp32 on the other, it was 1e-3 away from itself."""
    logits = (10 * torch.randn(4, 300, generator=torch.Generator().manual_seed(0))).bfloat16()
    loss, _ = topk_divergence(
        logits,
        logits.clone(),
        torch.zeros(4, dtype=torch.int64),
        k=20,
        alpha_T=torch.full((4,), alpha),
        temperature=temperature,
        chunk_tokens=3,
    )
    assert float(loss.abs().max()) < 1e-7


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_tail_of_no_mass_keeps_its_log(alpha):
    """All but exp(-120) of the student sits in the top k; the teacher looks elsewhere."""
    student = torch.full((1, 6), -120.0)
    student[0, :2] = 0.0
    student.requires_grad_()
    teacher = torch.zeros(1, 6)
    options = {"alpha_T": torch.tensor([alpha]), "temperature": 1.0}
    loss, _ = topk_divergence(
        student, teacher, torch.zeros(1, dtype=torch.int64), k=2, chunk_tokens=1, **options
    )
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    exact = student.detach().double().requires_grad_()
    buckets = [exact.log_softmax(-1)[:, :2], exact.log_softmax(-1)[:, 2:].logsumexp(-1, True)]
    log_t = torch.tensor([[1 / 6, 1 / 6, 4 / 6]], dtype=torch.float64).log()
    expected = reference_divergence(torch.cat(buckets, -1), log_t, **options)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-6)
