"""The EMA teacher: closed form in fp32, FSDP2 shards, refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from caopd_verl.core.ema import ema_update, named_shards
from caopd_verl.errors import ConfigError


def model(seed=0, std=0.02):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    for p in net.parameters():
        nn.init.normal_(p, std=std)
    return net


def flat(net):
    """All weights in a row, fp64."""
    return torch.cat([p.detach().flatten() for p in net.parameters()]).double()


@pytest.mark.parametrize("rate", [0.01, 0.05])
@pytest.mark.parametrize("shift", [0.02, 0.004])
def test_the_teacher_moves_by_the_closed_form_amount(rate, shift):
    """In bf16 most of these steps would round to nothing, and the teacher would stay put."""
    student, teacher = model(), model()
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(1 + shift)
    start = copy.deepcopy(teacher.state_dict())
    for _ in range(100):
        ema_update(named_shards(teacher), named_shards(student), rate)
    closed = 1 - (1 - rate) ** 100
    for name, weight in teacher.state_dict().items():
        expected = start[name].double() * (1 + shift * closed)
        torch.testing.assert_close(weight.double(), expected, rtol=2e-6, atol=1e-9)


def test_low_precision_is_refused_and_nothing_changes():
    student, teacher = model(1), model()
    before = copy.deepcopy(teacher.state_dict())
    teacher[1].bfloat16()
    with pytest.raises(ConfigError, match="low precision"):
        ema_update(named_shards(teacher), named_shards(student), 0.05)
    assert torch.equal(teacher[0].weight, before["0.weight"])
    with pytest.raises(ConfigError, match="the student's"):
        ema_update(named_shards(model()), named_shards(student.bfloat16()), 0.05)


def test_rate_one_copies_and_the_distance_is_relative_and_from_before():
    student, teacher = model(1), model()
    before, target = flat(teacher), flat(student)
    distance = ema_update(named_shards(teacher), named_shards(student), 1.0)
    expected = (target - before).norm() / before.norm()
    assert distance == pytest.approx(float(expected), rel=1e-6)
    for p, q in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(p, q)
    assert ema_update(named_shards(teacher), named_shards(student), 0.5) == 0.0


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_rates_outside_the_interval_are_refused(rate):
    with pytest.raises(ConfigError, match="EMA rate"):
        ema_update(named_shards(model()), named_shards(model()), rate)


def test_pairs_are_made_by_name_and_mismatches_are_errors():
    student, teacher = named_shards(model(1)), named_shards(model())
    shuffled = dict(reversed(list(student.items())))
    ema_update(teacher, shuffled, 1.0)
    assert all(torch.equal(teacher[n], student[n]) for n in teacher)
    with pytest.raises(ConfigError, match=r"0\.bias"):
        ema_update(teacher, {n: p for n, p in student.items() if n != "0.bias"}, 0.05)
    with pytest.raises(ConfigError, match="shape"):
        ema_update(teacher, {**student, "0.bias": torch.zeros(9)}, 0.05)


def test_wrapped_and_tied_parameters_have_one_plain_name():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    net = model()
    net[1].weight = net[0].weight
    plain = set(named_shards(net))
    net[0] = checkpoint_wrapper(net[0])
    assert set(named_shards(net)) == plain == {"0.weight", "0.bias", "1.bias"}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """A gloo mesh of this process alone."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if dist.is_initialized():
        pytest.skip("a process group exists already")
    store = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def shard(net, mesh, *, reshard=False):
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    fully_shard(net[1], mesh=mesh, mp_policy=policy)
    return fully_shard(net, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)


def test_fsdp2_shards_move_by_the_closed_form_amount(mesh):
    student, teacher = shard(model(1), mesh), shard(model(), mesh)
    start = {name: p.full_tensor().clone() for name, p in teacher.named_parameters()}
    target = {name: p.full_tensor() for name, p in student.named_parameters()}
    plain = ema_update(named_shards(model()), named_shards(model(1)), 0.05)
    distance = ema_update(named_shards(teacher), named_shards(student), 0.05)
    assert distance == pytest.approx(plain)
    for name, p in teacher.named_parameters():
        expected = 0.95 * start[name] + 0.05 * target[name]
        torch.testing.assert_close(p.full_tensor(), expected, rtol=1e-5, atol=1e-8)


def test_unsharded_copies_after_a_forward_are_refused_and_resharding_mends_it(mesh):
    """FSDP2 shows bf16 copies in place of the parameters then; what is written to them is lost."""
    student, teacher = shard(model(1), mesh), shard(model(), mesh)
    with torch.no_grad():
        teacher(torch.randn(2, 8))
    copies = dict(teacher.named_parameters())
    dtypes = {p.dtype for p in copies.values()}
    assert torch.bfloat16 in dtypes, "there must be copies for this test to mean anything"
    with pytest.raises(ConfigError, match="low precision"):
        ema_update(copies, named_shards(student), 0.05)
    ema_update(named_shards(teacher), named_shards(student), 1.0)
    with torch.no_grad():
        x = torch.randn(2, 8)
        same = torch.equal(teacher(x), student(x))
    assert same, "the update must reach what the next forward computes with"


def test_plain_against_sharded_is_refused(mesh):
    with pytest.raises(ConfigError, match="plain tensors on both sides"):
        ema_update(named_shards(shard(model(), mesh)), named_shards(model()), 0.05)


def test_two_updates_are_not_one():
    """n updates close 1 - (1 - rate)^n of the gap, so it matters how often the caller calls."""
    student, once, twice = model(1), model(), model()
    ema_update(named_shards(once), named_shards(student), 0.05)
    ema_update(named_shards(twice), named_shards(student), 0.05)
    ema_update(named_shards(twice), named_shards(student), 0.05)
    ema_update(named_shards(once), named_shards(student), 1 - 0.95)
    for p, q in zip(once.parameters(), twice.parameters(), strict=True):
        torch.testing.assert_close(p, q)
