"""What the documents point at is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_repository_resolve(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not re.match(r"[a-z]+:|#", target):
            path, _, anchor = target.partition("#")
            file = document.parent / path
            assert file.exists(), f"{document.name} points at {target}"
            assert not anchor or anchor in anchors(file), f"{document.name} points at {target}"


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for document in (ROOT / "docs").glob("*.md"):
        if document.name != "README.md":
            assert f"({document.name})" in index, f"docs/README.md does not name {document.name}"


def anchors(document: Path) -> set[str]:
    """The names that headings get."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def test_every_promise_names_a_test_that_is_there() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    named = re.findall(r"`(tests/[^`]+)`", text)
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).is_file(), f"guarantees.md names {name}"
        assert "def test_" in (ROOT / name).read_text()
