"""Rows to tensors, and the positions that predict them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from caopd_verl.config import LossConfig
from caopd_verl.errors import TeacherContextError

from .rows import EOS, encode, make_row, mixed_rows

pytestmark = pytest.mark.usefixtures("verl_on_cpu")


def test_t21_every_mask_comes_from_lengths_so_a_pad_id_equal_to_eos_changes_nothing():
    """Prompt and response are full of the end-of-turn id, which may be the pad id, and of id 0."""
    row = make_row(0, ids=[EOS, 5, 0, 0, EOS, EOS])
    batch = encode([row, make_row(1, n_response=3, n_confidence=1)])
    assert batch["responses"].offsets().tolist() == [0, 6, 9]
    assert (
        batch["response_mask"].values().tolist() == [1] * 9 == batch["loss_mask"].values().tolist()
    )
    assert batch["responses"].values()[:6].tolist() == [EOS, 5, 0, 0, EOS, EOS]
    assert (batch["loss_weight"].values() > 0).all()
    assert batch["input_ids"].values()[:9].tolist() == [*row.prompt_ids, *row.trajectory.token_ids]
    assert batch["position_ids"].values().tolist() == [*range(9), *range(6)]


def test_fields_of_a_trained_row():
    row = make_row(0, n_prompt=2, n_response=7)
    batch = encode([row])
    n_kept = row.trajectory.n_kept
    assert batch["teacher_input_ids"].values().tolist() == [
        *row.teacher_prompt_ids,
        *row.trajectory.token_ids,
    ]
    assert batch["confidence_mask"].values().tolist() == [0, 0, 0, 0, 1, 1, 0]
    assert batch["value_mask"].values().tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert batch["kept_mask"].values().tolist() == [1, 1, 1, 1, 0, 0, 0]
    expected = [*row.rollout_log_probs[:n_kept], *([0.0] * (7 - n_kept))]
    assert batch["rollout_log_probs"].values().tolist() == pytest.approx(expected)
    assert {name: t.dtype for name, t in batch.items() if t.is_floating_point()} == {
        "loss_weight": torch.float32,
        "rollout_log_probs": torch.float32,
    }


@pytest.mark.parametrize("kind", ["masked", "overlong"])
def test_rows_without_teacher_shrink_to_two_tokens_of_weight_zero(kind):
    row = make_row(0, kind=kind, n_prompt=4, n_response=9)
    batch = encode([make_row(1), row])
    for field in ("input_ids", "teacher_input_ids"):
        assert batch[field].unbind()[1].tolist() == [
            row.prompt_ids[-1],
            row.trajectory.token_ids[0],
        ]
    assert batch["loss_weight"].unbind()[1].tolist() == [0.0]
    assert all(
        len(batch[field].unbind()[1]) == 1
        for field in ("responses", "kept_mask", "rollout_log_probs")
    )


@pytest.mark.parametrize("average", ["sequence", "token"])
def test_weights_sum_to_one_and_are_zero_where_nothing_is_trained(average):
    rows = mixed_rows()
    batch = encode(rows, average=average)
    assert float(batch["loss_weight"].values().double().sum()) == pytest.approx(1.0, abs=1e-6)
    for row, weight in zip(rows, batch["loss_weight"].unbind(), strict=True):
        trained = row.trajectory.trained_mask if row.n_trained else (False,)
        assert [w > 0 for w in weight.tolist()] == list(trained)


def test_t23_masked_rows_dilute_the_loss_only_where_asked():
    rows = [make_row(0), make_row(1, kind="masked")]
    assert float(
        encode(rows, normalize_by="trained")["loss_weight"].values().sum()
    ) == pytest.approx(1.0)
    assert float(encode(rows, normalize_by="all")["loss_weight"].values().sum()) == pytest.approx(
        0.5
    )


def test_t16_a_few_confidence_tokens_never_outweigh_whole_responses():
    rows = [make_row(0, n_response=20), make_row(1, n_response=20, kind="confidence_only")]
    full, only = (float(w.sum()) for w in encode(rows)["loss_weight"].unbind())
    assert only / full == pytest.approx(2 / 20)


def test_a_batch_without_a_teacher_is_an_error():
    from caopd_verl.verl_ext import codec

    with pytest.raises(TeacherContextError, match="no token to train on"):
        codec.loss_weights([make_row(0, kind="masked"), make_row(1, kind="overlong")], LossConfig())


def test_a_replayed_row_without_sampler_log_probs_counts_as_not_kept():
    batch = encode([replace(make_row(0), rollout_log_probs=())])
    assert not batch["kept_mask"].values().any()


# ---------------------------------------------------------------------- positions


def test_response_positions_against_a_loop():
    from caopd_verl.verl_ext.engine import response_positions

    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        n_rows = int(torch.randint(1, 6, (1,), generator=generator))
        prompts = torch.randint(1, 7, (n_rows,), generator=generator)
        responses = torch.randint(1, 7, (n_rows,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (prompts + responses).cumsum(0)])
        expected = [
            int(offsets[row])
            + int(prompts[row])
            + token
            - 1  # the logits before a token predict it
            for row in range(n_rows)
            for token in range(int(responses[row]))
        ]
        assert response_positions(offsets, responses).tolist() == expected


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_padded_teacher_logits_are_those_of_each_row_alone(temperature):
    """Rows of different length in one padded forward pass of the tiny model, against one pass a row."""
    from transformers import AutoModelForCausalLM
    from verl.utils import tensordict_utils as tu

    from caopd_verl.preflight.prepare import resolve_model_path
    from caopd_verl.verl_ext.engine import CaopdEngine

    model = AutoModelForCausalLM.from_pretrained(
        resolve_model_path("embedded:tiny_arith"), dtype=torch.float32
    ).eval()
    engine = object.__new__(CaopdEngine)
    engine.module, engine.pad_to_length, engine._autocast_dtype = model, None, torch.float32
    rows = [
        make_row(0, n_prompt=9, n_response=4),
        make_row(1, n_prompt=1, n_response=8),
        make_row(2),
    ]
    batch = encode(rows)
    tu.assign_non_tensor(batch, use_remove_padding=False, temperature=temperature)
    found = engine.response_logits(
        batch["teacher_input_ids"], batch["responses"].offsets().diff(), batch
    )
    alone = []
    for ids, response in zip(
        batch["teacher_input_ids"].unbind(), batch["responses"].unbind(), strict=True
    ):
        with torch.no_grad():
            alone.append(model(ids.unsqueeze(0)).logits[0, -len(response) - 1 : -1] / temperature)
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert not found.requires_grad
