"""The command line `thinpool`: one module a group of verbs, each loaded when its verb is called.

`app` is the parser's tree, `run` turns exceptions into one line and an exit status, `backend`
carries a verb to the pool, whether its daemon runs or not.
"""

import os
from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the program."""
    from thinpoold.cli.app import thinpool
    from thinpoold.cli.run import run

    if "_THINPOOL_COMPLETE" in os.environ:
        complete()
    run(thinpool, argv)


def complete() -> None:
    """Get ready: a shell asks what a word may become. click sees to the rest."""
    from thinpoold.cli.shells import register

    register()
