"""The results of a program: one aligned table on stdout, one JSON file."""

import json
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import torch
from common import Options

from dinov2.utils.files import write_text
from dinov2.utils.machine import cpu_model

Row = dict[str, Any]


def describe_machine(options: Options) -> dict[str, Any]:
    """Return the CPU's model, the threads in use, the GPU's name and the versions of Python and PyTorch."""
    return {
        "cpu": cpu_model(),
        "threads": options.threads,
        "gpu": torch.cuda.get_device_name() if options.device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


class Report:
    """Rows and ratios, gathered as they are measured; `save` may be called as often as one likes."""

    def __init__(self, options: Options) -> None:
        self.rows: list[Row] = []
        self.ratios: dict[str, float] = {}
        self.notes: list[str] = []
        self._json = options.json
        self._machine = describe_machine(options)

    def note(self, text: str) -> None:
        """Keep a remark for the reader, once."""
        if text not in self.notes:
            self.notes.append(text)

    def save(self) -> None:
        """Write the JSON file, where one was asked for; it appears whole or not at all."""
        if self._json is not None:
            content = {
                "machine": self._machine,
                "command": shlex.join(sys.orig_argv),
                "rows": self.rows,
                "ratios": self.ratios,
                "notes": self.notes,
            }
            write_text(self._json, json.dumps(content, indent=1) + "\n")

    def show(self) -> None:
        """Print machine, table, ratios and notes."""
        machine = self._machine
        where = f"{machine['gpu']}, " if machine["gpu"] else ""
        print(f"{where}{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}")
        print("\n".join(format_table(self.rows)))
        if self.ratios:
            print("\nratios (above 1 is better; from the fastest sample of each)")
            width = max(map(len, self.ratios))
            for name, value in self.ratios.items():
                print(f"  {name:<{width}}  {value:8.2f}")
        for text in self.notes:
            print(f"note: {text}")


def format_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table with a column for every key, numbers to the right; nothing for no rows."""
    if not rows:
        return []
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys, *([_cell(row.get(key)) for key in keys] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    right = [all(isinstance(row.get(key), int | float | None) for row in rows) for key in keys]
    return [
        "  ".join(
            cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(line, widths, right, strict=True)
        )
        for line in cells
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else str(round(value))
        if isinstance(value, float)
        else str(value)
    )
