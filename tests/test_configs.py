"""Every recipe composes with every scale and says what the paper says; a wrong key is one error."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from caopd_verl import config as schema
from caopd_verl import main as entry
from caopd_verl.preflight.compose import CONFIGS
from caopd_verl.preflight.run_context import Context
from caopd_verl.preflight.table import CHECKS, Cost

# These look at the machine, or at a model that has to be made first.
OF_THE_MACHINE = {"devices", "model_path", "resume"}
RECIPES = sorted(path.stem for path in (CONFIGS / "recipe").glob("[!_]*.yaml"))
SCALES = sorted(path.stem for path in (CONFIGS / "scale").glob("[!_]*.yaml"))

# Table 6 of arXiv 2604.16830, column of the SDPO backbone; without its learning rates,
# which are not legible in the text.
TABLE_6 = {
    "actor_rollout_ref.model.path": "Qwen/Qwen3-8B",
    "data.apply_chat_template_kwargs.enable_thinking": False,
    "data.train_batch_size": 32,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 32,
    "actor_rollout_ref.actor.ppo_epochs": 1,
    "actor_rollout_ref.rollout.n": 8,
    "actor_rollout_ref.rollout.temperature": 1.0,
    "data.max_prompt_length": 2048,
    "data.max_response_length": 8192,
    "caopd.loss.top_k": 100,
    "caopd.loss.alpha": 1.0,  # reverse KL
    "caopd.teacher.ema_rate": 0.05,
    "caopd.loss.is_clip": 2.0,
    "actor_rollout_ref.actor.optim.optimizer": "AdamW",
    "actor_rollout_ref.actor.optim.lr_warmup_steps": 10,
    "actor_rollout_ref.actor.optim.weight_decay": 0.01,
    "actor_rollout_ref.actor.optim.clip_grad": 1.0,
    "actor_rollout_ref.rollout.val_kwargs.do_sample": True,
    "actor_rollout_ref.rollout.val_kwargs.temperature": 0.6,
    "actor_rollout_ref.rollout.val_kwargs.top_p": 0.95,
    "trainer.nnodes": 1,
    "trainer.n_gpus_per_node": 4,
}


def flat(config: Any, *, resolve: bool = True) -> dict[str, Any]:
    """The config as one dict from dotted keys; a list is a leaf."""
    leaves: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{prefix}.{key}" if prefix else str(key))
        else:
            leaves[prefix] = node

    walk(OmegaConf.to_container(config, resolve=resolve), "")
    return leaves


def differing(left: Any, right: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> its two values, where they differ."""
    left, right = flat(left, resolve=False), flat(right, resolve=False)
    pairs = {key: (left.get(key), right.get(key)) for key in left.keys() | right.keys()}
    return {key: (one, other) for key, (one, other) in pairs.items() if one != other}


# ---------------------------------------------------------------------- what is shipped


def test_the_documented_recipes_and_scales_are_shipped():
    assert {"sdpo", "sdpo_caopd", "sdpo_caopd_proper"} <= set(RECIPES)
    assert {"cpu", "cpu_tiny", "cpu_smollm2", "h200x4"} <= set(SCALES)


@pytest.mark.parametrize("scale", [None, *SCALES])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_with_every_scale(compose, recipe, scale):
    config = compose(f"+recipe={recipe}", *([f"+scale={scale}"] if scale else []))
    # `flat` resolves every interpolation
    assert flat(config)["caopd.output_dir"] == "outputs/run"
    context = Context(config)
    assert isinstance(context.caopd, schema.CaopdConfig)
    for check in CHECKS:
        if check.cost == Cost.CHEAP and check.name not in OF_THE_MACHINE:
            check.function(context)
    assert config.trainer.v1.trainer_mode == "caopd"
    assert config.trainer.device == ("cpu" if scale and scale.startswith("cpu") else "cuda")
    assert config.trainer.experiment_name == recipe
    # a rollout and a shown demonstration fit into what vLLM and the teacher are given
    length = config.data.max_prompt_length + config.data.max_response_length
    model_length = config.actor_rollout_ref.rollout.max_model_len
    assert model_length is None or model_length >= length
    assert config.caopd.context.max_tokens > config.data.max_prompt_length


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_passes_verls_own_check(compose, verl_on_cpu, scale, capsys):
    from verl.utils.config import validate_config

    validate_config(
        config=compose("+recipe=sdpo_caopd", f"+scale={scale}"),
        use_reference_policy=True,
        use_critic=False,
    )


