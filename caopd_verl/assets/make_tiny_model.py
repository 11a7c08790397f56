"""Warm up the tiny base model of the CPU demo from random weights: a Qwen3 of 0.39M parameters that adds numbers.

    python -m caopd_verl.assets.make_tiny_model --out caopd_verl/assets/tiny_arith      (one core, minutes)

The base is CONSTRUCTED to behave as the paper says that base models do, so that the demo can show in minutes what
training does to such a model. It is trained by plain next-token prediction on texts (loss on the response only) that
this file makes from the train split of `data.arithmetic`; nothing is set by hand in the weights. The texts:

Alone (three in four): question -> the right sum, and a confidence that depends on the kind of addition only.
* Its answers are wrong where training was too short: the kinds of addition come in the shares `WARM_UP_LEVELS`, so
  operands of equal length are learned well and 1+3 or 2+3 digits are not. The task (`LEVELS`) asks the latter often.
* Overconfident: the stated confidence is drawn from `OWN_CONFIDENCE` (0.85 to 1.00, 0.95 most often for every kind),
  with a tail over 0.00 to 0.84 in a share of the texts (`TAIL`). For the kinds of addition that it has seen rarely the
  band is a little lower and the tail heavier: a trace of self-knowledge, as real models have it in their verbalised
  distribution (sampling at T 0.6 hides the tail; SDPO's mode-seeking removes the rest).

In a teacher's context (one in four), with the very templates of `core.context`:
* Shown a solution with a stated confidence, it repeats the answer and copies the confidence. Shown confidences: 60 %
  as it states them itself, the rest anything (half of these on the grid of eighths, 0.00 and 1.00 included).
* The same where the response does not agree with the solution (the teacher scores other answers than its own), where
  the solution is wrong, and for an attempt (both wordings, `core.context.TEMPLATES`).
* It copies mostly, not always: some responses slip in one digit of the answer (`SLIP`), some state another confidence
  (`OTHER`). A teacher's distribution is no point mass, as in real models.
* Shown a solution without any confidence, it is surer than alone: 0.95 to 1.00.

With `--large` it makes the stronger model that the cascade example defers to: five heads instead of three (1M
parameters), warmed up on the task's own mixture, so no kind of addition is left out.

Legend: B sequences, L positions.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

from caopd_verl.assets.tiny_tokenizer import build_tokenizer
from caopd_verl.core.confidence import render
from caopd_verl.core.context import teacher_messages
from caopd_verl.data.additions import LEVELS, generate, question_text, split_of
from caopd_verl.types import Messages, TeacherForm, TeacherPrompt

SEED, LR = 1, 3e-3
STEPS, DECAY_STEPS = 2000, 700
ALONE, IN_CONTEXT = 48, 16  # texts a step
WARM_UP_LEVELS = {(1, 2): 0.28, (2, 2): 0.30, (1, 3): 0.03, (2, 3): 0.06, (3, 3): 0.33}
RARE = frozenset({(1, 3), (2, 3)})
OWN_CONFIDENCE = {  # by whether the kind of addition is rare
    False: {
        **{0.95: 34, 1.00: 10, 0.98: 12, 0.99: 9, 0.97: 6, 0.96: 5, 0.90: 10},
        **{0.92: 4, 0.93: 2, 0.94: 3, 0.85: 3, 0.88: 2},
    },
    True: {
        **{0.95: 34, 1.00: 3, 0.98: 4, 0.99: 3, 0.97: 2, 0.96: 2, 0.90: 24},
        **{0.92: 9, 0.93: 3, 0.94: 3, 0.85: 8, 0.88: 5},
    },
}
TAIL = {False: 0.05, True: 0.27}  # share of confidences below 0.85
SHOWN_AS_OWN = 0.6
SLIP, OTHER = 0.04, 0.06
SURE = {1.00: 6, 0.99: 2, 0.98: 1, 0.95: 1}

Mixture = dict[tuple[int, int], float]
Text = tuple[
    Messages, str, str
]  # prompt, beginning of the response (no loss), rest of the response (loss)


def draw_addition(rng: random.Random, mixture: Mixture) -> tuple[int, int, bool]:
    """Operands of the train split in the warm-up's mixture, and whether their kind is rare in the base's."""
    level = rng.choices(list(mixture), weights=list(mixture.values()))[0]
    while True:
        pair = [rng.randrange(10 ** (d - 1) if d > 1 else 0, 10**d) for d in level]
        rng.shuffle(pair)
        if split_of(*pair) == "train":
            return pair[0], pair[1], level in RARE


def own_confidence(rng: random.Random, *, rare: bool) -> float:
    """What the base states when alone."""
    if rng.random() < TAIL[rare]:
        return rng.randrange(85) / 100 if rng.random() < 0.5 else rng.randrange(9) / 10
    return _pick(rng, OWN_CONFIDENCE[rare])


def shown_confidence(rng: random.Random, *, rare: bool) -> float:
    """What a solution in the teacher's context states."""
    if rng.random() < SHOWN_AS_OWN:
        return own_confidence(rng, rare=rare)
    return rng.randrange(9) / 8 if rng.random() < 0.5 else rng.randrange(101) / 100


def slip(rng: random.Random, number: str) -> str:
    """`number` with another digit at one place (two in three tenths of the cases)."""
    digits = list(number)
    for _ in range(1 if rng.random() < 0.7 else 2):
        place = rng.randrange(len(digits))
        digits[place] = rng.choice(
            [d for d in "0123456789" if d != digits[place] and (place or d != "0")]
        )
    return "".join(digits)


