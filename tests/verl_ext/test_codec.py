"""Rows to tensors, and the positions that predict them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from caopd_verl.types import Role

from .rows import EOS, encode, make_row, mixed_rows, weights_of

pytestmark = pytest.mark.usefixtures("verl_on_cpu")


def test_every_mask_comes_from_lengths_so_a_pad_id_equal_to_eos_changes_nothing():
    """Prompt and response are full of the end-of-turn id, which may be the pad id, and of id 0."""
    row = make_row(0, ids=[EOS, 5, 0, 0, EOS, EOS])
    batch = encode([row, make_row(1, n_response=3, n_confidence=1)])
    assert batch["responses"].offsets().tolist() == [0, 6, 9]
    for mask in ("response_mask", "loss_mask"):
        assert batch[mask].values().tolist() == [1] * 9
    assert batch["responses"].values()[:6].tolist() == [EOS, 5, 0, 0, EOS, EOS]
    assert (batch["loss_weight"].values() > 0).all()
    whole = [*row.trajectory.prompt_ids, *row.trajectory.token_ids]
    assert batch["input_ids"].values()[:9].tolist() == whole
    assert batch["position_ids"].values().tolist() == [*range(9), *range(6)]


def test_fields_of_a_trained_row():
    row = make_row(0, n_prompt=2, n_response=7, alphas=(1, 0))
    trajectory = row.trajectory
    batch = encode([row])
    shown = [*row.teacher_prompt_ids, *trajectory.token_ids]
    assert batch["teacher_input_ids"].values().tolist() == shown
    roles = [Role(role) for role in batch["roles"].values().tolist()]
    assert roles == [
        *[Role.REASONING] * 4,
        Role.CONFIDENCE_LABEL,
        Role.CONFIDENCE_VALUE,
        Role.END_OF_TURN,
    ]
    assert batch["alphas"].values().tolist() == [1, 1, 1, 1, 0, 0, 1]
    assert batch["sampled_mask"].values().tolist() == [1, 1, 1, 1, 0, 0, 0]
    expected = [*trajectory.sampler_log_probs[:4], 0.0, 0.0, 0.0]
    assert batch["rollout_log_probs"].values().tolist() == pytest.approx(expected)
    floats = {name: t.dtype for name, t in batch.items() if t.is_floating_point()}
    names = ("loss_weight", "alphas", "advantages", "rollout_log_probs")
    assert floats == dict.fromkeys(names, torch.float32)


@pytest.mark.parametrize("kind", ["masked", "overlong"])
def test_untrained_rows_shrink_to_two_tokens_of_weight_zero(kind):
    row = make_row(0, kind=kind, n_prompt=4, n_response=9)
    batch = encode([make_row(1), row])
    two = [row.trajectory.prompt_ids[-1], row.trajectory.token_ids[0]]
    for field in ("input_ids", "teacher_input_ids"):
        assert batch[field].unbind()[1].tolist() == two
    assert batch["loss_weight"].unbind()[1].tolist() == [0.0]
    for field in ("responses", "sampled_mask", "rollout_log_probs", "roles", "alphas"):
        assert len(batch[field].unbind()[1]) == 1


def test_a_trained_row_without_a_teacher_is_read_under_the_students_prompt():
    """Only a term that needs no teacher trains it, but all rows of a batch run through one."""
    row = replace(make_row(0), teacher_prompt_ids=None)
    batch = encode([row])
    assert batch["teacher_input_ids"].values().tolist() == batch["input_ids"].values().tolist()


def test_without_a_teacher_its_prompts_do_not_travel():
    from caopd_verl.verl_ext import codec

    rows = mixed_rows()
    fields = codec.encode(rows, weights_of(rows), with_teacher=False)
    assert "teacher_input_ids" not in set(fields.keys())


def test_a_row_without_sampler_log_probs_counts_as_not_sampled():
    row = make_row(0)
    row = replace(row, trajectory=replace(row.trajectory, sampler_log_probs=()))
    assert not encode([row])["sampled_mask"].values().any()


def test_fillers_change_no_weight_and_have_keys_of_their_own():
    from caopd_verl.verl_ext import codec

    rows = mixed_rows()
    filled = [*rows, *(codec.filler(rows[0].trajectory, i) for i in range(3))]
    plain, with_fillers = weights_of(rows), weights_of(filled)
    for before, after in zip(plain, with_fillers, strict=False):
        assert torch.equal(before, after)
    assert all(float(weights.abs().sum()) == 0 for weights in with_fillers[len(rows) :])
    keys = codec.keys_of(filled)
    assert len(set(keys)) == len(filled)


def test_keys_number_the_rows_of_a_group():
    from caopd_verl.verl_ext import codec

    assert codec.keys_of([make_row(0), make_row(0), make_row(1)]) == [
        "1-0_0_0",
        "1-0_1_0",
        "1-1_0_0",
    ]


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


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_the_head_is_run_where_responses_are_predicted(packed):
    from caopd_verl.verl_ext.engine import kept_positions

    offsets, responses = torch.tensor([0, 5, 7, 14]), torch.tensor([3, 1, 2])
    found = kept_positions(offsets, responses, packed=packed).tolist()
    if packed:
        assert found == [1, 2, 3, 5, 11, 12]
    else:
        # rows of 5, 2 and 7 tokens: columns 1 to 3, 0, and 4 to 5 of each
        assert found == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_the_rows_of_its_logits_are_those_before_each_response_token(packed):
    from caopd_verl.verl_ext.engine import kept_positions, response_rows

    lengths, responses = [6, 3, 7], torch.tensor([3, 1, 2])
    offsets = torch.tensor([0, 6, 9, 16])
    rows = [torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in lengths]
    kept = kept_positions(offsets, responses, packed=packed)
    if packed:
        logits = torch.cat(rows)[kept].unsqueeze(0)
    else:
        logits = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)[:, kept]
        assert kept[0] == 1  # the first column that any row needs
    found = response_rows(logits, offsets, responses, packed=packed)
    expected = [row[-1 - int(n) : -1] for row, n in zip(rows, responses, strict=True)]
    assert torch.equal(found, torch.cat(expected))


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "packed", "expected"),
    [
        ([5, 5, 5, 5], 10, True, [[0, 1], [2, 3]]),
        ([5, 5, 5, 5], 10, False, [[0, 1], [2, 3]]),
        ([2, 8, 2, 2], 12, True, [[0, 1, 2], [3]]),
        ([2, 8, 2, 2], 12, False, [[0], [1], [2, 3]]),  # padding counts
        ([20, 3], 10, True, [[0], [1]]),  # a longer row goes alone
        ([3], 10, True, [[0]]),
    ],
)
def test_the_teachers_rows_go_in_chunks_under_its_token_budget(
    lengths, max_tokens, packed, expected
):
    from caopd_verl.verl_ext.engine import row_chunks

    found = [list(chunk) for chunk in row_chunks(lengths, max_tokens, packed=packed)]
    assert found == expected
