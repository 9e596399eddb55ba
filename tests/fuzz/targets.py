"""What is fuzzed: a parser, the files it starts from, and what is done with each input."""

from __future__ import annotations

import functools
import importlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

ROOT: Final = pathlib.Path(__file__).parents[2]
OWN: Final = ROOT / "tests" / "corpus"
MADE: Final = OWN / "made"
MAX_SEED: Final = 2**18
MAX_SEEDS: Final = 8  # the smallest: each is run before the first mutation
MAX_ARRAY: Final = 2**26


@dataclass(frozen=True)
class Target:
    """One parser.

    Args:
        reader: Module below `ckptfmt.migrate.readers`.
        formats: Of the corpus, whose files are the seeds.
        file: Name that an input gets; of a set, the part that is replaced.
        whole: Name of the entry that the other files of a set come from.
        made: Inputs to begin with, beside those of the corpus.
        beside: Other files of a set that is made here.
    """

    reader: str
    formats: tuple[str, ...]
    file: str = "x"
    whole: str | None = None
    made: tuple[bytes, ...] = field(default=())
    beside: Mapping[str, bytes] = field(default_factory=dict)

    def load(self) -> None:
        """Import what is run."""
        for name in ("moving", "storing", "layout", "reports", f"readers.{self.reader}"):
            importlib.import_module(f"ckptfmt.migrate.{name}")

    def seeds(self) -> list[bytes]:
        """Return what to begin with, the smallest first."""
        found = {*self.made, *self._real()}
        return sorted(found, key=len)[:MAX_SEEDS]

    def _real(self) -> Iterator[bytes]:
        if self.whole is not None and (MADE / self.whole).is_dir():
            yield (MADE / self.whole / self.file).read_bytes()
        for root in dict.fromkeys([OWN, pathlib.Path(os.environ.get("CKPTFMT_CORPUS", OWN))]):
            for row in json.loads((root / "MANIFEST.json").read_text())["entries"]:
                folder = root / "files" / row["id"]
                if row["format"] not in self.formats or not folder.is_dir():
                    continue
                if self.whole is not None and row["id"] != self.whole:
                    continue
                for file in sorted(folder.rglob("*")):
                    right = self.whole is None or str(file.relative_to(folder)) == self.file
                    if file.is_file() and right and file.stat().st_size <= MAX_SEED:
                        yield file.read_bytes()

    def run(self, data: bytes) -> bool:
        """Read everything of an input; an error of ours is an answer. Tell which it was."""
        from ckptfmt import errors
        from ckptfmt.migrate import layout, registry, storing
        from ckptfmt.migrate.files import Place, Span
        from ckptfmt.migrate.members import Members
        from ckptfmt.migrate.source import Lazy, left_out, refusing, walk

        files = {**_others(self.whole), **self.beside, self.file: data}
        spans = {
            name: functools.partial(Span, name, memoryview(bytes(part)))
            for name, part in files.items()
        }
        folder = Members(spans, "fuzz")
        named = None if "/" in self.file else self.file
        try:
            with refusing("malformed"):
                found = registry.reader(self.reader).read(Place(folder, named))
            if found is None:
                return False
            list(left_out(found.root))
            with refusing("cannot be arranged"):
                arranged = layout.arrange(found)
            storing.stored(arranged, None)
            for _, leaf in walk(found.root):
                if isinstance(leaf, Lazy) and leaf.nbytes <= MAX_ARRAY and leaf.items is None:
                    leaf.load()
        except errors.CheckpointError:
            return False
        return True


@functools.cache
def _others(entry: str | None) -> dict[str, bytes]:
    if entry is None:
        return {}
    whole = pathlib.Path(os.environ.get("CKPTFMT_CORPUS", OWN))
    for folder in (whole / "files" / entry, OWN / "files" / entry, MADE / entry):
        if folder.is_dir():
            return {
                str(file.relative_to(folder)): file.read_bytes()
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            }
    return {}


def _xgboost() -> bytes:
    rows: list[Any] = [{"split_conditions": [0.5, 1], "left_children": [1, -1]}]
    booster = {"name": "gbtree", "model": {"trees": rows}}
    return json.dumps({"learner": {"gradient_booster": booster}, "version": [2, 0, 0]}).encode()


