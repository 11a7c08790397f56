"""Hand-made groups of the addition task, and a method's answer to them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from caopd_verl.config import CaopdConfig
from caopd_verl.core.context import encode_prompt, teacher_messages
from caopd_verl.core.tokens import find_eot_id
from caopd_verl.data.additions import generate
from caopd_verl.methods import METHODS
from caopd_verl.pipeline import target_rule, targets_of
from caopd_verl.types import CONFIDENCE_ROLES, Role, Rollout, RolloutGroup, Trajectory
from caopd_verl.verifiers import get_verifier
from tests.services import FakeServices

EXAMPLE = generate(n=1, seed=0, split="train")[0]
RIGHT = EXAMPLE.answer
WRONG = str(int(RIGHT) + 1)


@pytest.fixture
def eot(tiny_tokenizer) -> int:
    return find_eot_id(tiny_tokenizer)


@pytest.fixture
def rollout(tiny_tokenizer, eot) -> Callable[..., Rollout]:
    def make(text: str, *, truncated: bool = False) -> Rollout:
        body = tiny_tokenizer.encode(text, add_special_tokens=False)
        ids = (*body, *(() if truncated else (eot,)))
        log_probs = tuple(-0.01 * position for position in range(len(ids)))
        verdict = get_verifier("arithmetic")(text, EXAMPLE.answer)
        return Rollout(ids, log_probs, text, verdict, truncated)

    return make


@pytest.fixture
def group(rollout, tiny_tokenizer) -> Callable[..., RolloutGroup]:
    """A group from texts; an answer alone gets a line that states 0.90."""

    def make(*texts: str | Rollout, example=EXAMPLE) -> RolloutGroup:
        rollouts = []
        for text in texts:
            if isinstance(text, str):
                text = rollout(text if "\n" in text else f"{text}\nConfidence: 0.90")
            rollouts.append(text)
        prompt = encode_prompt(example.messages, tokenizer=tiny_tokenizer, template_kwargs={})
        return RolloutGroup("1-0", example, tuple(prompt), tuple(rollouts))

    return make


@pytest.fixture
def run(tiny_tokenizer, eot):
    """Trajectories of a method and the target they were made with, as the pipeline makes them."""

    def call(method: str, group: RolloutGroup, *, limit: int = 48, k: int | None = None, **config):
        caopd = CaopdConfig(method=method, **config)
        services = FakeServices(caopd, tiny_tokenizer, eot, limit)
        plan = METHODS[method].plan(caopd, len(group.rollouts) if k is None else k)
        (target,) = targets_of([group], plan, target_rule(caopd))
        return METHODS[method].trajectories(group, target, services), target

    return call


def text_of(tokenizer, trajectory: Trajectory) -> str:
    return tokenizer.decode(list(trajectory.token_ids), skip_special_tokens=True)


def teacher_text(trajectory: Trajectory) -> str:
    return teacher_messages(trajectory.teacher_prompt)[-1]["content"]


def trained(trajectory: Trajectory) -> list[bool]:
    return [weight != 0 for weight in trajectory.weights]


def confidence(trajectory: Trajectory) -> list[bool]:
    return [role in CONFIDENCE_ROLES for role in trajectory.roles]


def ids_with(trajectory: Trajectory, *roles: Role) -> list[int]:
    pairs = zip(trajectory.token_ids, trajectory.roles, strict=True)
    return [token for token, role in pairs if role in roles]
