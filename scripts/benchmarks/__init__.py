"""Measures thinpoold beside nbdkit's file plugin and qemu-nbd, and the metadata library alone."""
