"""The loss that verl's engine calls: the method's terms, between verl's packing and one scalar.

The engine calls the loss twice for each micro-batch: with `student_logits`, for values of single
tokens, and with `model_output`, those values as jagged tensors, for the scalar. All arithmetic is
in `losses/`.

The loss of a step is `sum_t w_t * loss_t` over its terms, with weights w that sum to 1 over the
whole step. So the sum over micro-batches and ranks is the same whatever their number. FSDP averages
gradients over D ranks and a step has M mini-batches, so each share is multiplied by D and by M.

Legend: B rows, T response tokens of the micro-batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric

from caopd_verl.losses.batch import Head, ModelBatch, PolicyLoss, TokenBatch
from caopd_verl.losses.importance import LOG_RATIO_LIMIT
from caopd_verl.losses.terms import STUDENT_LOG_PROBS, LossTerm, Reduced, TokenValues
from caopd_verl.types import CONFIDENCE_ROLES, Role
from caopd_verl.verl_ext.engine import CaopdEngine

N_MINI_BATCHES = "n_mini_batches"
# verl divides logits by its own `temperature` in their dtype; ours are divided in fp32, and verl
# is told 1. In bf16 a model would otherwise differ from itself where the temperature is not 1.
SAMPLING_TEMPERATURE = "sampling_temperature"
# Readings that are logged as means over the trained tokens, where a term gave them.
_READINGS = ("divergence", "student_entropy", "teacher_entropy", "topk_mass")
_VALUES = frozenset({Role.CONFIDENCE_VALUE})


class MethodLoss:
    """Callable for `TrainingWorker.set_loss_fn`.

    Args:
        terms: of the method.
        teacher: the teacher's engine, whose forward runs here without gradient; None where no
            term needs one.
        policy_loss: verl's, for terms that are policy gradients.
        chunk_tokens: tokens whose fp32 log-probs may be alive at once.
        teacher_tokens: of one forward pass of the teacher.
    """

    def __init__(
        self,
        terms: Sequence[LossTerm],
        teacher: CaopdEngine | None,
        *,
        policy_loss: PolicyLoss,
        chunk_tokens: int,
        teacher_tokens: int,
    ):
        self.terms = tuple(terms)
        self.teacher = teacher
        self.policy_loss = policy_loss
        self.chunk_tokens = chunk_tokens
        self.teacher_tokens = teacher_tokens

    def __call__(
        self, *, data: TensorDict, student_logits=None, model_output=None, dp_group=None
    ) -> Any:
        if student_logits is not None:
            return self.token_values(student_logits, data)
        return self.reduce(model_output, data)

    def token_values(self, student_logits_TV: Tensor, data: TensorDict) -> TokenValues:
        """What the terms have to say of each response token.

        Args:
            student_logits_TV: before any temperature, with gradient.
            data: the micro-batch.

        Returns:
            fp32 [T] each.
        """
        batch = ModelBatch(
            **_token_fields(data, self.policy_loss),
            student=Head(student_logits_TV),
            run_teacher=lambda: self._run_teacher(data),
            temperature=tu.get_non_tensor_data(data, SAMPLING_TEMPERATURE, None),
            chunk_tokens=self.chunk_tokens,
        )
        values: TokenValues = {}
        for term in self.terms:
            # the first term that gives a reading keeps it: a later one would give the same
            values = {**term.token_values(batch), **values}
        return values

    def reduce(
        self, model_output: Mapping[str, Any], data: TensorDict
    ) -> tuple[Tensor, dict[str, Metric]]:
        """The micro-batch's share of the loss, and sums for the logged means."""
        batch = TokenBatch(**_token_fields(data, self.policy_loss))
        values = {name: value.values() for name, value in model_output.items()}
        shares = [term.reduce(values, batch) for term in self.terms]
        loss = torch.stack([share.loss for share in shares]).sum()
        return loss, self._sums(values, batch, shares)

    def _run_teacher(self, data: TensorDict) -> Head:
        assert self.teacher is not None, "a term reads the teacher, and none was built"
        lengths_B = data["responses"].offsets().diff()
        logits_TV = self.teacher.response_logits(
            data["teacher_input_ids"], lengths_B, data, max_tokens=self.teacher_tokens
        )
        return Head(logits_TV)

    def _sums(
        self, values: TokenValues, batch: TokenBatch, shares: Sequence[Reduced]
    ) -> dict[str, Metric]:
        """Sums over this micro-batch; `step_metrics` divides them once all are in."""
        trained_T = batch.weights_T != 0
        confidence_T = batch.has_role(CONFIDENCE_ROLES)
        sums: dict[str, Tensor] = {}
        for part, mask_T in (
            ("reasoning", trained_T & ~confidence_T),
            ("confidence", trained_T & confidence_T),
        ):
            sums[f"{part}_tokens"] = mask_T.sum()
            of_tokens = [s.token_losses_T for s in shares if s.token_losses_T is not None]
            if of_tokens:
                losses_T = torch.stack(of_tokens).sum(0)
                sums[f"{part}_loss"] = (losses_T * mask_T).sum()
            for name in _READINGS:
                if name in values:
                    sums[f"{part}_{name}"] = (values[name].detach() * mask_T).sum()
        for term, share in zip(self.terms, shares, strict=True):
            sums[f"term_{term.name}"] = share.loss.detach()
        sums |= _value_sums(values, trained_T & batch.has_role(_VALUES))
        sums |= _sampler_sums(values, batch, trained_T & batch.sampled_T)
        return {
            f"sum/{name}": Metric(AggregationType.SUM, float(value)) for name, value in sums.items()
        }


