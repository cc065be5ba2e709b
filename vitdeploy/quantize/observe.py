"""Statistics of one tensor over any number of images, in memory that does not grow with them.

The histogram's range is symmetric and its limit a power of two. A value beyond it doubles the limit, and pairs of bins
become one: the result does not depend on the order of the images.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BINS = 4096
SMALLEST_LIMIT = 2.0**-20
BLOCK = 1 << 20  # elements binned at once


@dataclass
class TensorStatistics:
    """What calibration knows of a tensor.

    Attributes:
        axis: of its channels, counted as numpy does; the per-channel figures are along it.
        minimum, maximum: exact.
        limit: the histogram covers [-limit, limit).
        counts: int64 (4096,), elements a bin.
        channel_min, channel_max: float32 (channels,), exact.
        channel_sum, channel_square: float64 (channels,), of the values and of their squares.
        rows: how many values each channel has had.
    """

    axis: int
    minimum: float = np.inf
    maximum: float = -np.inf
    limit: float = 0.0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    channel_min: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    channel_max: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    channel_sum: np.ndarray = field(default_factory=lambda: np.zeros(0))
    channel_square: np.ndarray = field(default_factory=lambda: np.zeros(0))
    rows: int = 0

    def update(self, array: np.ndarray) -> bool:
        """Take in one more value of the tensor. False, and nothing taken in, where it holds NaN or Inf."""
        if array.size == 0:
            return True
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            return False
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._count(array.reshape(-1), max(-low, high))
        self._by_channel(array)
        return True

    @property
    def mean(self) -> np.ndarray:
        """float64 (channels,)"""
        return self.channel_sum / self.rows

    @property
    def power(self) -> np.ndarray:
        """Mean square of each channel, float64 (channels,)."""
        return self.channel_square / self.rows

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin, float64 (4096,)."""
        return (np.arange(BINS) + 0.5) * (2 * self.limit / BINS) - self.limit

    def _count(self, flat: np.ndarray, peak: float) -> None:
        limit = self.limit or SMALLEST_LIMIT
        while peak >= limit:
            limit *= 2
        if self.limit:
            while self.limit < limit:
                self.counts = np.pad(self.counts.reshape(-1, 2).sum(axis=1), BINS // 4)
                self.limit *= 2
        self.limit = limit
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK]
            # Scaling by a power of two is exact, so a value's bin does not depend on when it comes.
            places = np.floor(block * np.float32(BINS / (2 * limit))).astype(np.int32) + BINS // 2
            self.counts += np.bincount(places, minlength=BINS)

    def _by_channel(self, array: np.ndarray) -> None:
        rows = np.moveaxis(array, self.axis, -1) if array.ndim else array.reshape(1)
        rows = rows.reshape(-1, rows.shape[-1])
        low, high = rows.min(axis=0), rows.max(axis=0)
        total, square = rows.sum(axis=0, dtype=np.float64), np.einsum("rc,rc->c", rows, rows).astype(np.float64)
        if self.rows:
            low, high = np.minimum(self.channel_min, low), np.maximum(self.channel_max, high)
            total, square = self.channel_sum + total, self.channel_square + square
        self.channel_min, self.channel_max, self.channel_sum, self.channel_square = low, high, total, square
        self.rows += len(rows)
