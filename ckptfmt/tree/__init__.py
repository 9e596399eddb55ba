"""State tree ⇄ structure and arrays; paths, selection, renaming. Pure; copies no array data.

A *structure* is a state tree with an `ArrayRef` in place of each array. A *path* names a leaf
or a container: keys and indexes, escaped (`leaves.escape`) and joined by `/`. Functions that
take a structure leave it as it is; what they return may share containers with it.

    flat.py       state tree → Flat: structure, arrays, tied arrays
    advice.py     what to store instead of a value that cannot be stored
    overlap.py    arrays that share memory without being tied
    structure.py  structure → state tree; paths, lookup, filter
    moves.py      rename
    globs.py      patterns over paths
"""

from ckptfmt.leaves import join as join
from ckptfmt.leaves import unescape as unescape
from ckptfmt.tree.flat import Flat as Flat
from ckptfmt.tree.flat import Leaf as Leaf
from ckptfmt.tree.flat import check as check
from ckptfmt.tree.flat import flatten as flatten
from ckptfmt.tree.flat import plain as plain
from ckptfmt.tree.globs import matcher as matcher
from ckptfmt.tree.globs import matches as matches
from ckptfmt.tree.moves import rename as rename
from ckptfmt.tree.structure import Structure as Structure
from ckptfmt.tree.structure import filter as filter
from ckptfmt.tree.structure import lookup as lookup
from ckptfmt.tree.structure import paths as paths
from ckptfmt.tree.structure import unflatten as unflatten
