"""`caopd doctor`: the list of checks and the installation; or all checks on one config."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caopd_verl.errors import ConfigError, IncompatibleVersionError
from caopd_verl.preflight.doctor_cli import DoctorCommand
from caopd_verl.preflight.table import CHECKS

N_CHECKS = len(CHECKS) + 1  # and the one that verl makes of its own config

DEMO = ("+recipe=sdpo_caopd", "+scale=cpu_tiny", "caopd.task.n_train=32", "caopd.task.n_val=8")
ENVIRONMENT_OF_TRAINING = ("verl", "ray", "vllm", "torch", "transformers", "hydra", "omegaconf")


class Verl:
    """Stands for verl's own checks, which take ten seconds to import."""

    def __init__(self, error: Exception | None = None):
        self.error = error
        self.asked: list[Any] = []

    def __call__(self, config: Any) -> None:
        self.asked.append(config)
        print("some engine is not available")
        if self.error is not None:
            raise self.error


def doctor(*arguments: str, verl: Verl | None = None) -> bool:
    """Run the command in this process; True if it found nothing."""
    parser = argparse.ArgumentParser()
    DoctorCommand(verl or Verl()).add_parser(parser.add_subparsers())
    args = parser.parse_args(["doctor", *arguments])
    return args.run(args)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """The command is called in an empty folder, which must stay empty."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


def rows(text: str) -> dict[str, str]:
    """Status by check, from a printed examination."""
    found = {}
    for check in (*CHECKS, "verl"):
        name = check if isinstance(check, str) else check.name
        (line,) = [line for line in text.splitlines() if f" {name} " in line[:29]]
        found[name] = line[2:11].strip()
    return found


# ---------------------------------------------------------------------- one config


def test_a_good_config_passes_every_check(capsys):
    verl = Verl()
    assert doctor(*DEMO, verl=verl)
    out = capsys.readouterr().out
    assert set(rows(out).values()) == {"ok"}
    assert f"all {len(CHECKS) + 1} checks passed; nothing was written" in out
    assert "engine" not in out, "what verl prints while it is imported is noise"
    assert [config.caopd.method for config in verl.asked] == ["sdpo_caopd"]


def test_all_failures_are_printed_with_what_to_do(capsys):
    bad = ("caopd.loss.alpha=1.5", "data.train_batch_size=48", "actor_rollout_ref.model.path=./no")
    with pytest.raises(ConfigError, match=f"4 of {N_CHECKS} checks failed, 4 could not be made"):
        doctor(*DEMO, *bad)
    out = capsys.readouterr().out
    statuses = rows(out)
    failed = [name for name, status in statuses.items() if status == "failed"]
    assert failed == ["values", "mini_batch", "model_path", "batch_is_filled"]
    assert statuses["vocabulary"] == statuses["prompt_lengths"] == "not run"
    assert statuses["verl"] == "ok"
    assert "ConfigError: caopd.loss.alpha: value 1.5 cannot work" in out
    assert "expected: a divisor of data.train_batch_size" in out


def test_what_verl_finds_is_a_failure_too(capsys):
    verl = Verl(IncompatibleVersionError("verl 0.8.0 is installed"))
    with pytest.raises(ConfigError, match=f"1 of {N_CHECKS} checks failed"):
        doctor(*DEMO, verl=verl)
    assert "IncompatibleVersionError: verl 0.8.0 is installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("+recipe=sdpo_coapd", ("recipe/sdpo_coapd", "sdpo_caopd_proper")),
        ("caopd.loss.topk=5", ("Could not override 'caopd.loss.topk'", "not in 'LossConfig'")),
        ("caopd.loss.top_k=many", ("top_k=many", "could not be converted to Integer")),
        ("caopd.loss", ("caopd.loss", "missing EQUAL")),
    ],
)
def test_a_config_that_cannot_be_composed_is_one_error(argument, words):
    with pytest.raises(ConfigError) as caught:
        doctor(argument)
    assert caught.value.where == "the config cannot be composed"
    assert all(word in str(caught.value) for word in words), str(caught.value)


# ---------------------------------------------------------------------- the list


def test_without_a_config_it_lists_the_checks_the_machine_and_the_installation(capsys):
    verl = Verl()
    assert doctor(verl=verl)
    out = capsys.readouterr().out
    for check in CHECKS:
        assert check.name in out and check.promise in out
    for part in ("CPUs", "memory", "GPUs", "python", "plugin verl.plugins", "transformers"):
        assert part in out
    assert out.rstrip().endswith("verl has every name that this package extends")
    assert verl.asked == [None]


def call(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def without_training(*arguments: str) -> subprocess.CompletedProcess:
    """The real command where none of the packages of training can be imported."""
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in ENVIRONMENT_OF_TRAINING)
    run = f"from caopd_verl.cli import main; sys.exit(main({['doctor', *arguments]!r}))"
    return call(f"import sys; {blocked}{run}")


def test_the_list_needs_nothing_of_what_training_needs():
    done = without_training()
    assert done.returncode == 2
    for check in CHECKS:
        assert check.promise in done.stdout
    assert "IncompatibleVersionError: verl" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_config_without_verl_is_one_error():
    done = without_training("+recipe=sdpo")
    assert done.returncode == 2
    assert "verl and hydra can't be imported" in done.stderr
    assert "make setup" in done.stderr and "Traceback" not in done.stderr


def test_the_real_command_makes_verls_checks_too():
    arguments = ["doctor", *DEMO, "caopd.loss.alpha=1.5"]
    done = call(f"import sys; from caopd_verl.cli import main; sys.exit(main({arguments!r}))")
    assert done.returncode == 2, done.stderr
    statuses = rows(done.stdout)
    assert statuses["verl"] == "ok", done.stdout
    assert [name for name, status in statuses.items() if status != "ok"] == ["values"]
    assert done.stderr.strip().endswith(f"1 of {N_CHECKS} checks failed, 0 could not be made")


def test_the_command_is_in_caopds_help():
    done = subprocess.run(
        [Path(sys.executable).parent / "caopd", "--help"], capture_output=True, text=True
    )
    assert "doctor" in done.stdout
