"""The wheel holds two import packages, nbdkit's script and filter in one, and the manual pages."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_top_level_names(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    [data] = [name for name in top if name.endswith(".data")]
    packages = {name for name in top if not name.endswith((".dist-info", ".data"))}
    assert packages == {"thinpoold", "thinmeta"}
    pages = {str(path.relative_to(ROOT / "docs" / "man")) for path in ROOT.glob("docs/man/man?/*")}
    installed = {name for name in names if name.startswith(f"{data}/")}
    assert installed == {f"{data}/data/share/man/{page}" for page in pages}
    assert "thinpoold/_plugin/thinpool.py" in names
    # As source: what is built of it fits one version of nbdkit.
    filter_names = {name for name in names if name.startswith("thinpoold/_plugin/fastpath/")}
    sources = [path for path in (ROOT / "plugins" / "fastpath").iterdir() if path.is_file()]
    assert filter_names == {f"thinpoold/_plugin/fastpath/{path.name}" for path in sources}
    assert "thinpoold/_plugin/fastpath/Makefile" in names
    [entry_points] = [name for name in names if name.endswith("/entry_points.txt")]
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "thinpool = thinpoold.cli:main" in text
    assert "thinpoold = thinpoold.daemon:main" in text
