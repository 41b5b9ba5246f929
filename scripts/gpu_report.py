"""What a check of a GPU found, for people.

Only the standard library: this file travels beside the pieces.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def counted(record: Path) -> dict[str, Any]:
    """Of a JUnit file: how many passed, and the names of those that did not."""
    cases = list(ElementTree.parse(record).getroot().iter("testcase"))

    def named(kind: str) -> list[str]:
        return [str(case.get("name")) for case in cases if case.find(kind) is not None]

    failed = named("failure") + named("error")
    skips = ((case, case.find("skipped")) for case in cases)
    skipped = {str(c.get("name")): str(s.get("message")) for c, s in skips if s is not None}
    return {"passed": len(cases) - len(failed) - len(skipped), "failed": failed, "skipped": skipped}


def table(report: Mapping[str, Any]) -> str:
    """The report for people, as Markdown."""
    gpu = report["machine"]["gpus"][0]
    lines = [
        f"# {gpu['name']}", "",
        f"sm_{gpu['sm']}, {gpu['memory_gb']} GB, driver {gpu['driver']}, CUDA {gpu['cuda']}, "
        f"{report['machine']['system']}", "", "| route | |", "|---|---|",
    ]  # fmt: skip
    for name, route in report["routes"].items():
        lines.append(
            f"| {name} | {route['version'] if route['works'] else 'no: ' + route['why']} |"
        )
    if "engines" in report:
        lines += ["", "| engines of | precision | by | seconds |", "|---|---|---|---|"]
        for row in report["engines"]:
            took = row["seconds"] if row["built"] else f"not built: {row['why']}"
            lines.append(f"| {row['bundle']} | {row['precision']} | {row['flavour']} | {took} |")
    if "tests" in report:
        tests = report["tests"]
        lines += ["", f"Tests: {tests['passed']} passed, {len(tests['failed'])} failed, "
                  f"{len(tests['skipped'])} skipped."]  # fmt: skip
        lines += [f"- failed: {name}" for name in tests["failed"]]
        reasons = Counter(tests["skipped"].values())
        lines += [f"- skipped: {n} tests: {why}" for why, n in reasons.items()]
    if "measure" in report:
        lines += ["", report["measure"]["table"]]
    return "\n".join(lines) + "\n"
