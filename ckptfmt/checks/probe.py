"""A batch with what the model made of it, and the verdict on what a loaded model makes of it.

    inputs ─► model ─► outputs ─► judge(stored, outputs here) ─► identical │ noise │ different
                                  ╰─ bound from dtype and length of the sums, per element ─╯

Pure: arrays in, verdict out; running the model is the adapter's.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ckptfmt.checks.diagnosis import Cause
from ckptfmt.errors import FormatError, UsageError

Verdict = Literal["identical", "within noise", "different"]

# A sum of n terms in floating point is off by about sqrt(n) roundings, and by more than a
# small multiple of that with negligible probability: N. Higham, T. Mary, "A new approach to
# probabilistic rounding error analysis", SIAM J. Sci. Comput. 41 (2019), A2815.
MULTIPLE: Final = 4.0

# Of the largest output: where rounding may move outputs by more, anything would pass as noise.
LIMIT: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A stored example: what a model made of a batch, in inference mode."""

    inputs: Any  # state tree with arrays, as the model (or `prepare`) takes them
    outputs: Any  # the same, as the model returned them
    dtype: str  # name of the narrowest floating dtype that was computed in
    absolute: float  # what counts as noise: absolute + relative * |output|
    relative: float
    deterministic: bool  # whether two runs gave the same bits
    prepared: Any = None  # what preprocessing made of `inputs`, where it is part of the probe
    about: Mapping[str, Any] = field(default_factory=dict)  # plain: how it was computed

    def __post_init__(self) -> None:
        """Check what a reader of the manifest relies on.

        Raises:
            UsageError: a tolerance is no finite number >= 0; or `about` is not plain.
        """
        for name in ("absolute", "relative"):
            value = getattr(self, name)
            number = float(value) if isinstance(value, numbers.Real) else math.nan
            if not 0 <= number < math.inf:
                raise UsageError(f"{name} must be a finite number >= 0", found=value)
            object.__setattr__(self, name, number)  # the dataclass is frozen
        if not isinstance(self.dtype, str):
            raise UsageError("expected the name of a dtype", found=type(self.dtype).__name__)
        if not isinstance(self.about, Mapping) or not _is_plain(self.about):
            raise UsageError("`about` must be a dict of plain values, without arrays")
        object.__setattr__(self, "deterministic", bool(self.deterministic))

    def tree(self) -> dict[str, Any]:
        """Return it as the manifest holds it (spec §6.8.6)."""
        more = {"prepared": self.prepared} if self.prepared is not None else {}
        return {
            "inputs": self.inputs,
            **more,
            "outputs": self.outputs,
            "dtype": self.dtype,
            "tolerance": {"absolute": self.absolute, "relative": self.relative},
            "deterministic": self.deterministic,
            "about": dict(self.about),
        }

    @classmethod
    def of(cls, found: object) -> Probe:
        """Return what a manifest holds.

        Raises:
            FormatError: it does not follow spec §6.8.6.
        """
        given: dict[Any, Any] = found if isinstance(found, dict) else {}
        match given:
            case {
                "inputs": inputs,
                "outputs": outputs,
                "dtype": str(dtype),
                "tolerance": {"absolute": float(absolute), "relative": float(relative)},
                "deterministic": bool(deterministic),
            } if 0 <= absolute < math.inf and 0 <= relative < math.inf:
                about = given.get("about", {})
                if isinstance(about, dict) and _is_plain(about):
                    return cls(
                        inputs=inputs,
                        outputs=outputs,
                        dtype=dtype,
                        absolute=absolute,
                        relative=relative,
                        deterministic=deterministic,
                        prepared=given.get("prepared"),
                        about=about,
                    )
        raise FormatError("malformed probe", at="$.probe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came of running a stored probe again."""

    verdict: Verdict
    largest: float  # largest absolute difference; inf where outputs cannot be compared
    bound: float  # what counts as noise, at the output that exceeds it most
    worst: str  # where that is, such as "logits[3, 7]"; empty when identical
    elements: int  # outputs compared
    causes: tuple[Cause, ...] = ()  # why they are different, the best supported first
    odd: str = ""  # why outputs cannot be compared, if they cannot

    @property
    def ok(self) -> bool:
        """Whether nothing but rounding differs."""
        return self.verdict != "different"

    def to_dict(self) -> dict[str, object]:
        """Return plain data for `--json`; a difference without a size is the str "inf"."""
        return {
            "verdict": self.verdict,
            "largest": self.largest if math.isfinite(self.largest) else "inf",
            "bound": self.bound,
            "worst": self.worst,
            "elements": self.elements,
            "causes": [
                {
                    "name": cause.name,
                    "strength": cause.strength,
                    "evidence": cause.evidence,
                    "remedy": cause.remedy,
                }
                for cause in self.causes
            ],
        }

    def __str__(self) -> str:
        if self.verdict == "identical":
            return f"identical: {self.elements} outputs, bit for bit"
        size = f"off by up to {self.largest:.3g}, noise is {self.bound:.3g}, at {self.worst}"
        how = self.odd or size
        return "\n".join([f"{self.verdict}: {how}", *(f"  {cause}" for cause in self.causes)])


def noise(dtype: str, *, terms: int, layers: int) -> float:
    """Return by how much rounding alone may move outputs, relative to the largest.

    Sums may run in another order on another machine, so each is off by about the square root
    of its number of terms, in units of the last place of float32: products of narrower dtypes
    are added in that. Each layer rounds what it returns to the dtype, and these roundings add
    up in the same way. Cancellation makes small outputs of large terms: the bound is relative
    to the largest output, not to each.

    Args:
        dtype: Floating dtype that was computed in.
        terms: How many terms are added on the longest way from input to output.
        layers: How many layers round on that way.

    Raises:
        UsageError: no floating dtype.
    """
    each = _epsilon(dtype)
    added = min(each, _epsilon("float32"))
    return each * math.sqrt(max(1, layers)) + MULTIPLE * added * math.sqrt(max(1, terms))


def allowed(relative: float, outputs: object) -> float:
    """Return what counts as noise where rounding may move outputs by `relative`.

    It is 0 beyond `LIMIT`: there noise cannot be told from a difference, and equal bits alone
    prove anything.
    """
    if relative > LIMIT:
        return 0.0
    sizes = [
        float(np.max(np.abs(wide[np.isfinite(wide)]), initial=0.0))
        for leaf in dict(_leaves(outputs)).values()
        if isinstance(leaf, np.ndarray) and (wide := _wide(leaf)).dtype.kind in "fc"
    ]
    return relative * max(sizes, default=0.0)


def judge(probe: Probe, outputs: object) -> Replay:
    """Compare what a model makes of a probe's inputs here with what it made when saved.

    Equal bits are identical. All but floating-point numbers, and outputs of another structure,
    shape or with other places of NaN or infinity, are identical or different, never noise.
    Without a single value there is nothing to prove a load by: that is different, too.
    """
    replay = _compared(probe, outputs)
    return (
        replay if replay.elements else _incomparable("output", 0, "there is no output at all")
    )


def spread(first: object, second: object) -> float:
    """Return the largest difference between two runs; inf if they cannot be compared."""
    plain = Probe(
        inputs=None,
        outputs=first,
        dtype="float32",
        absolute=0.0,
        relative=0.0,
        deterministic=True,
    )
    return _compared(plain, second).largest


def _compared(probe: Probe, outputs: object) -> Replay:
    stored, here = dict(_leaves(probe.outputs)), dict(_leaves(outputs))
    if list(stored) != list(here):
        text = _unlike(list(stored), list(here))
        odd = next(
            (path for path in (*stored, *here) if not (path in stored and path in here)), ""
        )
        return _incomparable(odd, len(stored), text)
    largest, worst, excess, bound, elements = 0.0, "", -math.inf, 0.0, 0
    for path, (a, b) in {p: (stored[p], here[p]) for p in stored}.items():
        elements += a.size if isinstance(a, np.ndarray) else a is not None
        if not _comparable(a, b):
            text = f"{path} is {_kind(b)} here, was {_kind(a)} when saved"
            return _incomparable(path, elements, text)
        if not isinstance(a, np.ndarray) or a.size == 0 or _same_bits(a, b):
            continue
        gap, noisy = _gap(_wide(a), _wide(b), probe)
        over = np.where(gap > 0, gap - noisy, -math.inf)
        at = np.unravel_index(int(np.argmax(over)), over.shape)
        largest = max(largest, float(gap.max()))
        if float(over[at]) > excess or not worst:
            place = ", ".join(map(str, at))
            worst = f"{path}[{place}]" if at else path
            excess, bound = float(over[at]), float(noisy[at])
    verdict: Verdict = "identical" if not worst else "different"
    if worst and excess <= 0:
        verdict = "within noise"
    return Replay(verdict=verdict, largest=largest, bound=bound, worst=worst, elements=elements)


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(child) for key, child in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | bytes | None)


