"""One update: what the workers are told. The workers and verl's queue are the boundary."""

from __future__ import annotations

import pytest
import torch

from caopd_verl.config import CaopdConfig

from .rows import make_row, mixed_rows

pytestmark = pytest.mark.usefixtures("verl_on_cpu")

UPDATE_OUTPUT = {
    "loss": 0.5,
    "grad_norm": 1.0,
    "lr": 1e-5,
    "sum/reasoning_tokens": 1.0,
    "sum/confidence_tokens": 0.0,
    "sum/value_tokens": 0.0,
    "sum/sampled_tokens": 0.0,
}


class FakeWorkers:
    """Records what the real worker group would be asked to do."""

    def __init__(self):
        self.updates = []
        self.log_prob_calls = []

    def update_actor(self, batch):
        from tensordict import TensorDict
        from verl.utils import tensordict_utils as tu

        self.updates.append(dict(batch.extra_info))
        output = TensorDict({}, batch_size=[])
        tu.assign_non_tensor(output, metrics=UPDATE_OUTPUT)
        return output

    def compute_log_prob(self, batch):
        self.log_prob_calls.append(dict(batch.extra_info))


@pytest.fixture
def queue(monkeypatch):
    """verl's TransferQueue as a dict of what was put."""
    import transfer_queue as tq

    fields = {}

    def put(keys, partition_id, fields=None, tags=None, _store=fields):
        _store.setdefault("keys", list(keys))
        if fields is not None:
            for name, value in fields.items():
                _store[name] = value

    monkeypatch.setattr(tq, "kv_batch_put", put)
    return fields


@pytest.fixture
def make_update(compose):
    def make(*overrides, has_teacher=True):
        from caopd_verl.verl_ext.update import Update

        config = compose("+recipe=sdpo_caopd", "+scale=cpu_tiny", *overrides)
        workers = FakeWorkers()
        return Update(config, CaopdConfig(), workers, has_teacher=has_teacher), workers

    return make


BATCH = [
    "data.train_batch_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
]


def test_a_step_with_one_optimizer_step_needs_no_old_log_probs(make_update):
    update, _ = make_update(*BATCH)
    assert not update.needs_old_log_probs


@pytest.mark.parametrize(
    ("override", "n_mini_batches"),
    [
        ("actor_rollout_ref.actor.ppo_mini_batch_size=2", 2),
        ("actor_rollout_ref.actor.ppo_epochs=3", 1),
    ],
)
def test_several_optimizer_steps_need_them_and_scale_by_mini_batches_alone(
    make_update, queue, override, n_mini_batches
):
    """Further passes over the same rows do not make each update's loss larger."""
    update, workers = make_update(*BATCH, override)
    assert update.needs_old_log_probs
    batch = update.put(mixed_rows(), global_step=3)
    update.run(batch)
    assert workers.updates[0]["n_mini_batches"] == n_mini_batches


def test_rows_are_filled_up_to_what_ranks_and_mini_batches_split(make_update, queue):
    update, workers = make_update(
        *BATCH,
        "actor_rollout_ref.actor.ppo_mini_batch_size=1",
        "trainer.n_gpus_per_node=2",
    )
    rows = mixed_rows()  # six: 4 mini-batches x 2 ranks take eight
    batch = update.put(rows, global_step=3)
    assert len(batch.keys) == 8 and batch.keys[:1] == ["1-0_0_0"]
    assert float(queue["loss_weight"].values().sum()) == pytest.approx(1.0)
    update.run(batch)
    told = workers.updates[0]
    assert told["mini_batch_size"] == 2 and told["micro_batch_size_per_gpu"] == 1


def test_fewer_rows_than_a_micro_batch_are_one_micro_batch(make_update, queue):
    """A method may train fewer rows than it samples; padding up to the micro-batch would cost."""
    update, workers = make_update(*BATCH)
    batch = update.put([make_row(0), make_row(1)], global_step=1)
    assert len(batch.keys) == 2
    update.run(batch)
    assert workers.updates[0]["micro_batch_size_per_gpu"] == 2


def test_more_rows_than_a_micro_batch_are_filled_up_to_whole_ones(make_update, queue):
    update, workers = make_update(*BATCH)
    batch = update.put([make_row(index) for index in range(10)], global_step=1)
    assert len(batch.keys) == 16
    update.run(batch)
    assert workers.updates[0]["micro_batch_size_per_gpu"] == 8


def test_micro_batches_by_tokens_are_left_to_verl(make_update, queue):
    update, workers = make_update(
        *BATCH,
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=true",
    )
    batch = update.put(mixed_rows(), global_step=1)
    assert len(batch.keys) == 6
    update.run(batch)
    assert "micro_batch_size_per_gpu" not in workers.updates[0]


def test_ranks_are_balanced_by_the_teachers_tokens_too(make_update, queue):
    update, _ = make_update(*BATCH)
    row = make_row(0, n_prompt=3, n_response=6)
    both = update.put([row], global_step=1).tags[0]["seq_len"]
    alone, _ = make_update(*BATCH, has_teacher=False)
    student = alone.put([row], global_step=1).tags[0]["seq_len"]
    assert student == 3 + 6 and both == student + len(row.teacher_prompt_ids) + 6


def test_old_log_probs_are_asked_for_at_the_sampling_temperature(make_update, queue, monkeypatch):
    import transfer_queue as tq
    from tensordict import TensorDict

    update, workers = make_update(*BATCH, "actor_rollout_ref.rollout.temperature=0.7")
    rows = [make_row(0, n_prompt=2, n_response=3), make_row(1, n_prompt=1, n_response=4)]
    batch = update.put(rows, global_step=1)
    mask = queue["response_mask"]
    whole = torch.nested.nested_tensor_from_jagged(torch.arange(10.0), queue["input_ids"].offsets())
    found = TensorDict({"log_probs": whole, "response_mask": mask}, batch_size=[2])
    monkeypatch.setattr(tq, "kv_batch_get", lambda **_: found)
    update.put_old_log_probs(batch)
    assert workers.log_prob_calls[0]["temperature"] == 0.7
    # of the response tokens alone, each from the position before it
    assert queue["old_log_probs"].values().tolist() == [1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 8.0]


def test_the_student_is_divided_by_the_temperature_once(make_update, queue):
    """By our loss in fp32: the framework is told 1, or the logits would be divided twice."""
    from caopd_verl.verl_ext.loss import SAMPLING_TEMPERATURE

    update, workers = make_update(*BATCH, "actor_rollout_ref.rollout.temperature=0.7")
    update.run(update.put(mixed_rows(), global_step=1))
    told = workers.updates[0]
    assert (told["temperature"], told[SAMPLING_TEMPERATURE]) == (1.0, 0.7)
