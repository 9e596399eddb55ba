"""Moving bytes between memory and a backend: one verb per module, knowing only those above.

catalog   backend → which checkpoints live, damaged and newer ones named      I/O
plan      leaves + previous manifest + options → files to write, bytes to read  pure
stage     leaves → flat little-endian buffers and their digests              memory
write     planned files → chunks                                               I/O
commit    manifest → visible, exactly once                                     I/O, 1 object
save      one save, from flat tree to committed manifest                       I/O
read      planned fetches → verified bytes in their final memory               I/O
collect   delete checkpoints, free the bytes nobody references                 I/O
"""