def _incomparable(path: str, elements: int, odd: str) -> Replay:
    cause = Cause(name="other outputs", strength="observed", evidence=odd)
    return Replay(
        verdict="different",
        largest=math.inf,
        bound=0.0,
        worst=path,
        elements=elements,
        causes=(cause,),
        odd=odd,
    )


def _unlike(stored: list[str], here: list[str]) -> str:
    """Say what names of outputs differ, or that their order does."""
    lost = ", ".join([path for path in stored if path not in here][:3])
    more = ", ".join([path for path in here if path not in stored][:3])
    if not lost and not more:
        return "outputs come in another order than when saved"
    return "; ".join(
        [f"no {lost} among the outputs here"] * bool(lost)
        + [f"{more} among the outputs here, not when saved"] * bool(more)
    )


def _kind(value: object) -> str:
    """Say what an output is: dtype and shape of an array, type and value of all else."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return "None" if value is None else f"{type(value).__name__} {value!r:.60}"


def _gap(a: Any, b: Any, probe: Probe) -> tuple[Any, Any]:
    """Return |a - b| and what of it counts as noise, element by element."""
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    if a.dtype.kind not in "fc":
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
        # Beyond 2**53 a difference may vanish in float64; it is one all the same.
        return np.where((a != b) & (gap == 0), 1.0, gap), np.zeros(a.shape)
    x, y = a.astype(wide), b.astype(wide)
    with np.errstate(invalid="ignore"):
        gap = np.abs(x - y)
    odd = ~(np.isfinite(x) & np.isfinite(y))
    alike = (x == y) | (np.isnan(x) & np.isnan(y))
    gap = np.where(odd, np.where(alike, 0.0, math.inf), gap)
    return gap, probe.absolute + probe.relative * np.where(odd, 0.0, np.abs(x))


def _comparable(a: Any, b: Any) -> bool:
    """Whether a size of the difference can be told: two arrays of numbers, or equal values."""
    arrays = isinstance(a, np.ndarray), isinstance(b, np.ndarray)
    if not all(arrays):
        return not any(arrays) and bool(a == b)
    if a.shape != b.shape:
        return False
    kind = _wide(a).dtype.kind
    if kind in "fc":
        return bool(kind == _wide(b).dtype.kind)
    return bool(a.dtype == b.dtype and (kind in "biu" or np.array_equal(a, b)))


def _same_bits(a: Any, b: Any) -> bool:
    return bool(a.dtype == b.dtype and a.tobytes() == b.tobytes())


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf): text and None as they are, arrays and numbers as arrays."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _leaves(child, f"{path}/{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for n, child in enumerate(value):
            yield from _leaves(child, f"{path}/{n}" if path else str(n))
    else:
        plain = value is None or isinstance(value, str | bytes)
        yield path or "output", value if plain else np.asarray(value)


def _wide(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array in a dtype that NumPy can calculate with, exactly the same values."""
    return array.astype(np.float32) if array.dtype.kind == "V" else array  # bfloat16, float8


def _epsilon(dtype: str) -> float:
    try:
        return float(ml_dtypes.finfo(getattr(ml_dtypes, dtype, dtype)).eps)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError) as error:
        raise UsageError("expected a floating dtype", found=dtype) from error
