"""Btrees of metadata blocks, shared between snapshots and changed copy-on-write."""

from thinmeta.btree.tree import Tree
from thinmeta.btree.values import IntValues, Values

__all__ = ["IntValues", "Tree", "Values"]
