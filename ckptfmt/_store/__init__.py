"""The store and its checkpoints, as users hold them: each module knows only those above it.

array       arrays that read themselves when asked
facts       what is known of a checkpoint without reading an array
checkpoint  what it is, what is in it, its arrays, its proofs
bundle      checkpoints in one file, and exports without their manifest
marker      the file that tells a store from any other folder
shelf       finding checkpoints: by number, newest, metric, examples, address
pending     a save that goes on in the background
mirror      a second place for a store, filled in the background
saving      one save at a time: lineage, retention, the background
alter       changing what was committed: delete, slim, retain, collect, annotate
store       all of it, at one URL
"""
