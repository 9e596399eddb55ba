"""Bytes ⇄ objects, exactly as `spec/v1.md` says. No I/O, clock, randomness or threads in here.

layout     key names                                  spec §4
datafile   safetensors headers                        spec §5
manifest   header + summary + body of one checkpoint  spec §6
filetable  the data files it names                     spec §6.7
tables     its arrays, chunks and files, by column    spec §6.5–6.7
values     state-tree structure ⇄ msgpack nodes       spec §6.4
digest     digest algorithms by name                  spec §7
codec      chunk codecs by name                       spec §7
planes     the codec that sorts bytes                 spec §7.1.5
features   what this release may read, write, delete  spec §9
records    intents and annotations                    spec §8, §10
"""

from ckptfmt.format.digest import DIGESTS as DIGESTS
from ckptfmt.format.features import FORMAT_VERSION as FORMAT_VERSION
from ckptfmt.format.manifest import Manifest as Manifest
