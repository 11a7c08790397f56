"""Which names of verl, vLLM, Ray and TransferQueue a source file uses: read from it, not listed.

Found are imports, attributes of what is imported, and in subclasses of the frameworks' classes what
is overridden, what is used or assigned as `self.name` or `super().name`, and what follows such an
attribute (`self.rollout.zmq_handle`). `HOLDS` says what such an attribute is, and may say so of an
attribute of our own classes too (`self.workers.update_actor`). A name stands under the class that
defines it. Not found are attributes of what a function is given or returns, and keys in strings; a
private attribute that no rule explains is reported, so that none slips through.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from caopd_verl.plugins import load_object
from caopd_verl.verl_ext.compat import definer

FRAMEWORKS = ("verl", "ray", "vllm", "transfer_queue")
ELSEWHERE = ""  # leads out of the frameworks: config, tokenizer, the model itself
# Class.attribute -> what such an attribute is, where source goes on from there
HOLDS = {
    "ActorRolloutRefWorker.config": ELSEWHERE,
    "ActorRolloutRefWorker.actor": "caopd_verl.verl_ext.worker:StudentWorker",
    "ActorRolloutRefWorker.ref": "verl.workers.engine_workers:TrainingWorker",
    "ActorRolloutRefWorker.rollout": "verl.workers.rollout.vllm_rollout.vllm_rollout:ServerAdapter",
    "FSDPEngine.engine_config": "verl.workers.config.engine:FSDPEngineConfig",
    "FSDPEngine.model_config": "verl.workers.config.model:HFModelConfig",
    "FSDPEngine.module": ELSEWHERE,
    "PPOTrainer.actor_rollout_wg": "caopd_verl.verl_ext.worker:CaopdWorker",
    "PPOTrainer.config": ELSEWHERE,
    "PPOTrainer.llm_server_manager": "verl.workers.rollout.llm_server:LLMServerManager",
    "PPOTrainer.tokenizer": ELSEWHERE,
    "ServerAdapter.zmq_handle": ELSEWHERE,
    "StudentWorker.teacher": "verl.workers.engine_workers:TrainingWorker",
    "TrainingWorker.engine": "caopd_verl.verl_ext.engine:CaopdEngine",
    "Update.workers": "caopd_verl.verl_ext.worker:CaopdWorker",
    "vLLMHttpServer.engine": "vllm.v1.engine.async_llm:AsyncLLM",
}
Name = tuple[str, str]  # module, dotted name in it


@dataclass
class Found:
    """Names used, each with the file and line of its first use; and what could not be explained."""

    names: dict[Name, str] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)


def names_used(files: dict[str, Path]) -> Found:
    """What the files use; `files` has the path of each module, by the name it is imported by."""
    found = Found()
    for module_name, path in sorted(files.items()):
        _File(module_name, path, found).read()
    return found


def is_framework(module_name: str) -> bool:
    return module_name.split(".")[0] in FRAMEWORKS


def is_of_framework(cls: type) -> bool:
    return any(is_framework(base.__module__) for base in cls.__mro__)


def framework_definer(cls: type, name: str) -> type | None:
    """The framework's class that defines an attribute of `cls`, also where `cls` has its own."""
    for base in cls.__mro__:
        if is_framework(base.__module__):
            found = definer(base, name)
            return found if found and is_framework(found.__module__) else None
    return None


