"""Foreign checkpoints → a store: read as bytes, never executed.

source (file, folder, prefix, part) ─► files ─► registry ─► readers/… ─► Contents: an inert tree
Contents ─► layout: sections, counters, settings ─► storing: plain values ─► Store.save
                                               └──► reports: every item and where it went

source.py     what a source's tree is made of
files.py      names → bytes, mapped; names out of files are never trusted
remote.py     the same behind a URL
archives.py   zip, read strictly
texts.py      JSON, bounded
members.py    an archive as a folder
wire.py       protocol buffers; sstable.py LevelDB tables, Snappy, CRC-32C
pickles.py    the pickle reader; rebuild.py, tensors.py what its calls stand for
apart.py      HDF5 in a process of its own, where h5walk.py runs
boxes.py      arrays stored in parts; zero.py, zero3.py those that DeepSpeed cuts
registry.py   which reader knows these bytes; hints.py what to name instead
readers/      one module a format
layout.py     which part goes to which section; modules.py, optimizers.py help
storing.py    the tree as a state tree
spool.py      arrays that are not held in memory
reports.py    the report and the provenance
moving.py     open, migrate
exporting.py  out again: .pt, .npz, safetensors in shards; keras_files.py .weights.h5, .h5
"""

from ckptfmt.migrate.exporting import export as export
from ckptfmt.migrate.exporting import export_shards as export_shards
from ckptfmt.migrate.moving import Migrated as Migrated
from ckptfmt.migrate.moving import Source as Source
from ckptfmt.migrate.moving import migrate as migrate
from ckptfmt.migrate.moving import open as open
from ckptfmt.migrate.reports import Item as Item
from ckptfmt.migrate.reports import Report as Report
from ckptfmt.migrate.source import Lazy as Lazy
from ckptfmt.migrate.source import Name as Name
from ckptfmt.migrate.source import Record as Record
