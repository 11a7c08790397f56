"""Runs of the real entry point, in a subprocess each: Ray, FSDP2 over gloo and vLLM's CPU build."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from caopd_verl.core.confidence import render
from caopd_verl.data.additions import generate
from caopd_verl.preflight.model_files import load_tokenizer, resolve_model_path
from caopd_verl.types import Rollout, RolloutGroup
from caopd_verl.verifiers import get_verifier
from caopd_verl.verl_ext.rollout import write_groups

PROMPTS, ROLLOUTS, STEPS = 8, 4, 10


def run_main(*overrides: str, recipe: str = "sdpo_caopd", timeout: int = 600) -> str:
    """`python -m caopd_verl.main`; returns its output, fails the test with the output's end."""
    command = [
        sys.executable,
        "-m",
        "caopd_verl.main",
        f"+recipe={recipe}",
        "+scale=cpu_tiny",
        *overrides,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, errors="replace"
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-6000:]
    return output


def journal(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def recorded(tmp_path_factory) -> Path:
    """Ten steps of made-up rollouts: right and wrong, odd confidences, log-probs of -0.1."""
    folder = tmp_path_factory.mktemp("recorded")
    tokenizer = load_tokenizer(resolve_model_path("embedded:tiny_arith"), trust_remote_code=False)
    eot = tokenizer.convert_tokens_to_ids("<|im_end|>")
    rng = random.Random(0)
    examples = generate(n=PROMPTS * STEPS, seed=0, split="train")
    verify = get_verifier("arithmetic")
    for step in range(1, STEPS + 1):
        groups = []
        for index, example in enumerate(examples[(step - 1) * PROMPTS : step * PROMPTS]):
            prompt = tokenizer.apply_chat_template(
                example.messages, add_generation_prompt=True, tokenize=False
            )
            rollouts = []
            for _ in range(ROLLOUTS):
                # some groups are all right, some all wrong: masks and weights differ
                right = rng.random() < index / (PROMPTS - 1)
                answer = example.answer if right else str(int(example.answer) + rng.randint(1, 20))
                text = f"{answer}\n{render(rng.choice([0.9, 0.95, 1.0]))}"
                ids = (*tokenizer.encode(text, add_special_tokens=False), eot)
                rollouts.append(
                    Rollout(
                        ids, (-0.1,) * len(ids), text, verify(text, example.answer), truncated=False
                    )
                )
            ids = tokenizer.encode(prompt, add_special_tokens=False)
            groups.append(RolloutGroup(f"{step}-{index}", example, tuple(ids), tuple(rollouts)))
        write_groups(groups, str(folder), step)
    return folder


def replay_overrides(recorded: Path, output: Path) -> list[str]:
    """Small batches of recorded rollouts, no validation."""
    return [
        f"caopd.rollout.replay_path={recorded}",
        f"caopd.output_dir={output}",
        f"data.train_batch_size={PROMPTS}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        f"actor_rollout_ref.rollout.n={ROLLOUTS}",
        "caopd.task.n_train=80",
        "caopd.task.n_val=8",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        f"trainer.total_training_steps={STEPS}",
        "trainer.save_freq=5",
        "trainer.max_actor_ckpt_to_keep=null",
    ]