def test_sdpo_caopd_is_the_papers_table_6(compose):
    composed = flat(compose("+recipe=sdpo_caopd"))
    assert {key: composed[key] for key in TABLE_6} == TABLE_6
    assert composed["caopd.method"] == "sdpo_caopd"
    assert composed["caopd.unsolved"] == "mask"
    assert composed["caopd.loss.confidence_alpha"] is None  # reverse KL on every token
    assert composed["caopd.target.leave_one_out"] is False
    assert composed["caopd.target.shrinkage"] is None


def test_the_papers_scale_changes_no_value_of_table_6(compose):
    composed = flat(compose("+recipe=sdpo_caopd", "+scale=h200x4"))
    assert {key: composed[key] for key in TABLE_6} == TABLE_6


def test_student_and_teacher_keep_fp32_master_weights(compose):
    for recipe in RECIPES:
        composed = flat(compose(f"+recipe={recipe}", "+scale=h200x4"))
        for role in ("actor", "ref"):
            assert composed[f"actor_rollout_ref.{role}.fsdp_config.model_dtype"] == "fp32"


def test_the_teachers_limit_holds_question_and_whole_demonstration(compose):
    config = compose("+recipe=sdpo_caopd")
    whole = config.data.max_prompt_length + config.data.max_response_length
    assert config.caopd.context.max_tokens >= whole
    longest = config.caopd.context.max_tokens + config.data.max_response_length
    assert config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu >= longest


@pytest.mark.parametrize("scale", [None, "cpu_tiny"])
def test_presets_differ_in_the_documented_keys_only(compose, scale):
    extra = [f"+scale={scale}"] if scale else []
    sdpo, caopd, proper = (
        compose(f"+recipe={recipe}", *extra)
        for recipe in ("sdpo", "sdpo_caopd", "sdpo_caopd_proper")
    )
    assert differing(sdpo, caopd) == {
        "caopd.method": ("sdpo", "sdpo_caopd"),
        "trainer.experiment_name": ("sdpo", "sdpo_caopd"),
    }
    assert differing(caopd, proper) == {
        "caopd.unsolved": ("mask", "confidence_only"),
        "caopd.loss.confidence_alpha": (None, 0.0),
        "caopd.loss.average": ("sequence", "token"),
        "trainer.experiment_name": ("sdpo_caopd", "sdpo_caopd_proper"),
    }


def test_class_defaults_are_the_papers_setting(compose):
    """What the recipe states and what the schema defaults to never drift apart."""
    defaults = flat(OmegaConf.structured(schema.CaopdConfig))
    assert flat(compose("+recipe=sdpo_caopd").caopd) == defaults


@pytest.mark.parametrize(
    "order", [("+recipe=sdpo_caopd", "+scale=cpu_tiny"), ("+scale=cpu_tiny", "+recipe=sdpo_caopd")]
)
def test_a_scale_overrides_its_recipe_in_either_order(compose, order):
    config = compose(*order)
    assert config.actor_rollout_ref.model.path == "embedded:tiny_arith"
    assert config.data.max_response_length == 24  # the scale's, not Table 6's 8192


