"""Before Ray starts: run the checks, then write the files that training reads.

What can be known to fail is found here, in seconds, with one error that names config key or
file:line. Nothing is written before the last check has passed.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, open_dict

from caopd_verl.data.verl_rows import write_parquet
from caopd_verl.preflight.checks.resume import record_run
from caopd_verl.preflight.run_context import Context
from caopd_verl.preflight.table import run_checks


def prepare(config: DictConfig) -> None:
    """Check a composed config, fill in its paths, and write `run.json` and the data files.

    Args:
        config: `caopd.output_dir` and the model's path become absolute in it.

    Raises:
        ConfigError, DataError, TokenizerError: naming what is wrong and where.
    """
    context = Context(config)
    run_checks(context)
    with open_dict(config):
        # Ray's actors have working folders of their own
        config.caopd.output_dir = str(Path(config.caopd.output_dir).absolute())
        config.actor_rollout_ref.model.path = context.model_path
    record_run(config, context.model_path)
    write_parquet(context.questions.train, config.data.train_files)
    write_parquet(context.questions.validation, config.data.val_files)
