"""The JSON file of a GPU run, which grows with every group of tests and every part, so that an end loses little."""

import json
import shlex
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

from limited import Result

from dinov2.utils.files import write_text


class GpuResults:
    """What has been measured so far, in memory and in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin = time.monotonic()
        self.passed = True
        self.content: dict[str, Any] = {
            "machine": None,
            "command": shlex.join(sys.orig_argv),
            "rows": [],
            "ratios": {},
            "notes": [],
            "tests": {},
        }

    def save(self) -> None:
        """Write the file; it appears whole or not at all."""
        self.content["seconds"] = time.monotonic() - self._begin
        write_text(self._path, json.dumps(self.content, indent=1) + "\n")

    def note(self, text: str) -> None:
        """Keep a remark, and print it."""
        self.content["notes"].append(text)
        print(text)

    def add_tests(self, name: str, result: Result, report: Path) -> None:
        """Add a group of tests with how often each reason to skip one was given, from pytest's JUnit `report`."""
        self.passed &= result.code == 0
        skipped = {} if result.code is None or not report.is_file() else skip_reasons(report)
        self.content["tests"][name] = {
            "exit_code": result.code,
            "summary": result.last_line,
            "seconds": result.seconds,
            "skipped": skipped,
        }
        print(f"{name}: {result.last_line}")
        for reason, count in skipped.items():
            print(f"  skipped {count}: {reason}")
        self.save()

    def add_part(self, name: str, result: Result, results: Path) -> None:
        """Add what a benchmark program has written to `results`, also where it did not end by itself."""
        self.passed &= result.code == 0
        print(f"\n{name} ({result.seconds:.0f} s)\n{result.output.strip()}")
        if result.code != 0:
            self.content["notes"].append(f"{name}: exit code {result.code}: {result.last_line}")
        self.add_rows(name, results)

    def add_rows(self, name: str, results: Path) -> None:
        """Add the rows, ratios and notes that a program has written so far, and save."""
        if results.is_file():  # it is written after every shape, so that running out of time loses little
            found = json.loads(results.read_text())
            self.content["machine"] = found["machine"]
            self.content["rows"] += [{"part": name, **row} for row in found["rows"]]
            self.content["ratios"] |= {f"{name}, {ratio}": value for ratio, value in found["ratios"].items()}
            self.content["notes"] += [f"{name}: {note}" for note in found["notes"]]
        self.save()


def skip_reasons(report: Path) -> dict[str, int]:
    """Return how often each reason to skip a test is given in a JUnit report."""
    tree = ElementTree.parse(report)
    return dict(Counter(skip.get("message", "") for skip in tree.iter("skipped")))
