"""Btrees of metadata blocks, shared between snapshots and changed copy-on-write."""

from thinmeta.btree.portions import Cursor, next_portion
from thinmeta.btree.tree import Tree
from thinmeta.btree.values import IntValues, Values

__all__ = ["Cursor", "IntValues", "Tree", "Values", "next_portion"]
