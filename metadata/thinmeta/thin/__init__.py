"""The thin metadata: what dm-thin keeps of its devices and their mappings."""

from thinmeta.btree import Cursor
from thinmeta.format.values import DeviceDetails
from thinmeta.thin.mappings import Mapping, Run
from thinmeta.thin.metadata import ThinMetadata

__all__ = ["Cursor", "DeviceDetails", "Mapping", "Run", "ThinMetadata"]
