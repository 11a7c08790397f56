"""One rank, two ranks, golden files and a resumed run: the same losses and the same EMA teacher.

On recorded rollouts, because a sampled token may differ between two runs by the last bit of a
logit. Everything behind the sampling is the real thing.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from .conftest import STEPS, journal, replay_overrides, run_main

pytestmark = pytest.mark.stack
# rows of both kinds, and a divergence of its own for the confidence: everything that can differ
MIXED = ["caopd.unsolved=confidence_only", "caopd.loss.confidence_alpha=0.0"]
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def one_rank(recorded, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("one_rank")
    run_main(*replay_overrides(recorded, output), *MIXED)
    return output


@pytest.fixture(scope="module")
def two_ranks(recorded, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("two_ranks")
    run_main(*replay_overrides(recorded, output), *MIXED, "trainer.n_gpus_per_node=2")
    return output


def losses(folder: Path) -> list[float]:
    return [row["loss/total"] for row in journal(folder)]


def teacher(folder: Path, step: int, world_size: int) -> dict[str, torch.Tensor]:
    """The full teacher, its shards joined along the first dimension as FSDP2 splits them."""
    path = folder / "checkpoints" / f"global_step_{step}" / "teacher"
    shards = [
        torch.load(path / f"ema_world_size_{world_size}_rank_{r}.pt") for r in range(world_size)
    ]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def assert_same_teacher(
    left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], rtol: float
) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == torch.float32
        distance = (tensor - right[name]).norm() / tensor.norm()
        assert distance <= rtol, f"{name}: {distance:.2e}"


def assert_golden(folder: Path, name: str) -> None:
    """The losses are those on file. To accept new ones: copy the file that the message names.

    The tolerance is for other processors, whose sums round otherwise; on the machine that wrote
    the files they are equal to the last digit.
    """
    found = losses(folder)
    fresh = folder / f"{name}.txt"
    fresh.write_text("".join(f"{value!r}\n" for value in found))
    expected = [float(line) for line in (GOLDEN / f"{name}.txt").read_text().splitlines()]
    assert found == pytest.approx(expected, rel=1e-4), f"the new losses are in {fresh}"
    assert len(found) == STEPS and all(loss > 0 for loss in found)


def test_golden_ten_steps(one_rank):
    """A refactoring must not move the losses."""
    assert_golden(one_rank, "ten_steps")


@pytest.mark.parametrize("recipe", ["sdpo", "sdpo_caopd", "sdpo_caopd_proper"])
def test_golden_run_of_each_recipe_as_it_stands(recorded, tmp_path, recipe):
    run_main(*replay_overrides(recorded, tmp_path), recipe=recipe)
    assert_golden(tmp_path, recipe)


def test_two_ranks_give_the_losses_and_teacher_of_one(one_rank, two_ranks):
    assert losses(two_ranks) == pytest.approx(losses(one_rank), rel=1e-4)
    assert_same_teacher(teacher(one_rank, STEPS, 1), teacher(two_ranks, STEPS, 2), rtol=1e-4)


GPU_BATCHES = [
    "actor_rollout_ref.model.use_remove_padding=true",  # all rows of a micro-batch in one sequence
    "actor_rollout_ref.model.enable_gradient_checkpointing=true",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",  # by tokens, differently on each rank
    "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=true",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=700",
    "trainer.n_gpus_per_node=2",
]


def test_batches_as_on_gpus_give_the_losses_and_teacher_of_padded_ones(
    one_rank, recorded, tmp_path
):
    """The recipes' own batching: packed, by tokens, checkpointed, several ranks."""
    run_main(*replay_overrides(recorded, tmp_path), *MIXED, *GPU_BATCHES)
    assert losses(tmp_path) == pytest.approx(losses(one_rank), rel=1e-4)
    assert_same_teacher(teacher(one_rank, STEPS, 1), teacher(tmp_path, STEPS, 2), rtol=1e-4)


@pytest.mark.slow
def test_under_bf16_compute_student_and_teacher_are_kept_in_fp32(one_rank, recorded, tmp_path):
    """Mixed precision as on GPUs: other rounding, the same course, an EMA that is not frozen."""
    mixed = "{param_dtype: bf16, reduce_dtype: fp32, buffer_dtype: fp32}"
    roles = ("actor", "ref")
    bf16 = [f"actor_rollout_ref.{role}.fsdp_config.mixed_precision={mixed}" for role in roles]
    bf16 += [f"actor_rollout_ref.{role}.fsdp_config.dtype=bfloat16" for role in roles]
    run_main(*replay_overrides(recorded, tmp_path), *MIXED, *GPU_BATCHES[:1], *bf16)
    assert losses(tmp_path) == pytest.approx(losses(one_rank), rel=0.05)
    assert losses(tmp_path) != losses(one_rank)
    before, after, exact = (
        teacher(tmp_path, 5, 1),
        teacher(tmp_path, STEPS, 1),
        teacher(one_rank, STEPS, 1),
    )
    moved = sum((after[name] - before[name]).norm() ** 2 for name in before) ** 0.5
    apart = sum((after[name] - exact[name]).norm() ** 2 for name in before) ** 0.5
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    assert 0 < apart < 0.2 * moved


def test_the_teacher_moves_and_is_not_the_student(one_rank):
    first, last = teacher(one_rank, 5, 1), teacher(one_rank, STEPS, 1)
    assert any(not torch.equal(first[name], last[name]) for name in first)
    path = (
        one_rank / "checkpoints" / f"global_step_{STEPS}" / "actor" / "model_world_size_1_rank_0.pt"
    )
    student = torch.load(path, weights_only=False)
    assert any(not torch.equal(last[name], student[name].full_tensor()) for name in last)


def test_resumed_run_gives_the_next_losses_of_the_uninterrupted_one(one_rank, recorded, tmp_path):
    """Interrupted after step 5: the rest and the EMA teacher are those of the run that went on."""
    source = one_rank / "checkpoints"
    shutil.copytree(source / "global_step_5", tmp_path / "checkpoints" / "global_step_5")
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("5")
    run_main(*replay_overrides(recorded, tmp_path), *MIXED)
    assert [row["step"] for row in journal(tmp_path)] == [6, 7, 8, 9, 10]
    assert losses(tmp_path) == losses(one_rank)[5:]
    assert_same_teacher(teacher(one_rank, STEPS, 1), teacher(tmp_path, STEPS, 1), rtol=0.0)
