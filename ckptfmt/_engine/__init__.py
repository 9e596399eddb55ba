"""Moving bytes between memory and a backend: one verb per module, knowing only those above.

threads   a few threads for one operation                                    threads
pages     fresh memory, aligned and provided by the kernel                   memory
catalog   backend → which checkpoints live, damaged and newer ones named     I/O
notes     annotations: read, attach                                          I/O
leases    what saves and deletions in flight protect                         I/O
uploads   uploads in parts that dead writers left                            I/O
upkeep    one store, and who works on it: tombstones                         I/O
plan      leaves + previous manifest → files to write, bytes to read         pure
stage     leaves → flat little-endian buffers and their digests              memory
write     planned files → chunks                                             I/O
commit    manifest → visible, exactly once                                   I/O, 1 object
request   what a caller wants saved, checked and flattened                   pure
lineage   what a checkpoint continues                                        pure
attempt   number, intent and base of a save; its commit                      I/O
save      one save, from flat tree to committed manifest                     I/O
agree     what each rank holds → one tree, who writes which box              pure
meet      who writes what, agreed between all ranks                          group, I/O
ranks     one save by many ranks, from there to the commit                   I/O
boxes     boxes of arrays, and where they lie in memory                      pure
source    where bytes lie → bytes in memory, digested while they are hot       I/O
read      planned fetches → verified bytes in their final memory             I/O
restore   verified bytes → state tree, or the caller's own arrays            memory
single    a whole checkpoint laid out as one file                            pure
parts     digested ranges of data files, and the reads that check them       I/O
audit     every stored byte of checkpoints against its digest, once           I/O
extract   artifacts → files of a folder                                     I/O
fill      data files of one checkpoint → all of them at a target              I/O
copy      checkpoints of one store → another one                            I/O
slim      manifest → the same without some sections                          pure
revise    commit the next revision of a checkpoint                           I/O
retire    delete checkpoints, then the data only they referenced             I/O
collect   free all bytes that nothing references                             I/O
"""
