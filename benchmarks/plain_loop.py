"""CaOPD and SDPO in one process: plain PyTorch, transformers' `generate`, no verl, no Ray, no vLLM.

The same model, questions, targets, trajectories, teacher contexts, divergence, averaging and EMA as
the real run: all of them come from `caopd_verl`; only sampling, batching and the optimizer loop are
here. Two uses: the comparator for the speed of a real step (`seconds_per_step`), and a quick way to
try a setting.

    python benchmarks/plain_loop.py --method sdpo_caopd_proper --seed 0 --steps 50

Prints one JSON line for each validation (held-out questions, temperature 0.6, top-p 0.95), the last
one with the mean time of a step. Not here because they are 1 in this setting: the ratios student to
old (one update a step) and old to rollout (one engine).

Legend: B rows, R response positions, T trained tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from caopd_verl import pipeline
from caopd_verl.config import (
    AttemptTemplate,
    Average,
    CaopdConfig,
    ContextConfig,
    LossConfig,
    Unsolved,
)
from caopd_verl.core.confidence import parse
from caopd_verl.core.context import encode_prompt
from caopd_verl.core.ema import ema_update, named_shards
from caopd_verl.core.tokens import find_eot_id
from caopd_verl.data.additions import generate
from caopd_verl.evaluation.metrics.calibration import calibration_metrics
from caopd_verl.losses.divergence import topk_divergence
from caopd_verl.methods import METHODS
from caopd_verl.types import CONFIDENCE_ROLES, Example, Role, Rollout, RolloutGroup
from caopd_verl.verifiers import get_verifier

ASSET = Path(__file__).resolve().parents[1] / "caopd_verl" / "assets" / "tiny_arith"
K, PROMPTS, MAX_NEW = 8, 32, 24
TEMPERATURE, VAL_TEMPERATURE, VAL_TOP_P = 1.0, 0.6, 0.95
MAX_TEACHER_PROMPT = 128
SETTINGS: dict[str, CaopdConfig] = {
    "sdpo": CaopdConfig(method="sdpo"),
    "sdpo_caopd": CaopdConfig(method="sdpo_caopd"),
    "sdpo_caopd_proper": CaopdConfig(
        method="sdpo_caopd",
        unsolved=Unsolved.confidence_only,
        loss=LossConfig(average=Average.token, confidence_alpha=0.0),
    ),
}


@dataclass(frozen=True)
class LoopServices:
    """What the methods ask for (`methods.method.Services`)."""

    config: CaopdConfig
    tokenizer: Any
    eot_id: int
    max_response_tokens: int

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset({self.eot_id})

    def gold_demonstration(self, example: Example) -> str:
        """The gold answer as a response."""
        return get_verifier(example.verifier).demonstration(example.answer)

    def group_advantages(self, rewards: Sequence[float]) -> list[float]:
        """Not here: the loop knows no policy gradient."""
        raise SystemExit("benchmarks/plain_loop.py runs distillation methods only")


class Loop:
    """Student, EMA teacher and optimizer of one run."""

    def __init__(
        self,
        model_path: str,
        config: CaopdConfig,
        *,
        rate: Callable[[int], float],
        betas: tuple[float, float],
        seed: int,
    ) -> None:
        self.config, self.rate, self.seed = config, rate, seed
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
        self.student: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
        self.teacher: Any = copy.deepcopy(self.student).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=rate(0), weight_decay=0.01, betas=betas
        )
        self.eot = find_eot_id(self.tokenizer)
        self.method = METHODS[config.method]
        self.targets = pipeline.target_rule(config)
        self.services = LoopServices(config, self.tokenizer, self.eot, MAX_NEW)

    def step(self, index: int, examples: Sequence[Example]) -> dict[str, float]:
        """One training step on `examples`: sample K each, verify, revise, distil, EMA."""
        torch.manual_seed(self.seed * 1_000_003 + index)
        times = [time.perf_counter()]
        groups = self.sample(examples, n=K, temperature=TEMPERATURE, top_p=1.0)
        times.append(time.perf_counter())
        rows, targets = self.rows(groups)
        metrics = self.update(index, rows)
        times.append(time.perf_counter())
        metrics["distance"] = ema_update(
            named_shards(self.teacher), named_shards(self.student), self.config.teacher.ema_rate
        )
        return metrics | {
            "p_hat": sum(targets) / len(targets),
            "unsolved": sum(p == 0 for p in targets) / len(targets),
            "rows": len(rows),
            "sample_s": times[1] - times[0],
            "update_s": times[2] - times[1],
        }

    @torch.no_grad()
    def sample(
        self, examples: Sequence[Example], *, n: int, temperature: float, top_p: float
    ) -> list[RolloutGroup]:
        """`n` verified rollouts of each example, in one batch."""
        prompts = [
            encode_prompt(e.messages, tokenizer=self.tokenizer, template_kwargs={})
            for e in examples
        ]
        ids, mask = pad(
            [p for p in prompts for _ in range(n)], left=True, value=self.tokenizer.pad_token_id
        )
        out = self.student.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            max_new_tokens=MAX_NEW,
            eos_token_id=self.eot,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        responses = [cut_after(row, self.eot) for row in out[:, ids.shape[1] :].tolist()]
        texts = self.tokenizer.batch_decode(
            responses, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        groups = []
        for g, (example, prompt) in enumerate(zip(examples, prompts, strict=True)):
            verify = get_verifier(example.verifier)
            rollouts = tuple(
                Rollout(
                    tuple(r), (), text, verify(text, example.answer), truncated=r[-1] != self.eot
                )
                for r, text in zip(
                    responses[g * n : g * n + n], texts[g * n : g * n + n], strict=True
                )
            )
            groups.append(RolloutGroup(f"{g}", example, tuple(prompt), rollouts))
        return groups

    def rows(self, groups: Sequence[RolloutGroup]) -> tuple[list[pipeline.UpdateRow], list[float]]:
        """Trained rows and each group's p-hat."""
        plan = self.method.plan(self.config, K)
        targets = pipeline.targets_of(groups, plan, self.targets)
        rows = pipeline.update_rows(
            pipeline.trajectories_of(groups, targets, self.method, self.services),
            tokenizer=self.tokenizer,
            config=self.config,
            template_kwargs={},
        )
        trained = [row for row in rows if row.trajectory.n_trained]
        return trained, [target.p_hat for target in targets]

    def update(self, index: int, rows: Sequence[pipeline.UpdateRow]) -> dict[str, float]:
        """One optimizer step on the rows' weighted mean divergence."""
        loss_config = self.config.loss
        trajectories = [row.trajectory for row in rows]
        pad_id = self.tokenizer.pad_token_id
        responses, _ = pad([t.token_ids for t in trajectories], left=False, value=pad_id)
        roles_BR, _ = pad([t.roles for t in trajectories], left=False, value=int(Role.REASONING))
        weights = pipeline.token_weights(trajectories, self.config)
        weights_BR = torch.nn.utils.rnn.pad_sequence(weights, batch_first=True)
        mask_BR = weights_BR != 0
        roles_T = roles_BR[mask_BR]
        confidence_T = torch.isin(roles_T, torch.tensor([int(r) for r in CONFIDENCE_ROLES]))
        value_T = roles_T == int(Role.CONFIDENCE_VALUE)
        self.student.train()
        prompts = [list(t.prompt_ids) for t in trajectories]
        shown = [row.teacher_prompt_ids or [] for row in rows]
        student_TV = self.logits(self.student, prompts, rows, mask_BR)
        with torch.no_grad():
            teacher_TV = self.logits(self.teacher, shown, rows, mask_BR)
        alpha_T = torch.where(confidence_T, self.config.confidence_alpha, loss_config.alpha)
        loss_T, per_token = topk_divergence(
            student_TV,
            teacher_TV,
            responses[mask_BR],
            k=loss_config.top_k,
            alpha_T=alpha_T,
            temperature=TEMPERATURE,
            chunk_tokens=1 << 16,
        )
        loss = (loss_T * weights_BR[mask_BR]).sum()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(index)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        return {
            "loss": loss.item(),
            "reasoning_loss": mean_where(loss_T.detach(), ~confidence_T),
            "confidence_loss": mean_where(loss_T.detach(), confidence_T),
            "teacher_value_prob": mean_where(per_token["teacher_log_probs"].exp(), value_T),
            "student_value_prob": mean_where(per_token["student_log_probs"].exp(), value_T),
            "grad_norm": float(norm),
        }

    def logits(
        self,
        model: Any,
        prompts: Sequence[list[int]],
        rows: Sequence[pipeline.UpdateRow],
        mask_BR: Tensor,
    ) -> Tensor:
        """fp32 logits [T, V] of the trained tokens, each from the position before it."""
        pad_id = self.tokenizer.pad_token_id
        left, left_mask = pad(prompts, left=True, value=pad_id)
        right, right_mask = pad([r.trajectory.token_ids for r in rows], left=False, value=pad_id)
        mask = torch.cat([left_mask, right_mask], 1)
        hidden = model.model(
            input_ids=torch.cat([left, right], 1),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        ).last_hidden_state
        return model.lm_head(hidden[:, left.shape[1] - 1 : -1][mask_BR])

    def validate(self, examples: Sequence[Example], *, batch: int = 500) -> dict[str, Any]:
        """Calibration metrics of one sampled response for each held-out question."""
        torch.manual_seed(self.seed)
        self.student.eval()
        groups = []
        for start in range(0, len(examples), batch):
            part = examples[start : start + batch]
            groups += self.sample(part, n=1, temperature=VAL_TEMPERATURE, top_p=VAL_TOP_P)
        rollouts = [group.rollouts[0] for group in groups]
        stated = [parse(rollout.text).value for rollout in rollouts]
        return dict(
            calibration_metrics(
                stated, [r.verdict.correct for r in rollouts], n_bins=10, missing="drop"
            )
        )


