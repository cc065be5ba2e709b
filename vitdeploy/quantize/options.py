"""How a user wants int8 or fp8 done. Imports nothing heavy: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass

from vitdeploy.errors import UsageError

METHODS = ("output", "mse", "minmax", "percentile", "entropy")
ROUNDINGS = ("nearest", "learned")
EQUALIZERS = ("smoothquant", "repq", "cross-layer")


@dataclass(frozen=True)
class Int8Options:
    """How to quantise.

    Attributes:
        method: of choosing activation ranges: 'output', 'mse', 'minmax', 'percentile' or 'entropy'.
        correct_bias: give every product the mean that it has in float.
        rounding: of weights: 'nearest' or 'learned' (by the inputs' covariance: slow, a small gain at 8 bits).
        attention: also quantise the products of two activations.
        equalize: scale channels so that one step fits them all: 'auto' (whatever helps, site by site), 'none', or some
            of 'smoothquant', 'repq' and 'cross-layer', with commas between.
        keep: patterns of layer or node names that stay in float.
    """

    method: str = "output"
    correct_bias: bool = True
    rounding: str = "nearest"
    attention: bool = False
    keep: tuple[str, ...] = ()
    equalize: str = "auto"

    @property
    def equalizers(self) -> tuple[str, ...]:
        """The techniques that `equalize` names."""
        if self.equalize in ("auto", "none"):
            return EQUALIZERS if self.equalize == "auto" else ()
        return tuple(dict.fromkeys(name.strip() for name in self.equalize.split(",")))

    def check(self, precision: str = "int8") -> None:
        """Raise UsageError on a value that is not one of those above, or that makes no sense in a precision."""
        if self.method not in METHODS:
            raise UsageError(f"Unknown calibration method '{self.method}': one of {', '.join(METHODS)}.")
        if self.rounding not in ROUNDINGS:
            raise UsageError(f"Unknown rounding '{self.rounding}': one of {', '.join(ROUNDINGS)}.")
        for name in self.equalizers:
            if name not in EQUALIZERS:
                raise UsageError(f"Unknown equalisation '{name}': auto, none, or some of {', '.join(EQUALIZERS)}.")
        if precision == "fp8" and self.rounding != "nearest":
            raise UsageError("Learned rounding is for the even steps of int8: those of fp8 grow with the weight.")
        if precision == "fp8" and self.method == "entropy":
            raise UsageError(
                "Ranges by entropy are for the even steps of int8.", fix="Use output, mse, minmax or percentile."
            )
