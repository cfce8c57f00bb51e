"""One phase: ``python -m gpu <phase> <results>``. What it found goes to <results>/<phase>.json: {"checks": [[what,
outcome]], "rows": [...]}, written anew after each row, so that nothing is lost if the process ends. Exit status 1 if a
check failed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gpu import checks, dispatch, fragments, small, suites


class Report:
    def __init__(self, path: Path) -> None:
        self.path, self.checks, self.rows = path, list[tuple[str, str]](), list[dict[str, Any]]()

    def save(self) -> None:
        self.path.write_text(json.dumps({"checks": self.checks, "rows": self.rows}))


def run(phase: str, results: Path) -> int:
    report = Report(results / f"{phase}.json")
    if phase == "checks":
        report.checks = checks.run_checks()
    elif phase == "fragments":
        report.checks = fragments.compare()
    elif phase == "small":
        small.run()
        report.checks = [("small shapes", "passed")]
    elif phase == "dispatch":
        from bigmodel_ext import _measured

        rows, report.rows = dispatch.measure()
        _measured.write(rows, results / "measured.json")
    else:
        for row in suites.SUITES[phase.removeprefix("suite-")]():
            report.rows.append({"suite": phase.removeprefix("suite-"), **row})
            report.save()
    report.save()
    return any(outcome != "passed" for _, outcome in report.checks)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], Path(sys.argv[2])))
