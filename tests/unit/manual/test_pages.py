"""The manual pages are what the code says, and every formatter takes them as they are."""

import ast
import os
import re
import subprocess
from pathlib import Path

import click
import pytest

from scripts.manual.pages import PROSE, all_pages, rendered, verb_command
from tests.support.tools import program
from thinpoold.cli.app import GROUPS
from thinpoold.control.codes import CODES
from thinpoold.control.methods import METHODS

ROOT = Path(__file__).parents[3]
PAGES = ROOT / "docs" / "man"
VERBS = [name for verbs in GROUPS.values() for name in verbs]
EVERYWHERE = ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO")
# Of what acts on a pool.
OF_A_POOL = ("FILES", "ENVIRONMENT")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return rendered()


def plain(roff: str) -> str:
    """A page's text without its marks."""
    text = re.sub(r"\\f[BIR]|\\[&%]", "", roff)
    return re.sub(r"\s+", " ", text.replace(r"\-", "-").replace("\\ ", " "))


def test_the_pages_are_current(pages: dict[str, str]) -> None:
    found = {str(path.relative_to(PAGES)) for path in PAGES.glob("man?/*")}
    assert found == set(pages), "run scripts/gen-man"
    for path, text in pages.items():
        assert (PAGES / path).read_text() == text, f"{path}: run scripts/gen-man"


def test_there_is_a_page_for_every_verb(pages: dict[str, str]) -> None:
    assert {f"man1/thinpool-{verb}.1" for verb in VERBS} < set(pages)
    for verb in VERBS:
        assert f"thinpool-{verb}(1)" in plain(pages["man1/thinpool.1"])


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_page_has_every_option_and_section(verb: str, pages: dict[str, str]) -> None:
    page = pages[f"man1/thinpool-{verb}.1"]
    command = verb_command(verb)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            for name in parameter.opts:
                assert f"\\fB{name.replace('-', chr(92) + '-')}\\fR" in page
            assert parameter.help, f"{name} of {verb} has no help"
    acts = any(parameter.name == "pool" for parameter in command.params)
    for section in (*EVERYWHERE, *(OF_A_POOL if acts else ())):
        assert f'.SH "{section}"' in page or f".SH {section}" in page, section


def test_prose_belongs_to_a_page() -> None:
    names = {page.name for page in all_pages()}
    assert {path.stem for path in PROSE.glob("*.md")} - {"common"} <= names


def test_a_reference_to_an_own_page_leads_to_one(pages: dict[str, str]) -> None:
    own = {page.reference for page in all_pages()}
    for path, text in pages.items():
        for name in re.findall(r"\bthinpool[\w-]*\(\d\)", plain(text)):
            assert name in own, f"{path} refers to {name}"


def test_the_control_page_has_every_method_and_code(pages: dict[str, str]) -> None:
    text = plain(pages["man7/thinpoold-control.7"])
    for name, method in METHODS.items():
        assert f'.SS "{name}"' in text
        for param in method.params:
            assert f".TP {param.name} " in text
    for code in CODES:
        assert f".TP {code.number} " in text


def test_the_plugins_page_has_every_parameter_and_all_it_is_asked(pages: dict[str, str]) -> None:
    """Read from the syntax tree: the module is importable inside nbdkit only."""
    text = plain(pages["man1/thinpool-plugin.1"])
    tree = ast.parse((ROOT / "thinpoold" / "nbd.py").read_text())
    functions = {one.name: one for one in tree.body if isinstance(one, ast.FunctionDef)}
    compared = [one for one in ast.walk(functions["config"]) if isinstance(one, ast.Compare)]
    keys = {
        constant.value
        for one in compared
        for constant in ast.walk(one)
        if isinstance(constant, ast.Constant)
    }
    assert keys, "config() has no list of its parameters any more"
    assert keys == {word.split("=")[0] for word in re.findall(r"\.TP ([a-z-]+=[A-Z]+)", text)}
    for name in functions:
        if name.startswith("can_") and name != "can_write":
            assert name.removeprefix("can_").replace("_", " ") in re.sub("-", " ", text).lower()


@pytest.mark.parametrize("path", sorted(rendered()))
@pytest.mark.parametrize(
    "command",
    [
        ("groff", "-man", "-Tutf8", "-ww", "-z"),
        ("groff", "-man", "-Tps", "-ww", "-z"),
        ("man", "--warnings=w", "-l"),
    ],
    ids=" ".join,
)
def test_it_is_formatted_without_a_warning(path: str, command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [program(command[0]), *command[1:], str(PAGES / path)],
        capture_output=True,
        env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"},
        check=False,
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")


def test_what_a_reader_sees() -> None:
    done = subprocess.run(
        [program("man"), "-l", str(PAGES / "man1/thinpool-create.1")],
        capture_output=True,
        text=True,
        env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"},
        check=True,
    )
    text = done.stdout
    assert "       thinpool-create - make a thin volume\n" in text
    assert "       thinpool create [-p POOL] [--read-only] [--reserve SIZE]" in text
    assert "           thinpool -p mypool create disk 10G\n" in text
