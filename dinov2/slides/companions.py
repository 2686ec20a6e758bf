"""Files beside a slide that hold parts of its image: formats whose slide file is only a table of contents."""

from pathlib import Path


def companions(path: Path) -> list[Path]:
    """Return the further files of a slide, sorted: of MRXS the folder of its name, of VMS and VMU those that it lists.

    A VMS or VMU file is a text of lines `Key=value`; the values of some keys (ImageFile, MapFile, ...) are files beside
    it (https://openslide.org/formats/hamamatsu).
    """
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return sorted(file for file in path.with_suffix("").rglob("*") if file.is_file())
    if suffix not in (".vms", ".vmu"):
        return []
    values = {line.partition("=")[2].strip() for line in path.read_text(encoding="latin-1").splitlines()}
    named = {path.with_name(value) for value in values if value and "/" not in value and "\\" not in value}
    return sorted(file for file in named - {path} if file.is_file())