def pad(sequences: Sequence[Sequence[int]], *, left: bool, value: int) -> tuple[Tensor, Tensor]:
    """int64 ids and mask, [B, longest]."""
    width = max(len(s) for s in sequences)
    ids = torch.full((len(sequences), width), value)
    mask = torch.zeros(len(sequences), width, dtype=torch.int64)
    for i, sequence in enumerate(sequences):
        where = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[i, where] = torch.tensor(sequence)
        mask[i, where] = 1
    return ids, mask


def mean_where(values_T: Tensor, where_T: Tensor) -> float:
    """Mean over the chosen tokens; NaN where none is chosen."""
    return float(values_T[where_T].mean()) if bool(where_T.any()) else float("nan")


def cut_after(ids: list[int], eot: int) -> list[int]:
    """The ids up to the end-of-turn token."""
    return ids[: ids.index(eot) + 1] if eot in ids else ids


def learning_rates(
    peak: float, *, warmup: int, steps: int, schedule: str
) -> Callable[[int], float]:
    """Step -> learning rate, as verl's schedulers.

    Linear warm-up from 0, then constant or half a cosine to 0.
    """

    def rate(index: int) -> float:
        if index < warmup:
            return peak * index / warmup
        done = (index - warmup) / max(1, steps - warmup)
        return peak * (0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0)

    return rate


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run one method with one seed; returns what was printed."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    config = SETTINGS[args.method]
    average = Average(args.average) if args.average else config.loss.average
    template = AttemptTemplate(args.attempt_template)
    context = ContextConfig(max_tokens=MAX_TEACHER_PROMPT, attempt_template=template)
    config = replace(config, loss=replace(config.loss, average=average), context=context)
    rate = learning_rates(args.lr, warmup=args.warmup, steps=args.steps, schedule=args.schedule)
    loop = Loop(args.model, config, rate=rate, betas=(0.9, args.beta2), seed=args.seed)
    train = generate(n=PROMPTS * args.steps, seed=1000 + args.seed, split="train")
    test = generate(n=args.n_val, seed=args.val_seed, split="test")
    records: list[dict[str, Any]] = []

    def report(record: dict[str, Any]) -> None:
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}
        records.append({"method": args.method, "seed": args.seed, **rounded})
        print(json.dumps(records[-1]), flush=True)

    spent = 0.0
    for index in range(args.steps):
        if index in args.validate_at:
            report({"step": index, **loop.validate(test)})
        started = time.perf_counter()
        metrics = loop.step(index, train[PROMPTS * index : PROMPTS * (index + 1)])
        spent += time.perf_counter() - started
        if args.log_every and index % args.log_every == 0:
            report({"step": index, **metrics})
    report(
        {"step": args.steps, "seconds_per_step": spent / max(1, args.steps), **loop.validate(test)}
    )
    if args.save:
        loop.student.save_pretrained(args.save)
        loop.tokenizer.save_pretrained(args.save)
    return records


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ASSET))
    parser.add_argument("--method", choices=sorted(SETTINGS), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--schedule", choices=("constant", "cosine"), default="cosine")
    parser.add_argument("--beta2", type=float, default=0.999)
    parser.add_argument("--average", choices=("token", "sequence"))
    parser.add_argument("--attempt-template", choices=("solution", "attempt"), default="solution")
    parser.add_argument("--n-val", type=int, default=1000)
    parser.add_argument("--val-seed", type=int, default=7)
    parser.add_argument("--validate-at", type=int, nargs="*", default=[])
    parser.add_argument("--log-every", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
