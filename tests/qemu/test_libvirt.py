"""The libvirt domains in docs/qemu.md, judged by libvirt's own schema."""

import re
from pathlib import Path
from xml.etree import ElementTree

from tests.support.tools import run

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "qemu.md"


def domains() -> list[str]:
    return re.findall(r"^```xml\n(<domain.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)


def test_the_domains_are_valid(tmp_path: Path) -> None:
    assert domains()
    for number, text in enumerate(domains()):
        path = tmp_path / f"{number}.xml"
        path.write_text(text)
        run("virt-xml-validate", str(path), "domain")


def test_the_disks_are_thin_volumes_over_nbd() -> None:
    for text in domains():
        for disk in ElementTree.fromstring(text).iter("disk"):
            driver, source = disk.find("driver"), disk.find("source")
            assert driver is not None
            assert source is not None
            assert driver.get("type") == "raw"
            assert driver.get("discard") == "unmap"
            assert source.get("protocol") == "nbd"
