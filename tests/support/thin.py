"""The kernel's own metadata tools on an exported metadata file: thin_check and thin_dump.

thin_dump's XML is read into plain values: what each device maps, in blocks.
"""

import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.tools import run


@dataclass(slots=True)
class DumpedDevice:
    """One thin device as thin_dump sees it. `mappings`: virtual block -> data block."""

    dev_id: int
    mapped_blocks: int
    mappings: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Dumped:
    """A whole pool's metadata. `data_block_sectors` in 512-byte sectors."""

    data_block_sectors: int
    data_blocks: int
    transaction: int
    devices: dict[int, DumpedDevice] = field(default_factory=dict)

    @property
    def data_in_use(self) -> set[int]:
        """The data blocks that some device maps."""
        return {block for device in self.devices.values() for block in device.mappings.values()}


def thin_check(image: Path) -> list[str]:
    """What thin_check has to say against `image`; an empty list when it is sound."""
    # By its name alone: version 1 takes no path that is not UTF-8.
    done = run("thin_check", image.name, check=False, cwd=image.parent)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    # What it is doing, and the facts it prints of a sound image.
    harmless = ("examining", "checking", "Checking", "TRANSACTION_ID=", "METADATA_FREE_BLOCKS=")
    # That of version 1, which says more behind a colon where something is wrong.
    steps = {"device details tree", "mapping tree", "data space map", "metadata space map"}
    complaints = [line for line in lines if not line.startswith(harmless) and line not in steps]
    if done.returncode != 0:
        complaints.append(f"thin_check: exit status {done.returncode}")
    return complaints


def thin_dump(image: Path) -> Dumped:
    """The whole of an exported metadata file. Raises CalledProcessError when it is damaged."""
    top = ET.fromstring(run("thin_dump", image.name, cwd=image.parent).stdout)
    dumped = Dumped(
        data_block_sectors=int(top.attrib["data_block_size"]),
        data_blocks=int(top.attrib["nr_data_blocks"]),
        transaction=int(top.attrib["transaction"]),
    )
    # What devices share version 1 defines once, and refers to.
    defined: dict[str, dict[int, int]] = {}
    for element in top.iter("def"):
        defined[element.attrib["name"]] = _mappings(element, defined)
    for element in top.iter("device"):
        device = DumpedDevice(
            int(element.attrib["dev_id"]),
            int(element.attrib["mapped_blocks"]),
            _mappings(element, defined),
        )
        if len(device.mappings) != device.mapped_blocks:
            raise AssertionError(
                f"device {device.dev_id}: {device.mapped_blocks} mapped blocks in its details, "
                f"{len(device.mappings)} mappings in its tree"
            )
        dumped.devices[device.dev_id] = device
    return dumped


def _mappings(element: ET.Element, defined: dict[str, dict[int, int]]) -> dict[int, int]:
    """What a device or a definition maps: virtual block -> data block."""
    mappings: dict[int, int] = {}
    for mapping in element:
        attributes = mapping.attrib
        if mapping.tag == "single_mapping":
            mappings[int(attributes["origin_block"])] = int(attributes["data_block"])
        elif mapping.tag == "range_mapping":
            begin, data = int(attributes["origin_begin"]), int(attributes["data_begin"])
            for step in range(int(attributes["length"])):
                mappings[begin + step] = data + step
        elif mapping.tag == "ref":
            mappings |= defined[attributes["name"]]
        else:
            raise AssertionError(f"thin_dump printed an unknown element {mapping.tag}")
    return mappings
