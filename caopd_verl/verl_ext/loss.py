"""The loss that verl's engine calls: student logits in, per-token divergence to the EMA teacher, one scalar out.

verl 0.9.1's distillation seam calls a loss function twice per micro-batch: with `student_logits`, for per-token values,
and with `model_output`, for the scalar. Between the two sits verl's unpacking. All arithmetic is in `core.divergence`.

Loss of a step (source: Eq. 7 with SDPO's weights): sum_t w_t * r_t * c_t * D_t with D the divergence, r the clipped
ratio student/old, c the clipped ratio old/rollout on untouched tokens, and w the codec's weights, which sum to 1 over
the whole step. So the sum over micro-batches and ranks is the same whatever their number; a mini-batch's share is
multiplied by the number of mini-batches.

Legend: B rows, R response tokens of the micro-batch, N all its tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric

from caopd_verl.config import CaopdConfig
from caopd_verl.losses import divergence
from caopd_verl.verl_ext.engine import CaopdEngine, response_positions

N_MINI_BATCHES = "n_mini_batches"
_PER_TOKEN = (
    "divergence",
    "student_log_probs",
    "teacher_log_probs",
    "student_entropy",
    "teacher_entropy",
    "topk_mass",
)


class CaopdLoss:
    """Callable for `TrainingWorker.set_loss_fn`.

    Args:
        config: the `caopd` block.
        teacher: the EMA teacher's engine; its forward runs here, without gradient.
    """

    def __init__(self, config: CaopdConfig, teacher: CaopdEngine):
        self.config = config
        self.teacher = teacher

    def __call__(
        self, *, data: TensorDict, student_logits=None, model_output=None, dp_group=None
    ) -> Any:
        if student_logits is not None:
            return self.per_token(student_logits, data)
        return self.reduce(model_output, data)

    def per_token(self, student_logits: torch.Tensor, data: TensorDict) -> dict[str, torch.Tensor]:
        """Per-token divergence and readings, scattered to the packed layout that verl unpacks.

        Args:
            student_logits: (1, N, V), already divided by the temperature, with gradient.
            data: the micro-batch.

        Returns:
            each (1, N) fp32, zero outside response positions; only `divergence` carries a gradient.
        """
        lengths = data["responses"].offsets().diff()
        index = response_positions(data["input_ids"].offsets(), lengths)
        teacher_logits = self.teacher.response_logits(data["teacher_input_ids"], lengths, data)
        confidence = data["confidence_mask"].values().bool()
        alpha = torch.where(
            confidence,
            torch.tensor(self.config.confidence_alpha, device=index.device),
            torch.tensor(self.config.loss.alpha, device=index.device),
        )
        loss, readings = divergence.topk_divergence(
            student_logits.squeeze(0)[index],
            teacher_logits,
            data["responses"].values(),
            k=self.config.loss.top_k,
            alpha_T=alpha,
            temperature=1.0,  # both are divided by it already
            chunk_tokens=self.config.loss.chunk_tokens,
        )
        values = {"divergence": loss, **readings}
        total = student_logits.shape[1]
        return {
            name: torch.zeros(total, device=loss.device)
            .index_put((index,), values[name].float())
            .unsqueeze(0)
            for name in _PER_TOKEN
        }

    def reduce(
        self, model_output: dict[str, Any], data: TensorDict
    ) -> tuple[torch.Tensor, dict[str, Metric]]:
        """Weighted sum of the micro-batch over the global denominator, and sums for the logged means."""
        lengths = data["responses"].offsets().diff()
        index = response_positions(data["input_ids"].offsets(), lengths)
        token = {name: model_output[name].values()[index] for name in _PER_TOKEN}
        weight = data["loss_weight"].values()
        student = token["student_log_probs"].detach()
        old = data["old_log_probs"].values() if "old_log_probs" in data.keys() else student  # noqa: SIM118 (no `in`)
        weight = weight * divergence.importance_weights(student, old, clip=self.config.loss.is_clip)
        kept = data["kept_mask"].values().bool()
        tis = divergence.tis_weights(
            old, data["rollout_log_probs"].values(), kept, clip=self.config.loss.tis_clip
        )
        # FSDP averages gradients over ranks
        scale = tu.get_non_tensor_data(data, "dp_size", None) * tu.get_non_tensor_data(
            data, N_MINI_BATCHES, None
        )
        weight = weight * tis * scale
        loss = (weight * token["divergence"]).sum()
        return loss, self._metrics(token, data, weight, tis)

    def _metrics(
        self, token: dict, data: TensorDict, weight: torch.Tensor, tis: torch.Tensor
    ) -> dict[str, Metric]:
        trained = data["loss_weight"].values() > 0
        confidence = data["confidence_mask"].values().bool()
        parts = {"reasoning": trained & ~confidence, "confidence": trained & confidence}
        sums: dict[str, torch.Tensor] = {}
        for part, mask in parts.items():
            sums[f"sum/{part}_tokens"] = mask.sum()
            sums[f"sum/{part}_loss"] = (weight * token["divergence"].detach() * mask).sum()
            for name in ("divergence", "student_entropy", "teacher_entropy", "topk_mass"):
                sums[f"sum/{part}_{name}"] = (token[name].detach() * mask).sum()
        value = trained & data["value_mask"].values().bool()
        sums["sum/value_tokens"] = value.sum()
        sums["sum/value_teacher_log_prob"] = (token["teacher_log_probs"] * value).sum()
        sums["sum/value_teacher_prob"] = (token["teacher_log_probs"].exp() * value).sum()
        sums["sum/value_student_prob"] = (token["student_log_probs"].exp() * value).sum()
        kept = trained & data["kept_mask"].values().bool()
        sums["sum/kept_tokens"] = kept.sum()
        sums["sum/tis_weight"] = (tis * kept).sum()
        diff = (token["student_log_probs"].exp() - data["rollout_log_probs"].values().exp()).abs()
        sums["sum/rollout_prob_diff"] = (diff * kept).sum()
        return {name: Metric(AggregationType.SUM, float(value)) for name, value in sums.items()}
