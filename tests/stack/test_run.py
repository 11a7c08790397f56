"""What a user runs: sampling, update, validation, loggers, report, checkpoint in other tools."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from caopd_verl.core.confidence import parse
from caopd_verl.data.additions import generate
from caopd_verl.verl_ext.rollout import read_groups, write_groups

from .conftest import ROLLOUTS, journal, replay_overrides, run_main

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("run") / "run"
    os.environ["WANDB_MODE"] = "offline"
    os.environ["WANDB_DIR"] = str(output.parent)
    os.environ["TENSORBOARD_DIR"] = str(output.parent / "tensorboard")
    text = run_main(
        f"caopd.output_dir={output}",
        "trainer.total_training_steps=2",
        "trainer.test_freq=2",
        "trainer.save_freq=2",
        "trainer.logger=[wandb,tensorboard]",
        "caopd.task.n_val=60",
        "data.train_batch_size=8",
        # two mini-batches, so that old log-probs are needed
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        recipe="sdpo_caopd_proper",
    )
    return output, text


def test_journal_holds_what_training_has_to_show(run):
    rows = journal(run[0])
    assert [row["step"] for row in rows] == [0, 1, 2]
    step = rows[-1]
    for key in (
        *(
            "loss/total",
            "loss/reasoning",
            "loss/confidence",
            "reasoning/student_entropy",
            "reasoning/teacher_entropy",
        ),
        *(
            "teacher/p_hat_token_prob",
            "student/p_hat_token_prob",
            "ema/distance",
            "actor/grad_norm",
        ),
        *(
            "target/groups_none",
            "target/groups_one",
            "target/groups_all",
            "target/successes_0",
            "target/successes_8",
        ),
        *(
            "timing_s/gen",
            "timing_s/update_actor",
            "timing_s/old_log_prob",
            "val/arithmetic/stated/ece",
        ),
        *("val/arithmetic/expected/brier", "rollout/sampler_ratio_mean", "rows/trained"),
    ):
        assert key in step, key
    assert sum(step[f"target/successes_{k}"] for k in range(9)) == 8
    assert step["rollout/prob_diff_mean"] < 1e-3  # vLLM has the trainer's weights of this very step
    assert step["ema/distance"] > 0


def test_rollouts_and_trainer_agree_after_the_weight_sync(run):
    """Ratios of trainer to sampler are 1 up to numerics: vLLM has the weights that are trained."""
    for row in journal(run[0])[1:]:
        assert row["rollout/sampler_ratio_mean"] == pytest.approx(1.0, abs=1e-3)


def test_report_and_rows(run):
    output = run[0]
    report = json.loads((output / "metrics.json").read_text())
    assert report["step"] == 2 and report["n_rows"] == 60
    assert {"stated", "expected"} <= set(report["readouts"])
    for name in (
        "reliability_stated",
        "reliability_expected",
        "confidence_stated",
        "confidence_expected",
    ):
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = [
        json.loads(line)
        for line in (output / "validation" / "step_000002.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 60 and {row["source"] for row in rows} == {"arithmetic"}
    assert all(row["confidence"] == parse(row["response"]).value for row in rows)
    assert {row["prompt"] for row in rows} <= {
        e.messages[-1]["content"] for e in generate(n=60, seed=0, split="test")
    }


def test_wandb_offline_and_tensorboard_hold_the_metrics(run):
    parent = run[0].parent
    assert list(parent.glob("wandb/offline-run-*")), "no offline wandb run"
    assert list((parent / "tensorboard").rglob("events.out.tfevents*")), "no tensorboard events"


def test_console_shows_steps_and_validation(run):
    assert "step 2/2  loss" in run[1] and "validation at step 2" in run[1]


def test_checkpoint_loads_in_plain_transformers_with_the_students_weights(run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    actor = run[0] / "checkpoints" / "global_step_2" / "actor"
    model = AutoModelForCausalLM.from_pretrained(actor / "huggingface", dtype=torch.float32)
    shards = torch.load(actor / "model_world_size_1_rank_0.pt", weights_only=False)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), shards[name].full_tensor()), name
    tokenizer = AutoTokenizer.from_pretrained(actor / "huggingface")
    prompt = tokenizer.apply_chat_template(
        generate(n=1, seed=5, split="test")[0].messages,
        add_generation_prompt=True,
        return_tensors="pt",
    )
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)[
        0, prompt["input_ids"].shape[1] :
    ]
    assert parse(tokenizer.decode(answer, skip_special_tokens=True)).value is not None


def test_checkpoint_loads_in_vllm(run):
    import subprocess
    import sys

    folder = run[0] / "checkpoints" / "global_step_2" / "actor" / "huggingface"
    code = (
        "from vllm import LLM, SamplingParams\n"
        f"llm = LLM({str(folder)!r}, dtype='float32', enforce_eager=True, max_model_len=128)\n"
        "out = llm.chat([{'role': 'user', 'content': '12+34=?'}], SamplingParams(max_tokens=4))\n"
        "print('TOKENS', len(out[0].outputs[0].token_ids))\n"
    )
    from caopd_verl.verl_ext.runner import CPU_ENV

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **CPU_ENV},
        timeout=300,
    )
    assert "TOKENS" in done.stdout, done.stderr[-3000:]


def test_a_step_without_any_teacher_is_an_error_or_is_counted(recorded, tmp_path):
    """No step trains on nothing without saying so."""
    for step in (1, 2, 3):
        groups = read_groups(str(recorded), step)
        if step == 2:  # nobody is right
            wrong = [g for g in groups if not any(r.verdict.correct for r in g.rollouts)]
            groups = wrong * len(groups)
        write_groups(
            groups[: len(read_groups(str(recorded), step))], str(tmp_path / "recorded"), step
        )
    overrides = replay_overrides(tmp_path / "recorded", tmp_path / "out")
    overrides += ["trainer.total_training_steps=3", "trainer.save_freq=-1"]
    text = run_main(*overrides, "caopd.empty_batch=skip")
    rows = journal(tmp_path / "out")
    assert [row["train/empty_step"] for row in rows] == [0, 1, 0] and ROLLOUTS
    assert "no group has a teacher" in text
