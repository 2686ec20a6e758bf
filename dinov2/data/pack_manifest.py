"""`manifest.json` of a packed data set: what was packed, and each complete shard with its checksum."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dinov2.data.errors import DatasetError
from dinov2.utils.files import write_text

MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class PackPlan:
    """What decides the content of every shard; a folder is only continued with the same plan."""

    dataset: str  # the data set's string; the same tiles may be spelt otherwise
    fingerprint: str  # SHA-256 of the paths of up to 1,000 tiles
    tiles: int
    format: str  # tar or h5
    shard_size: int  # tiles
    encoding: str  # original, jpeg or pixels
    quality: int  # of jpeg, else 0

    def differences(self, other: "PackPlan") -> str:
        """What two plans differ in but for spelling, with both values; empty where they are the same."""
        mine, its = asdict(replace(self, dataset="")), asdict(replace(other, dataset=""))
        return ", ".join(f"{key} {mine[key]!r} and {its[key]!r}" for key in mine if mine[key] != its[key])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.tiles // self.shard_size)

    def shard_name(self, number: int) -> str:
        """File name of a shard."""
        return f"shard-{number:06d}.{self.format}"

    def tiles_of(self, number: int) -> range:
        """Indices of a shard's tiles."""
        return range(number * self.shard_size, min((number + 1) * self.shard_size, self.tiles))


@dataclass(frozen=True)
class ShardRecord:
    """A complete shard."""

    sha256: str
    bytes: int
    tiles: int
    bad: list[tuple[str, str]]  # path and reason of the tiles left out


@dataclass
class Manifest:
    """A plan and the shards that are complete, by file name."""

    plan: PackPlan
    shards: dict[str, ShardRecord] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return len(self.shards) == self.plan.shards

    def save(self, folder: Path) -> None:
        """Write the manifest, whole or not at all."""
        content = {"version": VERSION, "complete": self.complete, "plan": asdict(self.plan)}
        shards = {name: asdict(record) for name, record in sorted(self.shards.items())}
        write_text(folder / MANIFEST, json.dumps({**content, "shards": shards}, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Manifest | None":
        """Read the manifest of a folder, None where there is none; raises `DatasetError` for a damaged one."""
        path = folder / MANIFEST
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if content["version"] != VERSION:
                raise DatasetError(f"{path} is of version {content['version']}, this program writes version {VERSION}")
            records = {
                name: ShardRecord(**{**record, "bad": [(path, reason) for path, reason in record["bad"]]})
                for name, record in content["shards"].items()
            }
            return cls(PackPlan(**content["plan"]), records)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{path} is no manifest of packed data: {error!r}; remove it to pack anew") from error

    def faults(self, folder: Path) -> list[str]:
        """Check every shard's size and SHA-256, with a progress bar, and return what is wrong, a line each."""
        total = sum(record.bytes for record in self.shards.values())
        bar = tqdm(total=total, unit="B", unit_scale=True, desc="verifying", disable=None)
        found = [] if self.complete else [f"{len(self.shards)} of {self.plan.shards} shards are packed; run pack again"]
        for name, record in sorted(self.shards.items()):
            path = folder / name
            if not path.is_file():
                found.append(f"{name}: missing")
            elif path.stat().st_size != record.bytes:
                found.append(f"{name}: {path.stat().st_size} bytes, packed were {record.bytes}")
            elif file_sha256(path) != record.sha256:
                found.append(f"{name}: its SHA-256 differs, its content has changed")
            bar.update(record.bytes)
        bar.close()
        return found


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
