"""THE table of known changes between library versions that can alter a loaded model.

Data, not code: a row says what changed between which versions and what to do about it. It
is consulted in both directions, because a downgrade meets the same change as an upgrade.
Rows are added only with a source that can be looked up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Severity = Literal["info", "warning", "error"]
Area = Literal["loading", "rng", "numerics", "defaults"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownChange:
    """One change of one library's behaviour.

    Versions below `before` behave in the old way, versions from `after` on in the new one.
    Between the two both are understood, so moving there from either side is harmless.
    """

    library: str  # normalised distribution name, or "python"
    before: str  # exclusive upper bound of the old behaviour
    after: str  # inclusive lower bound of the new behaviour, >= before
    area: Area  # what it touches
    severity: Severity  # how a comparison grades it
    what: str  # what is different, in one sentence
    action: str  # what ckptfmt does about it, or what is left to the reader
    source: str  # documentation title or issue that says so


KNOWN_CHANGES: Final[tuple[KnownChange, ...]] = (  # by library, then by version
    KnownChange(
        library="jax",
        before="0.4.31",
        after="0.4.31",
        area="numerics",
        severity="info",
        what="jax.numpy.ceil, floor and trunc return integers for integers, no longer floats",
        action="compare dtypes of preprocessing that is written in JAX",
        source="JAX change log, 0.4.31, 'Changes'; jax-ml/jax pull request 21441",
    ),
    KnownChange(
        library="jax",
        before="0.5.0",
        after="0.5.0",
        area="rng",
        severity="warning",
        what="jax_threefry_partitionable is on by default: the same key gives other random "
        "numbers, so dropout and initial values differ",
        action="set jax_threefry_partitionable to what it was, or accept other random numbers",
        source="JAX change log, 0.5.0, 'Enable jax_threefry_partitionable by default'; "
        "jax-ml/jax discussion 18480",
    ),
    KnownChange(
        library="keras",
        before="3.0.0",
        after="3.0.0",
        area="defaults",
        severity="warning",
        what="Keras 3 compiles models by XLA on GPUs by default, which rounds otherwise; files "
        "and configurations of Keras 2 are not all understood",
        action="pass jit_compile=False to compare; `ckptfmt migrate` reads files of both",
        source="Keras guide 'Migrating Keras 2 code to multi-backend Keras 3', 'jit_compile is "
        "set to True by default on GPU'",
    ),
    KnownChange(
        library="keras",
        before="3.0.0",
        after="3.0.0",
        area="numerics",
        severity="info",
        what="batch normalisation is made of plain operations instead of a fused kernel: "
        "float32 outputs differ by about 1e-7 of their size",
        action="none: this is within the noise that a probe allows",
        source="keras-team/keras issue 19649, 'Numeric diff of BatchNormalization layer when "
        "migrate from Keras2 to keras3'",
    ),
    KnownChange(
        library="numpy",
        before="1.26.1",  # the first with stubs that read pickles of 2.x
        after="2.0.0",
        area="loading",
        severity="info",
        what="`numpy.core` was renamed to `numpy._core`, so that a pickled array made by one "
        "side fails to load on the other",
        action="checkpoints hold no pickles and are not affected; convert pickled side files",
        source="NumPy 2.0 migration guide, 'numpy.core'; NumPy 1.26.1 release notes, "
        "'numpy._core submodule stubs'",
    ),
    KnownChange(
        library="numpy",
        before="2.0.0",
        after="2.0.0",
        area="numerics",
        severity="warning",
        what="type promotion no longer looks at values: float32(3) + 3.0 gives float32 instead "
        "of float64 (NEP 50)",
        action="compare dtypes and results of preprocessing that is written in NumPy",
        source="NumPy 2.0 migration guide, 'Changes to NumPy data type promotion'",
    ),
    KnownChange(
        library="numpy",
        before="2.0.0",
        after="2.0.0",
        area="defaults",
        severity="info",
        what="the default integer on 64-bit Windows is int64 instead of int32",
        action="nothing on other systems; give preprocessing on Windows its dtypes",
        source="NumPy 2.0 migration guide, 'Windows default integer'",
    ),
    KnownChange(
        library="tensorflow",
        before="2.4.0",
        after="2.4.0",
        area="numerics",
        severity="warning",
        what="float32 products and convolutions are computed in TF32 by default on GPUs since "
        "Ampere",
        action="call tf.config.experimental.enable_tensor_float_32_execution as it was; "
        "ckptfmt_keras records it",
        source="tensorflow/community pull request 287, 'Enabling TensorFloat-32 by default'",
    ),
    KnownChange(
        library="tensorflow",
        before="2.9.0",
        after="2.9.0",
        area="numerics",
        severity="warning",
        what="oneDNN kernels, which round otherwise, are on by default on Linux with newer x86 "
        "processors (AVX512_VNNI and later)",
        action="set TF_ENABLE_ONEDNN_OPTS=0 to compare; the variable is recorded",
        source="TensorFlow 2.9 release notes, 'oneDNN optimizations'; tensorflow/tensorflow "
        "pull request 56039",
    ),
    KnownChange(
        library="tensorflow",
        before="2.11.0",
        after="2.11.0",
        area="loading",
        severity="warning",
        what="tf.keras.optimizers are the new ones, whose variables have other names and "
        "places; the old ones moved to tf.keras.optimizers.legacy",
        action="restore state of the old optimizers into the legacy classes",
        source="TensorFlow 2.11.0 release notes, 'Breaking Changes', tf.keras.optimizers",
    ),
    KnownChange(
        library="tensorflow",
        before="2.15.0",
        after="2.15.0",
        area="numerics",
        severity="info",
        what="oneDNN kernels are on by default on Windows with x86 processors, too",
        action="set TF_ENABLE_ONEDNN_OPTS=0 to compare; the variable is recorded",
        source="TensorFlow 2.15.0 release notes, 'oneDNN CPU performance optimizations'; "
        "tensorflow/tensorflow pull request 61878",
    ),
    KnownChange(
        library="tensorflow",
        before="2.16.0",
        after="2.16.1",
        area="defaults",
        severity="warning",
        what="tf.keras is Keras 3 instead of Keras 2",
        action="install tf-keras and set TF_USE_LEGACY_KERAS=1 to have Keras 2; it is recorded",
        source="TensorFlow 2.16.1 release notes, 'Breaking Changes', Keras 3.0",
    ),
    KnownChange(
        library="torch",
        before="1.12.0",
        after="1.12.0",
        area="numerics",
        severity="warning",
        what="float32 matrix products on GPUs are no longer computed in TF32 by default, as "
        "they were from 1.7 to 1.11",
        action="set torch.backends.cuda.matmul.allow_tf32 as it was; it is recorded",
        source="PyTorch documentation, 'CUDA semantics', 'TensorFloat-32 (TF32) on Ampere (and "
        "later) devices'; pytorch/pytorch issue 67384",
    ),
    KnownChange(
        library="torch",
        before="2.0.0",
        after="2.0.0",
        area="numerics",
        severity="info",
        what="optimizers update all parameters at once (foreach) by default on CUDA: the next "
        "steps may round otherwise",
        action="give the optimizer foreach=False to compare; its settings are recorded",
        source="pytorch/pytorch pull request 92306, '[optim][adamw] default to foreach when "
        "CUDA + differentiable=False'; PyTorch 2.0 release notes",
    ),
    KnownChange(
        library="torch",
        before="2.1.0",
        after="2.1.0",
        area="rng",
        severity="warning",
        what="the CUDA generator state shrank from 816 to 16 bytes; set_rng_state refuses the "
        "other length",
        action="seed and offset are the last 16 bytes of the old form: cut it before restoring",
        source="pytorch/pytorch issue 109383, 'cuda rng state for 2.0.1 cannot be used for "
        "2.1.0'; pull request 98787",
    ),
    KnownChange(
        library="torch",
        before="2.6.0",
        after="2.6.0",
        area="loading",
        severity="info",
        what="torch.load reads with weights_only=True unless told otherwise and refuses "
        "pickles of other objects",
        action="checkpoints hold no pickles and are not affected; .pt files beside them may be",
        source="PyTorch 2.6 release blog; PyTorch developer forum, 'BC-Breaking Change: "
        "torch.load is being flipped to use weights_only=True by default'; pull request 137602",
    ),
    KnownChange(
        library="torch",
        before="2.7.0",
        after="2.7.0",
        area="loading",
        severity="info",
        what="AdamW became a kind of Adam, and the groups of both have the setting "
        "decoupled_weight_decay, which state of before lacks",
        action="ckptfmt_torch sets it to what the older release did; other loaders may stop",
        source="pytorch/pytorch issue 146157, 'AdamW refactoring broke checkpoint reloading "
        "with DCP'; pull request 144972, 'Fix loading older state_dict into AdamW after "
        "refactor'",
    ),
    KnownChange(
        library="torch",
        before="2.9.0",
        after="2.9.0",
        area="defaults",
        severity="info",
        what="the precision of float32 products has settings of a new form (fp32_precision); "
        "old and new ones may not be mixed",
        action="a setting that torch then refuses to tell is recorded as unknown",
        source="PyTorch 2.9 documentation, 'CUDA semantics', 'TensorFloat-32 (TF32)'; "
        "pytorch/pytorch pull requests 158209 (the warning) and 194680 (the error of a mix)",
    ),
)

_VERSION: Final = re.compile(
    r"v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<pre>alpha|a|beta|b|preview|pre|c|rc)[-_.]?(?P<pre_n>\d*))?"
    r"(?:-(?P<post_implicit>\d+)|[-_.]?(?P<post>post|rev|r)[-_.]?(?P<post_n>\d*))?"
    r"(?:[-_.]?(?P<dev>dev)[-_.]?(?P<dev_n>\d*))?"
    r"(?:\+[a-z0-9._-]+)?",
    re.IGNORECASE,
)
_MAX_VERSION_LENGTH: Final = 100
_STAGES: Final = {"a": 1, "alpha": 1, "b": 2, "beta": 2}  # every other word is a candidate: 3
_FINAL: Final = 4


class Version(NamedTuple):
    """A version as a key that orders as PEP 440 does."""

    epoch: int
    release: tuple[int, ...]  # without trailing zeros: 2.0 and 2.0.0 are the same
    stage: int  # 0 development, 1 alpha, 2 beta, 3 candidate, 4 final
    number: int  # of the alpha, beta or candidate
    post: int  # 0, or 1 + number of the post-release
    dev: int  # number of the development build, or larger than any


def lookup(library: str, old: str, new: str) -> tuple[KnownChange, ...]:
    """Return the known changes between two versions of a library, in table order.

    Args:
        library: Distribution name in any spelling, or "python".
        old: One version; the order of the two does not matter.
        new: The other. A version that cannot be parsed has no known changes.
    """
    versions = [version for text in (old, new) if (version := parse_version(text)) is not None]
    if len(versions) < 2:
        return ()
    low, high = sorted(versions)
    name = normalised(library)
    return tuple(
        change
        for change in KNOWN_CHANGES
        if change.library == name
        and low < _bound(change.before)
        and high >= _bound(change.after)
    )


def normalised(library: str) -> str:
    """Return a distribution name in the one spelling that can be compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", library).lower()


def parse_version(text: str) -> Version | None:
    """Return what orders versions as PEP 440 does, or None if `text` is not a version.

    Local parts such as `+cu121` are ignored: they name a build of the same version.
    """
    text = text.strip()
    match = _VERSION.fullmatch(text) if len(text) <= _MAX_VERSION_LENGTH else None
    if match is None:
        return None
    release = [int(part) for part in match["release"].split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    has_post = match["post"] is not None or match["post_implicit"] is not None
    if match["pre"]:
        stage, number = _STAGES.get(match["pre"].lower(), 3), int(match["pre_n"] or 0)
    elif match["dev"] and not has_post:
        stage, number = 0, 0  # 2.0.dev1 comes before 2.0a1
    else:
        stage, number = _FINAL, 0
    post = int(match["post_implicit"] or match["post_n"] or 0) + 1 if has_post else 0
    # A development build precedes what it leads to: "not dev" must be larger than any n.
    dev = int(match["dev_n"] or 0) if match["dev"] else 10**_MAX_VERSION_LENGTH
    return Version(int(match["epoch"] or 0), tuple(release), stage, number, post, dev)


def _bound(text: str) -> Version:
    version = parse_version(text)
    assert version is not None, text  # our own table, checked by a test
    return version
