"""Reading checkpoints of torch.distributed.checkpoint from others' hands: nothing in them is executed.

`.metadata`, a checkpoint's table of contents, is a pickle, and a pickle may call anything. What training writes needs a
dozen classes; whatever else one names is refused. Among them are tensors' entries, but none of pickled objects, which
the loader would unpickle too.
"""

import pickle
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    (_METADATA, "StorageMeta"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
}


class TensorReader(FileSystemReader):
    """Reads a checkpoint folder of tensors, for `torch.distributed.checkpoint.load`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the table of contents.

        Raises:
            pickle.UnpicklingError: it is damaged, or names something that no checkpoint of tensors needs.
            Exception: of other kinds, when it is damaged.
        """
        path = Path(self.path) / ".metadata"
        with open(path, "rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"{path} holds a {type(metadata).__name__}, no table of contents")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Finds the classes of a table of tensors, and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        # Where it was written. Pythons differ in the module of these, and systems in which they can make.
        if module.partition(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath"):
            return PurePath
        raise pickle.UnpicklingError(
            f"its .metadata names {module}.{name}, which is no part of a table of tensors: nothing of it was executed; "
            "do not use a checkpoint of unknown origin"
        )
