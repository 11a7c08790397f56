"""Loss terms on made-up tokens, against hand-computed values; no verl."""

from __future__ import annotations

import math

import pytest
import torch

from caopd_verl.losses.batch import Head, ModelBatch
from caopd_verl.losses.terms import ConfidenceCrossEntropy, Divergence, PolicyGradient
from caopd_verl.types import ALL_ROLES, Role
from tests.losses.reference import reference_divergence

V = 9
ROLES = [Role.REASONING, Role.CONFIDENCE_LABEL, Role.CONFIDENCE_VALUE, Role.END_OF_TURN]
LENGTHS = [3, 1]  # two rows of the four tokens


def clipped(old, new, advantages, mask, weights):
    """A policy loss in the framework's form: PPO's clipped objective, epsilon 0.2."""
    ratio = (new - old).exp()
    plain, bounded = -advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)
    return (weights * mask * torch.maximum(plain, bounded)).sum()


@pytest.fixture
def make_batch():
    def make(*, teacher_is_read: bool = True, **changes) -> ModelBatch:
        generator = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, 4, V, generator=generator)

        def run_teacher() -> Head:
            assert teacher_is_read, "this term must not run a teacher"
            return Head(teacher)

        fields = {
            "token_ids_T": torch.tensor([1, 5, 7, 2]),
            "roles_T": torch.tensor([int(role) for role in ROLES]),
            "alphas_T": torch.ones(4),
            "advantages_T": torch.tensor([0.5, 0.5, 0.5, -1.0]),
            "weights_T": torch.tensor([0.1, 0.2, 0.3, 0.4]),
            "sampled_T": torch.tensor([True, True, False, False]),
            "sampler_log_probs_T": torch.tensor([-2.0, -2.5, math.nan, math.nan]),
            "old_log_probs_T": None,
            "lengths_B": torch.tensor(LENGTHS),
            "policy_loss": clipped,
            "student": Head(student.requires_grad_()),
            "run_teacher": run_teacher,
            "temperature": 1.0,
            "chunk_tokens": 3,
        }
        return ModelBatch(**{**fields, **changes})

    return make


def reduced(term, batch):
    return term.reduce(term.token_values(batch), batch)


def log_probs(batch):
    whole = batch.student.logits_TV.double().log_softmax(-1)
    return whole.gather(-1, batch.token_ids_T[:, None]).squeeze(-1)


def test_divergence_is_weighted_by_the_clipped_ratio_of_trainer_to_sampler(make_batch):
    batch = make_batch()
    student, teacher = batch.student.logits_TV, batch.teacher.logits_TV
    plain = reference_divergence(student, teacher, alpha_T=torch.ones(4), temperature=1.0)
    ratios = (log_probs(batch) - batch.sampler_log_probs_T).exp().clamp(max=1.1)
    ratios[2:] = 1.0  # never sampled
    expected = (batch.weights_T.double() * ratios.detach() * plain).sum()
    found = reduced(Divergence(None, is_clip=2.0, tis_clip=1.1), batch)
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(found.token_losses_T.sum(), found.loss.detach())


def test_cross_entropy_trains_the_number_and_nothing_else_without_a_teacher(make_batch):
    batch = make_batch(teacher_is_read=False)
    term = ConfidenceCrossEntropy()
    assert not term.needs_teacher
    found = reduced(term, batch)
    assert float(found.loss) == pytest.approx(-0.3 * float(log_probs(batch)[2]), rel=1e-5)
    gradient = torch.autograd.grad(found.loss, batch.student.logits_TV)[0]
    assert gradient.abs().sum(-1).nonzero().flatten().tolist() == [2]
    # descent raises the written number's logit, whatever a teacher would say
    assert float(gradient[2, 7]) < 0


def test_divergence_and_cross_entropy_share_the_tokens_between_them(make_batch):
    """With both terms every token has exactly one loss."""
    batch = make_batch()
    cross_entropy = ConfidenceCrossEntropy()
    others = Divergence(None, is_clip=2.0, tis_clip=None, roles=ALL_ROLES - cross_entropy.roles)
    everywhere = Divergence(None, is_clip=2.0, tis_clip=None)
    rest, whole = reduced(others, batch), reduced(everywhere, batch)
    number = reduced(cross_entropy, batch)
    assert (rest.token_losses_T != 0).tolist() == [True, True, False, True]
    assert (number.token_losses_T != 0).tolist() == [False, False, True, False]
    torch.testing.assert_close(
        rest.token_losses_T.sum() + whole.token_losses_T[2], whole.token_losses_T.sum()
    )


def test_policy_gradient_is_the_frameworks_loss_on_padded_rows(make_batch):
    batch = make_batch(teacher_is_read=False)
    found = reduced(PolicyGradient(tis_clip=None), batch)
    # on policy the ratio is 1, so the loss is minus the weighted advantage
    expected = -(0.1 * 0.5 + 0.2 * 0.5 + 0.3 * 0.5 - 0.4 * 1.0)
    assert float(found.loss) == pytest.approx(expected, rel=1e-6)
    gradient = torch.autograd.grad(found.loss, batch.student.logits_TV)[0]
    signs = [float(gradient[i, token]) < 0 for i, token in enumerate([1, 5, 7, 2])]
    assert signs == [True, True, True, False], "descent makes good tokens likelier, bad ones not"


def test_policy_gradient_clips_against_the_old_student(make_batch):
    now = log_probs(make_batch()).detach().float()
    batch = make_batch(old_log_probs_T=now - 1.0)  # ratio e, beyond the clip
    found = reduced(PolicyGradient(tis_clip=None), batch)
    bounded = -1.2 * 0.5 * (0.1 + 0.2 + 0.3)
    assert float(found.loss) == pytest.approx(bounded + 0.4 * math.e, rel=1e-5)


def test_nan_at_an_untrained_token_touches_neither_loss_nor_gradient(make_batch):
    batch = make_batch(weights_T=torch.tensor([0.1, 0.0, 0.3, 0.4]))
    term = Divergence(None, is_clip=2.0, tis_clip=None)
    values = term.token_values(batch)
    broken = values["divergence"].clone()
    broken[1] = math.nan
    loss = term.reduce({**values, "divergence": broken}, batch).loss
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, batch.student.logits_TV)[0]).all()