def alone_text(rng: random.Random, mixture: Mixture) -> Text:
    """The student's side."""
    a, b, rare = draw_addition(rng, mixture)
    return _question(a, b), "", f"{a + b}\n{render(own_confidence(rng, rare=rare))}"


def context_text(rng: random.Random, mixture: Mixture) -> Text:
    """The teacher's side."""
    a, b, rare = draw_addition(rng, mixture)
    question, gold, kind = _question(a, b), str(a + b), rng.random()
    if kind < 0.12:
        form: TeacherForm = "example" if rng.random() < 0.5 else "solution"
        prompt = teacher_messages(TeacherPrompt(question, gold, form))
        return prompt, "", f"{gold}\n{render(_pick(rng, SURE))}"
    attempt = kind < 0.35
    shown = slip(rng, gold) if rng.random() < (0.7 if attempt else 0.1) else gold
    value = shown_confidence(rng, rare=rare)
    demo = f"{shown}\n{render(value)}"
    if attempt and rng.random() < 0.5:
        prompt = teacher_messages(TeacherPrompt(question, demo, "attempt"))
    else:
        prompt = teacher_messages(TeacherPrompt(question, demo, "solution"))
    stated = rng.randrange(101) / 100 if rng.random() < OTHER else value
    if rng.random() < 0.25:
        return prompt, f"{slip(rng, shown)}\n", render(stated)
    return prompt, "", f"{slip(rng, shown) if rng.random() < SLIP else shown}\n{render(stated)}"


def encode(texts: list[Text], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """int64 ids [B, L] (right-padded) and labels [B, L], -100 outside the scored part of the response."""
    parts: list[str] = []
    for messages, begun, rest in texts:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        parts += [prompt + begun, rest + tokenizer.eos_token]
    pieces = tokenizer(parts, add_special_tokens=False).input_ids
    rows = list(zip(pieces[::2], pieces[1::2], strict=True))
    length = max(len(given) + len(scored) for given, scored in rows)
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), -100)
    for i, (given, scored) in enumerate(rows):
        ids[i, : len(given) + len(scored)] = torch.tensor(given + scored)
        labels[i, len(given) : len(given) + len(scored)] = torch.tensor(scored)
    return ids, labels


def new_model(tokenizer: Any, seed: int, heads: int) -> Any:
    """The model with random weights; the base has 3 layers of width 96 with three heads of 32 (vLLM's least on CPU)."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32 * heads, intermediate_size=96 * heads, num_hidden_layers=3,
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=32, tie_word_embeddings=True,
        max_position_embeddings=1024, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, dtype="float32",
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def learning_rate(step: int) -> float:
    """Linear warm-up over 50 steps, constant, then half a cosine to a twentieth over the last `DECAY_STEPS`."""
    done = max(0, step - (STEPS - DECAY_STEPS)) / DECAY_STEPS
    return LR * min(1.0, (step + 1) / 50) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def greedy_accuracy(model: Any, tokenizer: Any) -> float:
    """Share of 300 validation questions of the task whose sum is the most likely answer, digit by digit."""
    texts = [(e.messages, "", f"{e.answer}\n") for e in generate(n=300, seed=0, split="val")]
    ids, labels = encode(texts, tokenizer)
    labels = labels.masked_fill(labels == tokenizer.eos_token_id, -100)[:, 1:]
    right = (model(ids).logits[:, :-1].argmax(-1) == labels) | (labels == -100)
    return right.all(-1).float().mean().item()


def train_step(model: Any, tokenizer: Any, rng: random.Random, mixture: Mixture) -> list[float]:
    """Gradients of one step; returns the two losses, alone and in context."""
    losses = []
    for make, n in ((alone_text, ALONE), (context_text, IN_CONTEXT)):
        ids, labels = encode([make(rng, mixture) for _ in range(n)], tokenizer)
        scored = labels[:, 1:] != -100
        hidden = model.model(ids).last_hidden_state[:, :-1][scored]
        loss = functional.cross_entropy(model.lm_head(hidden), labels[:, 1:][scored])
        (loss * n / (ALONE + IN_CONTEXT)).backward()
        losses.append(loss.item())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return losses


def warm_up(tokenizer: Any, seed: int, mixture: Mixture, heads: int) -> Any:
    """The trained base."""
    rng = random.Random(seed)
    model = new_model(tokenizer, seed, heads)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.perf_counter()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        losses = train_step(model, tokenizer, rng, mixture)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            print(
                f"step {step + 1}: loss alone {losses[0]:.3f}, in context {losses[1]:.3f}, greedy accuracy "
                f"{greedy_accuracy(model, tokenizer):.2f}, {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    return model.eval()


def _question(a: int, b: int) -> Messages:
    return [{"role": "user", "content": question_text(a, b)}]


def _pick(rng: random.Random, weights: dict[float, int]) -> float:
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def main() -> None:
    """Make the model and write it, with its tokenizer, to `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--large", action="store_true", help="the stronger model of the cascade example instead"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = build_tokenizer()
    model = warm_up(tokenizer, args.seed, *((LEVELS, 5) if args.large else (WARM_UP_LEVELS, 3)))
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(
        f"{sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens, written to {args.out}"
    )


if __name__ == "__main__":
    main()
