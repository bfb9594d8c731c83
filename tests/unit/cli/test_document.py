"""docs/control-protocol.md is what the code says."""

from pathlib import Path

from thinpoold.control.codes import CODES
from thinpoold.control.document import render
from thinpoold.control.methods import METHODS

DOCUMENT = Path(__file__).parents[3] / "docs" / "control-protocol.md"


def test_the_document_is_current() -> None:
    assert DOCUMENT.read_text() == render(), "run scripts/gen-control-docs"


def test_it_has_every_method_and_code() -> None:
    text = render()
    for name, method in METHODS.items():
        assert f"### {name}\n" in text
        for param in method.params:
            assert f"| `{param.name}` |" in text
    for code in CODES:
        assert f"| {code.number} | {code.meaning} |" in text
