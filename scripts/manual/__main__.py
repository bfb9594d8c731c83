"""Writes the manual pages below a directory, and removes those that are no longer."""

import sys
from pathlib import Path

from scripts.manual.pages import rendered


def main(directory: Path) -> None:
    pages = rendered()
    for path, text in pages.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
    for found in directory.glob("man?/*"):
        if str(found.relative_to(directory)) not in pages:
            found.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
