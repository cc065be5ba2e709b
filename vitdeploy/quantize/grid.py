"""The numbers that 8 bits can hold, in units of a scale: integers, or E4M3's, which lie closer the smaller they are.

E4M3 has 4 bits of exponent and 3 of mantissa, and no infinity: Micikevicius et al. 2022, "FP8 Formats for Deep
Learning" (arXiv:2209.05433).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np


@dataclass(frozen=True)
class Grid:
    """Numbers to round to.

    Attributes:
        low, high: the ends.
        mantissa: bits of it; 0 where the numbers are integers.
        normal: the smallest number with a full mantissa. Below it, steps grow no finer.
    """

    low: float
    high: float
    mantissa: int = 0
    normal: float = 1.0

    def spacing(self, x: np.ndarray) -> np.ndarray | float:
        """How far apart the grid's numbers are where x lies; of x's shape, or one figure for all."""
        if not self.mantissa:
            return 1.0
        exponent = np.frexp(np.maximum(np.abs(x), x.dtype.type(self.normal)))[1] - 1
        return np.ldexp(x.dtype.type(1), exponent - self.mantissa)

    def nearest(self, x: np.ndarray, shift: int = 0) -> np.ndarray:
        """The grid's number next to each of x, to even where there are two; then moved, and at most an end."""
        step = self.spacing(x)
        whole = np.rint(x / step) * step if self.mantissa else np.rint(x)
        return np.clip(whole + shift, self.low, self.high)

    def unit(self, low: float, high: float, *, symmetric: bool) -> float:
        """The scale with which the grid covers a range."""
        return max(-low, high) / self.high if symmetric else (high - low) / (self.high - self.low)


GRIDS: Mapping[str, Grid] = MappingProxyType(
    {
        "uint8": Grid(0, 255),
        "int8": Grid(-128, 127),
        "fp8": Grid(-448, 448, mantissa=3, normal=2.0**-6),
    }
)
