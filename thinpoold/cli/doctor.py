"""`thinpool doctor`."""

import click

from thinpoold.cli import output
from thinpoold.cli.options import json_option, plain_verb
from thinpoold.doctor.examination import can_serve, examine
from thinpoold.doctor.finding import Finding
from thinpoold.doctor.machine import Machine
from thinpoold.progress import Progress


@plain_verb("doctor")
@json_option
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Say what this machine has and lacks, what each thing is for, and what mends it.

    What is needed to serve a pool at all comes first, and is marked FAILS where it is lacking; what
    only some commands want is marked lacks. Nothing is changed: the commands that it names are for
    you to run, as root.

    \b
    Examples:
      thinpool doctor
      thinpool doctor --json

    Exit status: 0 pools can be served; 1 they cannot.
    """
    with Progress("looking at this machine"):
        findings = list(examine(Machine()))
    well = can_serve(findings)
    if as_json:
        output.emit_json({"ok": well, "findings": [finding.as_json() for finding in findings]})
    else:
        _tell(findings)
    if not well:
        output.note("this machine cannot serve a pool: mend what FAILS")
        context.exit(1)


def _tell(findings: list[Finding]) -> None:
    width = max(output.cell_width(finding.name) for finding in findings)
    for finding in findings:
        word = "ok   " if finding.ok else "FAILS" if finding.needed else "lacks"
        output.emit(f"{word}  {finding.name:<{width}}  {finding.found}")
        if not finding.ok:
            output.emit(f"{'':7}for: {finding.purpose}")
            output.emit(f"{'':7}do:  {finding.remedy}")
