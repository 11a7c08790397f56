"""The EMA teacher: `teacher <- (1 - rate) * teacher + rate * student`, once per optimizer step (Table 6: rate 0.05).

By parameter name, in fp32, on the local shards of FSDP2 modules. Four ways to get it wrong are refused here:

* low precision (T12): in bf16 the update is below half an ulp and the teacher stays frozen, so fp32 is demanded;
* wrong tensors (T13): after a no-grad forward FSDP2 may leave unsharded throw-away copies in place of the parameters,
  so `named_shards` reshards first, and a plain tensor on one side with a DTensor on the other is an error;
* zipped parameter lists: pairs are made by name, and a name missing on either side is an error;
* half-done updates: everything is checked before the first tensor is changed.

Timing (T14) is the caller's: call it after each optimizer step that took place, not after a skipped one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from caopd_verl.errors import ConfigError

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")


def named_shards(module: nn.Module) -> dict[str, Tensor]:
    """The module's parameters by name, FSDP2 modules resharded first (T13); tied parameters appear once.

    Names are free of wrapper prefixes (activation checkpointing, torch.compile), so that a wrapped student matches an
    unwrapped teacher. The tensors are the parameters themselves, not copies.

    Raises:
        ConfigError: two parameters have the same name once wrapper prefixes are removed.
    """
    from torch.distributed.fsdp import (
        FSDPModule,
    )  # not at import time: core must load on builds without distributed

    for sub in module.modules():
        if isinstance(sub, FSDPModule):
            sub.reshard()
    shards: dict[str, Tensor] = {}
    for raw_name, parameter in module.named_parameters():
        name = raw_name
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        if name in shards:
            raise ConfigError(
                f"two parameters are called {name!r} once wrapper prefixes are removed",
                where=raw_name,
            )
        shards[name] = parameter
    return shards


@torch.no_grad()
def ema_update(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], rate: float) -> float:
    """Move every teacher tensor by `rate` towards the student's, in place, on local shards.

    Args:
        teacher, student: fp32 tensors by name (`named_shards`), both plain or both DTensors of the same placement. The
            teacher may live on another device (CPU offload): the student's shard is moved there.
        rate: in (0, 1]; 1 copies the student.

    Returns:
        The relative distance `|student - teacher| / |teacher|` (L2 over all parameters) BEFORE the update, over all
        ranks. With DTensors this is a collective: every rank of the mesh must call.

    Raises:
        ConfigError: rate outside (0, 1], names, shapes, placements or meshes that differ, or a dtype other than fp32.
            Nothing has been changed then.
    """
    if not 0.0 < rate <= 1.0:
        raise ConfigError(
            f"EMA rate {rate}", expected="a number in (0, 1]", fix="the paper's Table 6 uses 0.05"
        )
    _check_names(teacher, student)
    for name, theirs in teacher.items():
        _check_pair(name, theirs, student[name])
    sharded, plain = _Sums(), _Sums()
    layout: DTensor | None = None
    for name, theirs in teacher.items():
        mine = student[name]
        sums = plain
        if isinstance(theirs, DTensor):
            sums, layout = sharded, theirs
        target, source = _local(theirs), _local(mine)
        source = source.to(target.device)
        sums.add(target, source)
        target.lerp_(source, rate)
    if layout is not None:
        sharded.reduce(layout)
    moved, size = (a + b for a, b in zip(sharded.read(), plain.read(), strict=True))
    return math.sqrt(moved / size) if size > 0 else math.sqrt(moved)


class _Sums:
    """Squared norms of the difference and of the teacher, in fp64; read from the device once, at the end."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, target: Tensor, source: Tensor) -> None:
        """Add one pair of local shards."""
        difference = (source - target).square().sum(dtype=torch.float64)
        both = torch.stack([difference, target.square().sum(dtype=torch.float64)])
        self._sums = both if self._sums is None else self._sums + both

    def reduce(self, layout: DTensor) -> None:
        """Sum over the ranks that hold different shards of `layout` (replicas hold the same numbers)."""
        assert self._sums is not None
        mesh = layout.device_mesh
        both = self._sums.to(mesh.device_type)
        for dim, placement in enumerate(layout.placements):
            if isinstance(placement, Shard):
                torch.distributed.all_reduce(both, group=mesh.get_group(dim))
        self._sums = both

    def read(self) -> tuple[float, float]:
        """(squared difference, squared size)."""
        if self._sums is None:
            return 0.0, 0.0
        difference, size = self._sums.tolist()
        return difference, size


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _check_names(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor]) -> None:
    if teacher.keys() == student.keys():
        return
    only_teacher = sorted(teacher.keys() - student.keys())[:3]
    only_student = sorted(student.keys() - teacher.keys())[:3]
    raise ConfigError(
        f"teacher and student have different parameters (only teacher: {only_teacher}, only student: {only_student})",
        expected="the same names on both sides",
        fix="build the teacher from the student's model config and wrap both alike",
    )


def _check_pair(name: str, teacher: Tensor, student: Tensor) -> None:
    for who, tensor in (("teacher", teacher), ("student", student)):
        if tensor.dtype != torch.float32:
            raise ConfigError(
                f"the {who}'s {name} is {tensor.dtype}: an EMA in low precision stays where it is (T12)",
                where=name,
                expected="torch.float32 master weights",
                fix="set fsdp_config.model_dtype=fp32 (compute may be bf16), and reshard before the update (T13)",
            )
    if isinstance(teacher, DTensor) != isinstance(student, DTensor):
        raise ConfigError(
            f"{name} is {type(teacher).__name__} in the teacher and {type(student).__name__} in the student (T13)",
            where=name,
            expected="DTensors on both sides, or plain tensors on both sides",
            fix="collect both with named_shards, which reshards FSDP2 modules first",
        )
    if teacher.shape != student.shape:
        raise ConfigError(
            f"{name} has shape {tuple(teacher.shape)} in the teacher, {tuple(student.shape)} in the student"
        )
    if isinstance(teacher, DTensor) and isinstance(student, DTensor):
        same_mesh = torch.equal(teacher.device_mesh.mesh, student.device_mesh.mesh)
        if not same_mesh or teacher.placements != student.placements:
            raise ConfigError(
                f"{name} is laid out as {teacher.placements} in the teacher, as {student.placements} in the student",
                where=name,
                expected="the same mesh and placements",
                fix="wrap teacher and student with the same FSDP2 policy",
            )
        if teacher.to_local().shape != student.to_local().shape:
            raise ConfigError(f"the local shards of {name} differ in shape", where=name)
