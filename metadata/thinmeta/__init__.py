"""thinmeta: device-mapper's thin-provisioning metadata as a library.

The format is the kernel's own (dm-thin metadata version 2), block for block; the blocks live in a
transactional store instead of on a raw device. Imports run one way:

    format   bytes <-> values, pure
    store    blocks and records, committed atomically: LMDB, memory, a kernel metadata device
    buffers  a bounded cache of blocks, after dm-bufio
    transaction, btree, spacemap, thin
    check, export

Nothing here knows of a daemon, of NBD, or of the data device.
"""
