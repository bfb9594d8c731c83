"""The source's own shape: which module may import which.

The table is the one in CONTRIBUTING.md. Imports are read from the syntax tree, those inside
functions and under TYPE_CHECKING too.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THINMETA = ROOT / "metadata" / "thinmeta"

# A part of thinmeta imports only its own layer and those above it in this list.
LAYERS = (
    {"errors"},
    {"format"},
    {"store"},
    {"buffers"},
    {"transaction"},
    {"btree", "spacemap"},
    {"thin"},
    {"check", "export"},
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

# A library, and the only parts of the source that may know it.
CONFINED = {
    "lmdb": ("metadata/thinmeta/store/",),
    "construct": ("metadata/thinmeta/format/",),
    "click": ("thinpoold/cli/", "thinpoold/daemon.py"),
    "nbdkit": ("thinpoold/nbd.py", "plugins/thinpool.py"),
    "nbd": ("tests/", "scripts/"),
}


def modules(*folders: str) -> list[Path]:
    return sorted(
        path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")
    )


def package(path: Path) -> tuple[str, ...]:
    """The dotted package a module's relative imports start from."""
    parts = path.relative_to("metadata") if path.parts[0] == "metadata" else path
    return parts.parent.parts


def imported(path: Path) -> Iterator[str]:
    """Every module name that `path` imports, absolute; `from p import n` gives both p and p.n."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package(path))[: len(package(path)) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules("metadata"), ids=str)
def test_thinmeta_imports_run_one_way(path: Path) -> None:
    own = path.relative_to("metadata/thinmeta").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in RANK, f"thinmeta.{own} is in no layer: add it here and in CONTRIBUTING.md"
    for name in imported(path):
        if name.startswith("thinmeta."):
            other = name.split(".")[1]
            assert RANK[other] <= RANK[own], f"{path} imports {name}, a layer above its own"


@pytest.mark.parametrize("path", modules("metadata"), ids=str)
def test_thinmeta_knows_no_daemon_and_no_nbd(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "thinmeta", "construct", "crc32c", "lmdb", "zstandard"}
    assert {name.split(".")[0] for name in imported(path)} <= allowed


@pytest.mark.parametrize("path", modules("metadata", "thinpoold", "plugins"), ids=str)
def test_a_library_stays_where_it_belongs(path: Path) -> None:
    for name in imported(path):
        allowed = CONFINED.get(name.split(".")[0])
        assert allowed is None or str(path).startswith(allowed), f"{path} imports {name}"


@pytest.mark.parametrize("path", modules("plugins"), ids=str)
def test_the_plugin_is_a_few_lines_over_the_package(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots <= {*sys.stdlib_module_names, "thinpoold", "nbdkit"}


def test_no_cycle_between_the_parts_of_one_layer() -> None:
    edges: dict[str, set[str]] = {}
    for path in modules("metadata"):
        own = path.relative_to("metadata/thinmeta").parts[0].removesuffix(".py")
        for name in imported(path):
            if name.startswith("thinmeta.") and (other := name.split(".")[1]) != own:
                edges.setdefault(own, set()).add(other)
    for own, others in edges.items():
        for other in others:
            assert own not in edges.get(other, ()), f"thinmeta.{own} and thinmeta.{other}: a cycle"
