"""The errors that vitdeploy raises on purpose. Each says what happened and how to mend it, and carries an exit code."""

from __future__ import annotations


class VitdeployError(Exception):
    """Base of every expected failure.

    Args:
        message: One sentence: what happened and why.
        fix: One sentence or command that mends it, or None where there is none.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} {self.fix}" if self.fix else self.message


class UsageError(VitdeployError):
    """Bad arguments or bad input files."""

    exit_code = 2


class MissingDependency(VitdeployError):
    """A package, driver or device is not here; `fix` holds the install command."""

    exit_code = 3


class VerificationFailed(VitdeployError):
    """Outputs differ from eager PyTorch beyond the bound."""

    exit_code = 4


class PrecisionNotApplied(VitdeployError):
    """The compiled graph does not run the precision that was asked for."""

    exit_code = 5


class BackendError(VitdeployError):
    """The runtime refused the model or crashed."""

    exit_code = 6


class UnsupportedModel(VitdeployError):
    """This model cannot take this path, and why."""

    exit_code = 7
