"""Groups of made-up rollouts of the addition task."""

from __future__ import annotations

from typing import Any

from caopd_verl.core.context import encode_prompt
from caopd_verl.core.tokens import find_eot_id
from caopd_verl.data.additions import generate
from caopd_verl.types import Rollout, RolloutGroup
from caopd_verl.verifiers import get_verifier

EXAMPLES = generate(n=4, seed=0, split="train")


def make_group(tokenizer: Any, index: int, right: list[bool], *, uid: str = "") -> RolloutGroup:
    """Rollouts of question `index`, each right or wrong, each stating 0.90."""
    example = EXAMPLES[index]
    eot = find_eot_id(tokenizer)
    rollouts = []
    for ok in right:
        text = f"{example.answer if ok else 10**6}\nConfidence: 0.90"
        ids = (*tokenizer.encode(text, add_special_tokens=False), eot)
        verdict = get_verifier("arithmetic")(text, example.answer)
        rollouts.append(Rollout(ids, (-0.1,) * len(ids), text, verdict, truncated=False))
    prompt = encode_prompt(example.messages, tokenizer=tokenizer, template_kwargs={})
    return RolloutGroup(uid or f"1-{index}", example, tuple(prompt), tuple(rollouts))
