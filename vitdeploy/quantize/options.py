"""How a user wants int8 done. Imports nothing heavy: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass

from vitdeploy.errors import UsageError

METHODS = ("mse", "minmax", "percentile", "entropy")
ROUNDINGS = ("nearest", "learned")


@dataclass(frozen=True)
class Int8Options:
    """How to quantise.

    Attributes:
        method: of choosing activation ranges: 'mse', 'minmax', 'percentile' or 'entropy'.
        correct_bias: give every product the mean that it has in float.
        rounding: of weights: 'nearest' or 'learned' (by the inputs' covariance: slow, a small gain at 8 bits).
        attention: also quantise the products of two activations.
        keep: patterns of layer or node names that stay in float.
    """

    method: str = "mse"
    correct_bias: bool = True
    rounding: str = "nearest"
    attention: bool = False
    keep: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise UsageError on a value that is not one of those above."""
        if self.method not in METHODS:
            raise UsageError(f"Unknown calibration method '{self.method}': one of {', '.join(METHODS)}.")
        if self.rounding not in ROUNDINGS:
            raise UsageError(f"Unknown rounding '{self.rounding}': one of {', '.join(ROUNDINGS)}.")
