"""The table of checks, in the order in which a run makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from caopd_verl.preflight.checks import (
    batches,
    caopd_block,
    devices,
    model,
    prompts,
    refused,
    resume,
    sampling,
)
from caopd_verl.preflight.run_context import Context


class Cost(IntEnum):
    """What a check takes. The cheap ones come first: a slip of the pen is found without waiting."""

    CHEAP = 1  # reads the config and looks at folders
    LOADS = 2  # reads the data files, or generates the questions
    DOWNLOADS = 3  # reads the model's tokenizer and config, from the hub unless they are local

    @property
    def label(self) -> str:
        """As `caopd doctor` prints it."""
        return self.name.lower()


@dataclass(frozen=True)
class Check:
    """One row.

    Attributes:
        name: how reports and `needs` call it.
        promise: one sentence, what holds where it passes.
        function: raises one `CaopdError` where it does not.
        cost: of this check and of what it is the first to load.
        needs: the checks, further up, without which this one could only repeat their errors.
    """

    name: str
    promise: str
    function: Callable[[Context], None]
    cost: Cost
    needs: tuple[str, ...] = ()


# In the order in which they run: what a check `needs` stands above it.
CHECKS: tuple[Check, ...] = (
    Check(
        "keys",
        "every key of the caopd block is one that its schema has",
        caopd_block.check_keys,
        Cost.CHEAP,
    ),
    Check(
        "values",
        "the values of the caopd block can work together, and with the method",
        caopd_block.check_values,
        Cost.CHEAP,
    ),
    Check(
        "refused",
        "no verl setting is on that would do something else than it says",
        refused.check_refused,
        Cost.CHEAP,
    ),
    Check(
        "devices",
        "there are as many devices as ranks that ask for one",
        devices.check_devices,
        Cost.CHEAP,
    ),
    Check(
        "strategy",
        "the model is sharded by FSDP2, whose shards the teacher can follow",
        batches.check_strategy,
        Cost.CHEAP,
    ),
    Check(
        "mini_batch",
        "a batch of prompts is a whole number of mini-batches",
        batches.check_mini_batch,
        Cost.CHEAP,
    ),
    Check(
        "micro_batch",
        "a micro-batch is a number of rows, or filled by tokens",
        batches.check_micro_batch,
        Cost.CHEAP,
    ),
    Check(
        "batching_rule",
        "updates and log-probs fill their micro-batches by one rule",
        batches.check_batching_rule,
        Cost.CHEAP,
    ),
    Check(
        "sampling",
        "several samples of one prompt are drawn, not taken greedily",
        sampling.check_sampling,
        Cost.CHEAP,
    ),
    Check(
        "model_path",
        "the model is a checkpoint's folder, a hub id or an embedded model",
        model.check_model_path,
        Cost.CHEAP,
    ),
    Check(
        "resume",
        "a checkpoint that the run would go on from is this run's own",
        resume.check_resume,
        Cost.CHEAP,
        needs=("model_path",),
    ),
    Check(
        "questions",
        "the questions can be read, and training and validation share none",
        prompts.check_questions,
        Cost.LOADS,
    ),
    Check(
        "batch_is_filled",
        "there are enough training prompts for a batch",
        batches.check_batch_is_filled,
        Cost.LOADS,
        needs=("questions",),
    ),
    Check(
        "tokenizer",
        "the tokenizer can end a turn and write a confidence line without loss",
        model.check_tokenizer,
        Cost.DOWNLOADS,
        needs=("model_path",),
    ),
    Check(
        "vocabulary",
        "the vocabulary has as many tokens as the divergence compares",
        model.check_vocabulary,
        Cost.DOWNLOADS,
        needs=("model_path",),
    ),
    Check(
        "prompt_lengths",
        "every question fits into data.max_prompt_length",
        prompts.check_prompt_lengths,
        Cost.DOWNLOADS,
        needs=("questions", "tokenizer"),
    ),
)


def run_checks(context: Context) -> None:
    """Run the table. Raises the first error that a check raises."""
    for check in CHECKS:
        check.function(context)
