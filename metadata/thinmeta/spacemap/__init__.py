"""Space maps: reference counts of data and metadata blocks, and what is free."""

from thinmeta.spacemap.data import DataSpaceMap
from thinmeta.spacemap.metadata import MetadataSpaceMap

__all__ = ["DataSpaceMap", "MetadataSpaceMap"]
