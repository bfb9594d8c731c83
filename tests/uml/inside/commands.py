"""Runs other programs, inside the machine."""

import subprocess


def run(*command: str, stdin: str | None = None) -> str:
    """A program that must succeed; its stdout. Raises AssertionError with its last words."""
    done = subprocess.run(command, capture_output=True, text=True, input=stdin, check=False)
    if done.returncode != 0:
        words = f"{done.stderr}{done.stdout[-2000:]}"
        raise AssertionError(f"{' '.join(command)}: status {done.returncode}: {words}")
    return done.stdout


def shell(script: str) -> str:
    """A shell script that must succeed, with -eu; its stdout."""
    return run("/bin/sh", "-euc", script)