class _File:
    """One source file. `imported` has the module and dotted name of each local name."""

    def __init__(self, module_name: str, path: Path, found: Found):
        self.module_name, self.path, self.found = module_name, path, found
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.imported: dict[str, Name] = {}
        self.explained: set[ast.Attribute] = set()

    def read(self) -> None:
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self.read_import(node)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute):
                self.read_attribute_of_import(node)
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef):
                self.read_class(node)
        self.report_private_attributes()

    def use(self, name: Name, node: ast.AST) -> None:
        self.found.names.setdefault(name, self.at(node))

    def at(self, node: ast.AST) -> str:
        return f"{self.path.name}:{node.lineno}"  # type: ignore[attr-defined]

    def read_import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if isinstance(node, ast.Import):
                if is_framework(alias.name):
                    root = alias.name if alias.asname else alias.name.split(".")[0]
                    self.imported[alias.asname or root] = (root, "")
                continue
            source = node.module or ""
            if not is_framework(source):
                continue
            local = alias.asname or alias.name
            if _is_module(f"{source}.{alias.name}"):
                self.imported[local] = (f"{source}.{alias.name}", "")
            else:
                self.imported[local] = (source, alias.name)
                self.use((source, alias.name), node)

    def read_attribute_of_import(self, node: ast.Attribute) -> None:
        root, *names = _chain(node)
        if root not in self.imported:
            return
        module_name, dotted = self.imported[root]
        for name in names[:-1]:
            if not dotted and _is_module(f"{module_name}.{name}"):
                module_name = f"{module_name}.{name}"
            elif not dotted:
                dotted = name
            else:
                return  # an attribute of a class's attribute: no name of the framework's
        self.explained.add(node)
        if dotted:
            self.use((module_name, f"{dotted}.{names[-1]}"), node)
        elif not _is_module(f"{module_name}.{names[-1]}"):
            self.use((module_name, names[-1]), node)

    def read_class(self, node: ast.ClassDef) -> None:
        cls = getattr(importlib.import_module(self.module_name), node.name)
        for name, statement in _defined(node):
            base = None if name.startswith("__") else framework_definer(cls, name)
            if base and not getattr(vars(base).get(name), "__isabstractmethod__", False):
                self.use((base.__module__, f"{base.__name__}.{name}"), statement)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Attribute):
                self.read_attribute_of_self(cls, inner)

    def read_attribute_of_self(self, cls: type, node: ast.Attribute) -> None:
        root, *names = _chain(node)
        name = names[-1]
        if root not in ("self", "super()") or name.startswith("__"):
            return
        owner = self.owner(cls, names[:-1], node)
        if owner is None:
            return
        base = framework_definer(owner, name)
        if base:
            self.explained.add(node)
            self.use((base.__module__, f"{base.__name__}.{name}"), node)
        elif is_of_framework(owner) and definer(owner, name) is None:
            self.found.unexplained.append(f"{self.at(node)}: {owner.__name__} has no {name}")

    def owner(self, cls: type, names: list[str], node: ast.AST) -> type | None:
        """The class of `self.a.b` for names [a, b]; None where it is none of the frameworks'."""
        for name in names:
            theirs = framework_definer(cls, name)
            base = theirs or definer(cls, name)
            key = f"{base.__name__ if base else cls.__name__}.{name}"
            if theirs and key not in HOLDS:
                self.found.unexplained.append(f"{self.at(node)}: HOLDS does not say what {key} is")
            if HOLDS.get(key, ELSEWHERE) == ELSEWHERE:
                return None
            cls = load_object(HOLDS[key], where="HOLDS")
        return cls

    def report_private_attributes(self) -> None:
        own = {name for node in ast.walk(self.tree) for name, _ in _defined(node)}
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Attribute) or node in self.explained:
                continue
            is_private = node.attr.startswith("_") and not node.attr.startswith("__")
            if is_private and node.attr not in own:
                text = ast.unparse(node)
                self.found.unexplained.append(f"{self.at(node)}: whose attribute is {text}?")


def _defined(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Names that a class's body defines; of an assignment anywhere, the attributes it assigns."""
    for statement in node.body if isinstance(node, ast.ClassDef) else [node]:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield statement.name, statement
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            one = isinstance(statement, ast.AnnAssign)
            for target in [statement.target] if one else statement.targets:
                if isinstance(target, (ast.Name, ast.Attribute)):
                    yield getattr(target, "attr", None) or target.id, statement


def _chain(node: ast.expr) -> list[str]:
    """`self.a.b` as ["self", "a", "b"]; what is no name or attribute as its source text."""
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    return [ast.unparse(node)]


def _is_module(name: str) -> bool:
    """Whether a dotted name is a module rather than something in one."""
    parent, _, last = name.rpartition(".")
    outside = importlib.import_module(parent)
    inside = getattr(outside, last, None)
    if inside is None and hasattr(outside, "__path__"):
        return importlib.util.find_spec(name) is not None
    return inspect.ismodule(inside)
