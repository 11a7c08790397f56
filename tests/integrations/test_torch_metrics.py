"""SPR and OCG as torchmetrics against `evaluation.metrics`, over batches, dtypes and ranks."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip(
    "torchmetrics", reason="torchmetrics is not installed: pip install '.[torchmetrics]'"
)

import torch

from caopd_verl.errors import DataError
from caopd_verl.evaluation.metrics.calibration import calibration_metrics
from caopd_verl.integrations.torch_metrics import OverconfidenceGap, StrictPairwiseRanking


def data(n=400, seed=0):
    """Confidences with many ties, a tenth of them missing, and verdicts; each of shape [n]."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(2, 1, n).round(1)
    correct = rng.random(n) < confidence
    confidence[rng.random(n) < 0.1] = np.nan
    return confidence, correct


def reference(confidence, correct):
    """What `evaluation.metrics` says."""
    values = [None if np.isnan(c) else float(c) for c in confidence]
    return calibration_metrics(values, correct.tolist(), n_bins=10, missing="drop")


def test_over_batches_they_agree_with_the_metrics():
    confidence, correct = data()
    spr, gap = StrictPairwiseRanking().set_dtype(torch.float64), OverconfidenceGap()
    for part in np.array_split(np.arange(len(correct)), 7):
        batch = torch.tensor(confidence[part]), torch.tensor(correct[part])
        spr.update(*batch)
        gap.update(*batch)
    want = reference(confidence, correct)
    assert float(spr.compute()) == pytest.approx(want["spr"], abs=1e-12)
    assert float(gap.compute()) == pytest.approx(want["ocg"], abs=1e-12)
    n_missing = int(np.isnan(confidence).sum())
    assert n_missing > 0
    assert (int(spr.n_missing), int(gap.n_missing)) == (n_missing, n_missing)
    spr.reset()
    assert torch.isnan(spr.compute())


def test_by_hand():
    confidence = torch.tensor([[0.9, 0.5], [0.5, 0.2]])
    correct = torch.tensor([[1, 1], [0, 0]])
    spr, gap = StrictPairwiseRanking(), OverconfidenceGap()
    # Of the four pairs the tie at 0.5 earns nothing.
    assert float(spr(confidence, correct)) == 0.75
    assert float(gap(confidence, correct)) == pytest.approx(0.025)
    # A call's value is the batch's alone, which has no pair; `compute` has all batches.
    assert torch.isnan(spr(torch.tensor([1.0]), torch.tensor([1])))
    assert float(spr.compute()) == pytest.approx(5 / 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_confidences(dtype):
    confidence, correct = data(200)
    low = torch.tensor(confidence).to(dtype)
    spr, gap = StrictPairwiseRanking(), OverconfidenceGap()
    spr.update(low, torch.tensor(correct))
    gap.update(low, torch.tensor(correct))
    want = reference(low.double().numpy(), correct)
    assert float(spr.compute()) == pytest.approx(want["spr"], abs=1e-6)
    assert float(gap.compute()) == pytest.approx(want["ocg"], abs=1e-9)


def test_undefined_is_nan_never_0():
    for metric in (StrictPairwiseRanking(), OverconfidenceGap()):
        metric.update(torch.tensor([torch.nan]), torch.tensor([1]))
        assert torch.isnan(metric.compute())
    spr = StrictPairwiseRanking()
    spr.update(torch.tensor([0.3, 0.4]), torch.tensor([0, 0]))
    assert torch.isnan(spr.compute())


@pytest.mark.parametrize(
    ("confidence", "correct"),
    [([1.1], [1]), ([-0.1], [1]), ([0.5], [2]), ([0.5, 0.5], [1]), ([float("inf")], [1])],
)
def test_bad_input(confidence, correct):
    for metric in (StrictPairwiseRanking(), OverconfidenceGap()):
        with pytest.raises(DataError):
            metric.update(torch.tensor(confidence), torch.tensor(correct))


RANK = """
import sys, torch, torch.distributed as dist
from caopd_verl.integrations.torch_metrics import OverconfidenceGap, StrictPairwiseRanking
rank, size, store = int(sys.argv[1]), 3, sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=size)
spr, gap = StrictPairwiseRanking(), OverconfidenceGap()
# Rank 1 gets nothing at all, rank 2 only wrong ones: counts differ, and one state is empty.
parts = [([0.9, 0.4, 0.4], [1, 1, 0]), None, ([0.6, float("nan")], [0, 0])]
if parts[rank]:
    for metric in (spr, gap):
        metric.update(torch.tensor(parts[rank][0]), torch.tensor(parts[rank][1]))
print(float(spr.compute()), float(gap.compute()))
dist.barrier()
dist.destroy_process_group()
"""


def test_three_ranks_with_unequal_shares_see_one_result(tmp_path):
    store = str(tmp_path / "store")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = []
    for rank in range(3):
        command = [sys.executable, "-c", RANK, str(rank), store]
        ranks.append(subprocess.Popen(command, **pipes))
    said = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], said
    confidence = np.array([0.9, 0.4, 0.4, 0.6, np.nan])
    correct = np.array([True, True, False, False, False])
    want = reference(confidence, correct)
    for out, _ in said:
        spr, gap = map(float, out.split())
        assert spr == pytest.approx(want["spr"])
        assert gap == pytest.approx(want["ocg"])
