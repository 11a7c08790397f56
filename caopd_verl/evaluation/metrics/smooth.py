"""SmoothECE (Blasiok & Nakkiran 2023, arXiv 2309.12236): a calibration error without bins.

The residuals c - y are smoothed with a Gaussian kernel of width s, reflected at 0 and 1, and the
error is the integral of the absolute value. The width is the one at which error and width are
equal. A reflected Gaussian is the heat kernel of an interval with insulated ends, so it is diagonal
in cosines,

    K_s(t, c) = 1 + 2 sum_m exp(-(m pi s)^2 / 2) cos(m pi t) cos(m pi c),

and one table of cosines serves every width and every resample. Agrees with `relplot` to its grid's
coarseness (checked in the tests).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from caopd_verl.evaluation.metrics.inputs import FloatArray, IntArray

GRID = 501
MIN_WIDTH = 0.005  # half a unit of the last decimal that is stated
_TERMS = 400  # the next one is below 1e-8: exp(-(400 pi 0.005)^2 / 2)
_HALVINGS = 12  # of the bracket [0.005, 1] of the width: to 0.00025


@dataclass(frozen=True)
class CosineSmoother:
    """`error` for residuals on fixed confidences, at a width fixed by `fit`.

    Attributes:
        cells: the grid points that have a confidence at or above them and below the next, shape
            [cells in use].
        starts: the index of the first confidence of each of these cells, shape [cells in use].
        part: for each distinct confidence the share of its residual that goes to the next grid
            point, shape [u].
        width: of the kernel.
    """

    cells: IntArray
    starts: IntArray
    part: FloatArray
    width: float

    @classmethod
    def fit(cls, values: FloatArray, residual: FloatArray, n: float) -> CosineSmoother:
        """The smoother whose width is the error of the full sample.

        Args:
            values: the distinct confidences, rising, shape [u].
            residual: sum of c - y over the rows of each, shape [u].
            n: rows.
        """
        place = values * (GRID - 1)
        below = np.floor(place).astype(np.int64)
        below = np.minimum(below, GRID - 2)  # 1.0 has no grid point above it
        cells, starts = np.unique(below, return_index=True)
        narrow = cls(cells, starts.astype(np.int64), place - below, MIN_WIDTH)
        if narrow.error(residual, n) <= MIN_WIDTH:
            return narrow
        # The error falls as the width grows, so the two meet once.
        low, high = MIN_WIDTH, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0
            if replace(narrow, width=middle).error(residual, n) > middle:
                low = middle
            else:
                high = middle
        return replace(narrow, width=high)

    def error(self, residual: FloatArray, n: float) -> float:
        """The integral over [0, 1] of |sum of K(t, c) residual| / n.

        Args:
            residual: sum of c - y over the rows of each distinct confidence, shape [u].
            n: rows.
        """
        # Each residual is shared between the two grid points around its confidence.
        upper = residual * self.part
        on_grid = np.zeros(GRID)
        lower_sums = np.add.reduceat(residual - upper, self.starts)
        upper_sums = np.add.reduceat(upper, self.starts)
        on_grid[self.cells] = lower_sums
        on_grid[self.cells + 1] += upper_sums
        cosines = _cosines()
        coefficients = cosines @ on_grid * _decay(self.width)
        height = np.abs(coefficients @ cosines)
        ends = (height[0] + height[-1]) / 2.0  # the trapezoidal rule counts them by half
        trapezoids = height.sum() - ends
        return float(trapezoids / (GRID - 1) / n)


@cache
def _cosines() -> FloatArray:
    """cos(m pi t) for m = 0 .. 399 on the grid, shape [400, 501]."""
    angles = np.outer(np.arange(_TERMS), np.linspace(0.0, 1.0, GRID))
    return np.cos(np.pi * angles)


def _decay(width: float) -> FloatArray:
    frequencies = np.arange(_TERMS) * np.pi
    decay = 2.0 * np.exp(-((frequencies * width) ** 2) / 2.0)
    decay[0] = 1.0  # the constant term stands once in the sum
    return decay
