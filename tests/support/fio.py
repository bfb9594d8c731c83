"""fio's NBD engine: jobs as text, results as numbers."""

import json
from pathlib import Path
from typing import Any

from tests.support.tools import run


def fio(directory: Path, jobs: str) -> dict[str, Any]:
    """Runs a job file; every job must end without an error. Totals by job name.

    `{"name": {"read": requests, "write": requests, "trim": requests}}`
    """
    job_file, output = directory / "jobs.fio", directory / "fio.json"
    job_file.write_text(jobs)
    # --aux-path: where fio puts the state of its verification.
    aux = f"--aux-path={directory}"
    done = run("fio", "--output-format=json", f"--output={output}", aux, str(job_file), check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{output.read_text()[:2000]}"
    text = output.read_text()
    totals: dict[str, Any] = {}
    for job in json.loads(text[text.index("{") :])["jobs"]:
        assert job["error"] == 0, job
        total = totals.setdefault(job["jobname"], {"read": 0, "write": 0, "trim": 0})
        for kind in total:
            total[kind] += job[kind]["total_ios"]
    return totals
