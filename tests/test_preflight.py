"""The table of checks is complete, ordered by cost, and writes nothing; every check can fail."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from caopd_verl import preflight
from caopd_verl.errors import CaopdError
from caopd_verl.preflight.examine import examine
from caopd_verl.preflight.prepare import prepare
from caopd_verl.preflight.run_context import Context
from caopd_verl.preflight.table import CHECKS, Check, Cost, run_checks

from .refusals import set_keys

NAMES = [check.name for check in CHECKS]
LOADED = {"tokenizer", "vocabulary_size", "questions"}  # what a context loads at most once


def test_every_check_is_in_the_table():
    defined = set()
    for module_info in pkgutil.walk_packages(preflight.__path__, f"{preflight.__name__}."):
        module = importlib.import_module(module_info.name)
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if name.startswith("check_") and function.__module__ == module.__name__:
                defined.add(function)
    assert defined == {check.function for check in CHECKS}


def test_names_are_unique_and_promises_fit_on_a_line():
    assert len(set(NAMES)) == len(NAMES)
    for check in CHECKS:
        assert 20 <= len(check.promise) <= 70, check.name
        assert not check.promise.endswith("."), check.name


def test_cheap_checks_come_first():
    costs = [check.cost for check in CHECKS]
    assert costs == sorted(costs)
    assert set(costs) == set(Cost)


def test_a_check_needs_earlier_ones_only():
    for index, check in enumerate(CHECKS):
        assert set(check.needs) <= set(NAMES[:index]), check.name


@pytest.mark.parametrize(
    ("cost", "loaded"), [(Cost.CHEAP, set()), (Cost.LOADS, {"questions"}), (Cost.DOWNLOADS, LOADED)]
)
def test_a_check_costs_no_more_than_it_says(demo_config, cost, loaded):
    context = Context(demo_config)
    for check in CHECKS:
        if check.cost <= cost:
            check.function(context)
    assert vars(context).keys() & LOADED == loaded


def test_the_tokenizer_is_loaded_once(demo_config, monkeypatch):
    from transformers import AutoTokenizer

    load, paths = AutoTokenizer.from_pretrained, []

    def counted(path: str, **options: Any) -> Any:
        paths.append(path)
        return load(path, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", counted)
    run_checks(Context(demo_config))
    assert len(paths) == 1


def test_checks_change_no_config(demo_config):
    before = OmegaConf.to_yaml(demo_config)
    run_checks(Context(demo_config))
    assert OmegaConf.to_yaml(demo_config) == before


# ---------------------------------------------------------------------- one bad config a check


def add_unknown_key(config: Any, folder: Path) -> None:
    OmegaConf.update(config, "caopd.topk", 3, force_add=True)


def take_the_chat_template_away(config: Any, folder: Path) -> None:
    tiny = Context(config).model_path
    model = Path(shutil.copytree(tiny, folder / "model"))
    (model / "chat_template.jinja").unlink()
    config.actor_rollout_ref.model.path = str(model)


def leave_another_runs_checkpoint(config: Any, folder: Path) -> None:
    checkpoints = Path(config.trainer.default_local_dir)
    checkpoints.mkdir(parents=True)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("5")
    run_file = Path(config.caopd.output_dir) / "run.json"
    run_file.write_text(json.dumps({"data.seed": -1}))


BAD: dict[str, Any] = {
    "keys": add_unknown_key,
    "values": {"caopd.loss.alpha": 1.5},
    "refused": {"actor_rollout_ref.model.lora_rank": 8},
    "devices": {"ray_kwargs.ray_init.num_gpus": 0},
    "strategy": {"actor_rollout_ref.actor.strategy": "fsdp"},
    "mini_batch": {"actor_rollout_ref.actor.ppo_mini_batch_size": 24},
    "micro_batch": {"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 0},
    "batching_rule": {"actor_rollout_ref.rollout.log_prob_use_dynamic_bsz": True},
    "sampling": {"actor_rollout_ref.rollout.temperature": 0},
    "model_path": {"actor_rollout_ref.model.path": "./nowhere"},
    "resume": leave_another_runs_checkpoint,
    "questions": {"caopd.task.n_val": 0},
    "batch_is_filled": {"caopd.task.n_train": 31},
    "tokenizer": take_the_chat_template_away,
    "vocabulary": {"caopd.loss.top_k": 271},
    "prompt_lengths": {"data.max_prompt_length": 8},
}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, and every folder."""
    paths = folder.rglob("*")
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}


def spoil(config: Any, name: str, folder: Path) -> None:
    bad = BAD[name]
    if callable(bad):
        bad(config, folder)
    else:
        set_keys(config, bad)


def test_every_check_has_a_bad_config_here():
    assert list(BAD) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_config_fails_its_own_check_and_writes_nothing(demo_config, tmp_path, name):
    spoil(demo_config, name, tmp_path)
    before = tree(tmp_path)
    statuses = {}
    for outcome in examine(CHECKS, Context(demo_config)):
        statuses[outcome.check.name] = outcome.status
    needing = [check.name for check in CHECKS if name in check.needs]
    assert [key for key, status in statuses.items() if status == "failed"] == [name]
    assert {statuses[key] for key in needing} <= {"not run"}
    with pytest.raises(CaopdError):
        prepare(demo_config)
    assert tree(tmp_path) == before


# ---------------------------------------------------------------------- all failures at once


def test_all_failures_are_found_not_only_the_first(demo_config):
    set_keys(demo_config, {"caopd.loss.alpha": 1.5, "actor_rollout_ref.model.lora_rank": 8})
    set_keys(demo_config, {"data.max_prompt_length": 8})
    outcomes = list(examine(CHECKS, Context(demo_config)))
    failed = {outcome.check.name: outcome.text for outcome in outcomes if outcome.text}
    assert list(failed) == ["values", "refused", "prompt_lengths"]
    assert failed["values"].startswith("ConfigError: caopd.loss.alpha: value 1.5")


def test_what_needs_a_failed_check_is_not_run_and_says_so(demo_config):
    set_keys(demo_config, {"actor_rollout_ref.model.path": "./nowhere"})
    outcomes = {outcome.check.name: outcome for outcome in examine(CHECKS, Context(demo_config))}
    assert outcomes["model_path"].status == "failed"
    for name in ("resume", "tokenizer", "vocabulary"):
        assert (outcomes[name].status, outcomes[name].text) == ("not run", "needs model_path")
    # what needs a check that was not run is not run either
    assert outcomes["prompt_lengths"].text == "needs tokenizer"
    assert outcomes["questions"].status == "ok"


def test_a_librarys_error_is_a_failure_and_does_not_end_the_examination(demo_config):
    def broken(context: Context) -> None:
        raise KeyError("vocab")

    check = Check("broken", "a library gives way", broken, Cost.CHEAP)
    first, second = examine([check, CHECKS[0]], Context(demo_config))
    assert (first.status, first.text) == ("failed", "unexpected KeyError: 'vocab'")
    assert second.status == "ok"


# ---------------------------------------------------------------------- without verl


def test_the_table_can_be_listed_without_verl_torch_or_hydra():
    code = "import sys, caopd_verl.preflight.doctor_cli, caopd_verl.preflight.examine; "
    code += "print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    heavy = {"torch", "transformers", "omegaconf", "hydra", "verl", "ray", "vllm", "pyarrow"}
    assert not heavy & set(done.stdout.split())