_UBJSON: Final = (
    b"{L\0\0\0\0\0\0\0\x07learner{L\0\0\0\0\0\0\0\x10gradient_booster{L\0\0\0\0\0\0\0\x05trees"
    b"[$d#L\0\0\0\0\0\0\0\x02\0\0\0\0\x3f\x80\0\0}}L\0\0\0\0\0\0\0\x07version[#L\0\0\0\0\0\0\0\x01i\x01}"
)
_MXNET: Final = (
    (0x112).to_bytes(16, "little") + (1).to_bytes(8, "little") + bytes.fromhex("c9fa93f9")
    + bytes(4) + (1).to_bytes(4, "little") + (2).to_bytes(8, "little")
    + (1).to_bytes(4, "little") + bytes(8) + bytes(8)
    + (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"w"
)  # fmt: skip
_GGUF: Final = (
    b"GGUF\x03\0\0\0" + (1).to_bytes(8, "little") + (1).to_bytes(8, "little")
    + (4).to_bytes(8, "little") + b"name"
    + (9).to_bytes(4, "little") + (6).to_bytes(4, "little")
    + (1).to_bytes(8, "little") + bytes(4)
    + (1).to_bytes(8, "little") + b"w" + (1).to_bytes(4, "little") + (32).to_bytes(8, "little")
    + (2).to_bytes(4, "little") + bytes(8) + bytes(64)
)  # fmt: skip
_HEADER: Final = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
ONE: Final = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(4)
_INDEX: Final = json.dumps({"weight_map": {"w": "one.safetensors"}}).encode()
_ZARRAY: Final = json.dumps(
    {"zarr_format": 2, "shape": [2, 3], "chunks": [2, 2], "dtype": "<f4", "order": "C",
     "compressor": None, "filters": None, "fill_value": None, "dimension_separator": "."}
).encode()  # fmt: skip
_TREE: Final = json.dumps(
    {"tree_metadata": {"('w',)": {
        "key_metadata": [{"key": "w", "key_type": 2}],
        "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False}}}}
).encode()  # fmt: skip

TARGETS: Final = {
    "torch-zip": Target("torch_zip", ("torch-zip", "lightning", "torch-zip-trainer")),
    "torch-stream": Target("torch_stream", ("torch-legacy", "torch-legacy-module")),
    "torch-tar": Target("torch_tar", ("torch-tar",)),
    "torchscript": Target("torchscript", ("torchscript",)),
    "pickle": Target("pickled", ("numpy-pickle", "jax-pickle", "sb3-vecnormalize-pickle",
                                 "paddle-pickle", "sklearn-pickle", "sb2")),
    "numpy": Target("numpy", ("npz", "npy", "chainer-npz", "npy-pickled-dict")),
    "safetensors": Target("safetensors", ("safetensors",)),
    "hdf5": Target("hdf5", ("keras-h5-weights", "keras-h5", "keras-weights-h5")),
    "flax": Target("flax", ("flax-msgpack",), made=(
        b"\x81\xa1w\xc7\x11\x01\x93\x91\x01\xa7float32\xc4\x04" + bytes(4),)),
    "archive": Target("archive", ("sb3-zip", "keras-v3", "torch-zip-trainer-targz",
                                  "paddle-fluid")),
    "gguf": Target("gguf", ("gguf",), made=(_GGUF,)),
    "mxnet": Target("mxnet", (), made=(_MXNET,)),
    "paddle": Target("paddle", ("paddle-pdiparams",), made=(
        bytes(16) + b"\x04\0\0\0\x08\x05\x10\x02" + bytes(8),)),
    "xgboost": Target("xgboost", ("xgboost",), made=(_xgboost(), _UBJSON)),
    "onnx": Target("onnx", ("onnx",)),
    "caffe": Target("caffe", ("caffemodel",)),
    "dcp": Target("dcp", ("dcp",), ".metadata", "dcp-lightning-2rank"),
    "deepspeed": Target("deepspeed", ("deepspeed-zero",),
                        "global_step4000/mp_rank_00_model_states.pt", "deepspeed-sockeye"),
    "deepspeed-3": Target("deepspeed", (), "zero_pp_rank_0_mp_rank_00_model_states.pt",
                          "zero3/global_step3"),
    "universal": Target("universal", (), "mp_rank_00_model_states.pt",
                        "zero2/global_step3_universal"),
    "shards": Target("shards", (), "x.index.json", made=(_INDEX,), beside={
        "one.safetensors": ONE}),
    "orbax-zarr": Target("orbax", (), "w/.zarray", made=(_ZARRAY,), beside={
        "_METADATA": _TREE, "w/0.0": bytes(16), "w/0.1": bytes(16)}),
    "folder": Target("folder", (), "a/part", made=(ONE,), beside={"config.json": b'{"a": 1}'}),
    "ggml": Target("ggml", (), made=(b"lmgg" + bytes(60),)),
    "tf-index": Target("tensorflow", ("tf-checkpoint-v2",), "ckpt.index", "tf-ckpt-lso"),
    "tf-v1": Target("tensorflow", ("tf-checkpoint-v1",), "model.ckpt-1-00000-of-00001",
                    "tf-v1-tensorboard-1"),
    "orbax-tree": Target("orbax", ("orbax-ocdbt",), "_METADATA", "orbax-v0-direct"),
    "orbax-manifest": Target("orbax", ("orbax-ocdbt",), "manifest.ocdbt", "orbax-v0-direct"),
    "orbax-node": Target("orbax", ("orbax-ocdbt",),
                         "d/9f51d9b77c0c771353c577b65dc7bba5", "orbax-v0-direct"),
}  # fmt: skip
