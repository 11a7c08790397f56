"""SmoothECE (Blasiok & Nakkiran 2023, arXiv 2309.12236): a calibration error without bins.

The residuals c - y are smoothed with a Gaussian kernel of width s, reflected at 0 and 1, and the error is the integral
of the absolute value. The width is the one at which error and width are equal. A reflected Gaussian is the heat kernel
of an interval with insulated ends, so it is diagonal in cosines, K_s(t, c) = 1 + 2 sum_m exp(-(m pi s)^2 / 2)
cos(m pi t) cos(m pi c), and one table of cosines serves every width and every resample. Agrees with `relplot` to its
grid's coarseness (checked in the tests). The width is never below 0.005, half a unit of the last place that is stated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from caopd_verl.evaluation.metrics.calibration import FloatArray, IntArray

GRID = 501
MIN_WIDTH = 0.005
_TERMS = 400  # exp(-(400 pi 0.005)^2 / 2) < 1e-8
_HALVINGS = 12


@dataclass(frozen=True)
class CosineSmoother:
    """`error` for residuals on fixed confidences, at a width fixed by `fit`.

    Attributes:
        cells: the grid points that have a confidence at or above them and below the next, shape [cells in use].
        starts: the index of the first confidence of each of these cells, shape [cells in use].
        part: for each distinct confidence the share of its residual that goes to the next grid point, shape [u].
        width: of the kernel.
    """

    cells: IntArray
    starts: IntArray
    part: FloatArray
    width: float

    @classmethod
    def fit(cls, values: FloatArray, residual: FloatArray, n: float) -> CosineSmoother:
        """The smoother of `values` (distinct confidences, shape [u]), width from the residuals of the full sample."""
        place = values * (GRID - 1)
        below = np.clip(np.floor(place).astype(np.int64), 0, GRID - 2)
        cells, starts = np.unique(below, return_index=True)
        narrow = cls(cells, starts.astype(np.int64), place - below, MIN_WIDTH)
        low, high = MIN_WIDTH, 1.0
        if narrow.error(residual, n) <= low:
            return narrow
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0
            if replace(narrow, width=middle).error(residual, n) > middle:
                low = middle
            else:
                high = middle
        return replace(narrow, width=high)

    def error(self, residual: FloatArray, n: float) -> float:
        """The integral over [0, 1] of |sum of K(t, c) residual| / n; `residual` of each confidence has shape [u]."""
        upper = residual * self.part
        on_grid = np.zeros(GRID)
        on_grid[self.cells] = np.add.reduceat(residual - upper, self.starts)
        on_grid[self.cells + 1] += np.add.reduceat(upper, self.starts)
        cosines = _cosines()
        smooth = (cosines @ on_grid * _decay(self.width)) @ cosines
        inner = np.abs(smooth)
        return float((inner.sum() - (inner[0] + inner[-1]) / 2.0) / (GRID - 1) / n)


_CACHE: dict[float, FloatArray] = {}


def _cosines() -> FloatArray:
    """cos(m pi t) for m = 0 .. 399 on the grid, shape [400, 501]; built once."""
    if 0.0 not in _CACHE:
        _CACHE[0.0] = np.cos(np.pi * np.outer(np.arange(_TERMS), np.linspace(0.0, 1.0, GRID)))
    return _CACHE[0.0]


def _decay(width: float) -> FloatArray:
    decay = 2.0 * np.exp(-((np.arange(_TERMS) * np.pi * width) ** 2) / 2.0)
    decay[0] = 1.0
    return decay
