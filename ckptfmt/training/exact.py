"""Exact numbers: counts of examples are int64, fractions of a data set are decimals.

A float32 count is exact only up to 2**24, an int32 one wraps at 2**31, and `int(1.15 * 50_000)`
is 57,499. None of these comes in here.
"""

from __future__ import annotations

import decimal
import operator
from decimal import Decimal
from fractions import Fraction
from typing import Final

from ckptfmt.errors import UsageError

INT64_MAX: Final = 2**63 - 1
_MAX_EXPONENT: Final = 30  # beyond 10**±30 no product with an int64 is one of use


def reason(error: Exception) -> str:
    """Return what to say of what a malformed state raised; of a missing key just its name."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def whole(name: str, value: object, least: int = 0) -> int:
    """Return a count as an int: `least` to 2**63 - 1.

    Any integer type is taken, NumPy's too; bools and floats are not, not even 64.0.

    Raises:
        UsageError: it is no integer, or out of range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None:
        raise UsageError(f"{name} must be an integer, got {value!r}")
    if not least <= number <= INT64_MAX:
        raise UsageError(f"{name} must be an integer >= {least} and below 2**63, got {number}")
    return number


def total_of(total: object, dataset_size: object, stop_point: object) -> int:
    """Return the examples of a run: `total`, or `stop_point` passes over a data set.

    Raises:
        UsageError: neither or both are given, or one is out of range.
    """
    if (total is None) == (stop_point is None):
        raise UsageError("expected either total, or stop_point (with dataset_size)")
    if total is not None:
        return whole("total", total, least=1)
    if dataset_size is None:
        raise UsageError("a stop_point needs the dataset_size it is counted in")
    return product("stop_point", stop_point, whole("dataset_size", dataset_size, least=1))


def product(name: str, fraction: object, size: int) -> int:
    """Return `fraction * size`, rounded once, half to even.

    The fraction is taken as its shortest decimal says, not as the nearest binary number:
    14.3 is 143/10.

    Raises:
        UsageError: the fraction is no number > 0, or the product does not fit int64.
    """
    exact = _decimal(name, fraction)
    if not exact.is_finite() or exact <= 0:
        raise UsageError(f"{name} must be finite and > 0, got {fraction!r}")
    if abs(exact.adjusted()) > _MAX_EXPONENT:
        raise UsageError(f"{name} is out of any useful range, got {fraction!r}")
    return whole(f"{name} * dataset_size", round(Fraction(exact) * size), least=1)


def _decimal(name: str, fraction: object) -> Decimal:
    if isinstance(fraction, Decimal):
        return fraction
    if isinstance(fraction, bool) or not isinstance(fraction, int | float | str):
        raise UsageError(f"{name} must be a number, got {fraction!r}")
    try:
        return Decimal(str(fraction))
    except (decimal.InvalidOperation, ValueError) as error:
        raise UsageError(f"{name} must be a number, got {fraction!r}") from error
