"""Plain values as JSON that every parser takes, and that loses nothing but types.

NaN, infinity      the strings "NaN", "Infinity", "-Infinity"
int                exact, of any size
bytes              {"base64": ...}
complex            {"real": ..., "imag": ...}
datetime           ISO 8601
NumPy scalar       its number
tuple              list
int key            its decimal digits
"""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Mapping

import numpy as np

_MAX_DIGITS_BITS = 13_000  # about 3,900 digits; Python refuses to print more than 4,300


def dumps(document: object) -> str:
    """Return a JSON document in ASCII: no name in it can steer a terminal."""
    return json.dumps(jsonable(document), indent=2, allow_nan=False)


def jsonable(plain: object) -> object:
    """Return a value made of what `json` writes exactly."""
    match plain:
        case None | bool() | str():
            return plain
        case int():
            # Hexadecimal: a number that Python itself would refuse to print in decimal.
            return plain if plain.bit_length() <= _MAX_DIGITS_BITS else {"hex": hex(plain)}
        case float():
            return _float(plain)
        case bytes():
            return {"base64": base64.b64encode(plain).decode("ascii")}
        case complex():
            return {"real": _float(plain.real), "imag": _float(plain.imag)}
        case datetime.datetime():
            return plain.isoformat()
        case np.generic():
            return _scalar(plain)
        case Mapping():
            return {str(key): jsonable(item) for key, item in plain.items()}
        case list() | tuple():
            return [jsonable(item) for item in plain]
    return str(plain)


def _float(number: float) -> float | str:
    if math.isfinite(number):
        return number
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def _scalar(scalar: np.generic) -> object:
    found = scalar.item()
    # Scalars of ml_dtypes return themselves; every one of them is a float or an int in float64.
    return jsonable(found if not isinstance(found, np.generic) else float(found))
