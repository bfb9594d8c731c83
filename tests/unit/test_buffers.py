"""The library that bounds nbdkit's buffers: when it is preloaded, whom it refuses what."""

import os
import subprocess
from pathlib import Path

import pytest

from thinpoold import buffers

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = buffers.place(ROOT / "plugins" / "thinpool.py")

# In the program itself, and in a library that it has loaded.
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
void *elsewhere (void *old, size_t size);
int main (void) {
  char *had = realloc (NULL, 4u << 20);
  had[0] = 'h';
  void *more = realloc (had, (4u << 20) + 1);
  void *other = elsewhere (NULL, 64u << 20);
  printf ("%d %d %d %c\n", had != NULL, more != NULL, other != NULL, had[0]);
  return 0;
}
"""
ELSEWHERE = r"""
#include <stdlib.h>
void *elsewhere (void *old, size_t size) { void *got = realloc (old, size); return got; }
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    for name, text in (("program.c", PROGRAM), ("elsewhere.c", ELSEWHERE)):
        (tmp_path / name).write_text(text)
    library, made = tmp_path / "elsewhere.so", tmp_path / "program"
    # Without optimization: with it, what is never written need not be asked for.
    compile_ = ["cc", "-O0", "-o"]
    subprocess.run([*compile_, library, "-shared", "-fPIC", tmp_path / "elsewhere.c"], check=True)
    subprocess.run([*compile_, made, tmp_path / "program.c", library], check=True)
    return [str(made)]


def said(program: list[str], **environment: str) -> str:
    done = subprocess.run(
        program, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_program_itself_gets_no_more_than_the_largest_request(program: list[str]) -> None:
    assert said(program) == "1 1 1 h"
    # Refused, it keeps what it had; and a library is not refused.
    assert said(program, **buffers.preloaded(LIBRARY, {})) == "1 0 1 h"


def test_without_a_number_nobody_is_refused(program: list[str]) -> None:
    assert said(program, LD_PRELOAD=str(LIBRARY)) == "1 1 1 h"


def test_what_others_preload_stands_before_it(tmp_path: Path) -> None:
    found = buffers.preloaded(LIBRARY, {"LD_PRELOAD": "a.so b.so"})
    assert found["LD_PRELOAD"] == f"a.so b.so {LIBRARY}"
    assert buffers.preloaded(tmp_path / "none.so", {}) == {}
    # The dynamic linker would take it for two.
    odd = tmp_path / "a b.so"
    odd.touch()
    assert buffers.preloaded(odd, {}) == {}


@pytest.mark.parametrize("others", ["", "a.so b.so"])
def test_what_the_process_starts_goes_without_it(
    monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    before = {"LD_PRELOAD": others} if others else {}
    for name, value in buffers.preloaded(LIBRARY, before).items():
        monkeypatch.setenv(name, value)
    buffers.forget_preloading()
    assert os.environ.get("LD_PRELOAD", "") == others
    buffers.forget_preloading()
    assert os.environ.get("LD_PRELOAD", "") == others


def test_a_thread_takes_a_buffer_and_a_block() -> None:
    # Here it is not preloaded.
    assert buffers.per_thread(64 << 10) == (64 << 20) + (64 << 10)
    assert buffers.per_thread(1 << 30) == (64 << 20) + (1 << 20)