def _value_sums(values: TokenValues, value_T: Tensor) -> dict[str, Tensor]:
    """How probable the tokens of p-hat's number are: does the teacher take the target up?"""
    student_T = values[STUDENT_LOG_PROBS]
    sums = {
        "value_tokens": value_T.sum(),
        "value_student_prob": (student_T.exp() * value_T).sum(),
    }
    if "teacher_log_probs" in values:
        teacher_T = values["teacher_log_probs"]
        sums["value_teacher_log_prob"] = (teacher_T * value_T).sum()
        sums["value_teacher_prob"] = (teacher_T.exp() * value_T).sum()
    return sums


def _sampler_sums(values: TokenValues, batch: TokenBatch, sampled_T: Tensor) -> dict[str, Tensor]:
    """Agreement of sampler and trainer on the tokens that were sampled."""
    student_T = values[STUDENT_LOG_PROBS].detach()
    old_T = student_T if batch.old_log_probs_T is None else batch.old_log_probs_T
    # Clamped as in the weights: one odd token must not make the logged mean infinite.
    log_ratio_T = (old_T - batch.sampler_log_probs_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio_T = log_ratio_T.exp()
    gap_T = (student_T.exp() - batch.sampler_log_probs_T.exp()).abs()
    nothing_T = torch.zeros_like(gap_T)
    return {
        "sampled_tokens": sampled_T.sum(),
        "sampler_ratio": torch.where(sampled_T, ratio_T, nothing_T).sum(),
        "sampler_prob_diff": torch.where(sampled_T, gap_T, nothing_T).sum(),
    }


def _token_fields(data: TensorDict, policy_loss: PolicyLoss) -> dict[str, Any]:
    """The arguments of `TokenBatch` from a micro-batch in the codec's form."""
    dp_size = tu.get_non_tensor_data(data, "dp_size", None)
    n_mini_batches = tu.get_non_tensor_data(data, N_MINI_BATCHES, None)
    old_log_probs_T = None
    if "old_log_probs" in data.keys():  # noqa: SIM118 (a TensorDict has no `in`)
        old_log_probs_T = data["old_log_probs"].values()
    return {
        "token_ids_T": data["responses"].values(),
        "roles_T": data["roles"].values(),
        "alphas_T": data["alphas"].values(),
        "advantages_T": data["advantages"].values(),
        "weights_T": data["loss_weight"].values() * (dp_size * n_mini_batches),
        "sampled_T": data["sampled_mask"].values().bool(),
        "sampler_log_probs_T": data["rollout_log_probs"].values(),
        "old_log_probs_T": old_log_probs_T,
        "lengths_B": data["responses"].offsets().diff(),
        "policy_loss": policy_loss,
    }
