"""Where metadata blocks and records live: one small Protocol and its implementations.

`protocol.BlockStore` says what a store promises. `lmdb.LmdbStore` is the pool's, `memory`'s is for
tests and models, `flat`'s reads the kernel's own metadata devices.
"""