def test_recipe_before_scale_keeps_everything_else_in_place():
    given = ["a=1", "+scale=cpu_tiny", "b=2", "+recipe=sdpo", "c=3"]
    assert entry.recipe_before_scale(given) == [
        "a=1",
        "b=2",
        "+recipe=sdpo",
        "+scale=cpu_tiny",
        "c=3",
    ]
    assert entry.recipe_before_scale(["--cfg", "job", "+scale=cpu"]) == [
        "+scale=cpu",
        "--cfg",
        "job",
    ]
    assert entry.recipe_before_scale([]) == []


# ---------------------------------------------------------------------- the command


def test_the_real_command_prints_the_config_from_any_folder(tmp_path):
    command = [
        sys.executable,
        "-m",
        "caopd_verl.main",
        "+scale=cpu_tiny",
        "+recipe=sdpo_caopd_proper",
        "--cfg",
        "job",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout)
    assert config.caopd.unsolved == "confidence_only" and config.trainer.device == "cpu"
    assert list(tmp_path.iterdir()) == []  # looking at a config leaves nothing behind


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """`main` in this process, in an empty folder: gives exit code and stderr, never reaches Ray."""
    from caopd_verl.verl_ext import runner

    def ray_was_reached(config: Any) -> None:
        raise AssertionError("the bad input was not found before Ray")

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["caopd", *arguments])
        with pytest.raises(SystemExit) as stop:
            entry.main()
        return int(stop.value.code or 0), capsys.readouterr().err

    monkeypatch.setattr(runner, "run", ray_was_reached)
    monkeypatch.chdir(tmp_path)
    return call


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("+recipe=sdpo_coapd",), ("recipe/sdpo_coapd", "sdpo_caopd_proper")),
        (("+recipe=sdpo", "+scale=h100"), ("scale/h100", "cpu_tiny")),
        (("+recipe=sdpo", "caopd.loss.topk=5"), ("caopd.loss.topk", "not in")),
        (
            ("+recipe=sdpo", "+caopd.loss.topk=5"),
            ("caopd.loss.topk", "did you mean caopd.loss.top_k?"),
        ),
        (("+recipe=sdpo", "caopd.loss.top_k=many"), ("caopd.loss.top_k", "many")),
        (("+recipe=sdpo", "caopd.target.leave_one_out=7.5"), ("caopd.target.leave_one_out", "7.5")),
        (("+recipe=sdpo", "caopd.loss=null"), ("caopd.loss", "")),
        (("+recipe=sdpo", "caopd.loss.average=mean"), ("caopd.loss.average", "sequence, token")),
        (("+recipe=sdpo", "caopd.unsolved=ignore"), ("caopd.unsolved", "mask, confidence_only")),
        (
            ("+recipe=sdpo", "+scale=cpu_tiny", "caopd.loss.alpha=1.5"),
            ("ConfigError: caopd.loss.alpha", "[0, 1]"),
        ),
        (
            ("+recipe=sdpo", "+scale=cpu_tiny", "caopd.method=sdop"),
            ("ConfigError: caopd.method", "one of sdpo, sdpo_caopd"),
        ),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("+") else "",
)
def test_a_wrong_key_or_value_is_one_clear_error(command, arguments, expected):
    code, stderr = command(*arguments)
    assert code != 0
    assert all(part in stderr for part in expected), stderr
    assert "Traceback" not in stderr, stderr


# ---------------------------------------------------------------------- house rules


def sources() -> list[Path]:
    return sorted(Path(entry.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("name", ["config", "cfg", "caopd", "setting", "settings", "options"])
def test_no_default_of_a_config_key_outside_the_schema(name):
    """A `settings.get("key", default)` would be a second copy of a default."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and len(node.args) > 1:
                called = ast.unparse(node.func).split(".")
                is_get = called[-1] == "get" and name in called[:-1]
                assert not is_get, f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def test_no_recipe_or_scale_is_empty_or_unexplained():
    for path in CONFIGS.glob("*/*.yaml"):
        first, second, *_ = path.read_text().splitlines()
        assert first == "# @package _global_" and second.startswith("# "), path.name
