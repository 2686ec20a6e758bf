"""Opening the data set in all processes of a run: a large folder is listed once, and all read the same tiles."""

from dinov2.data.datasets import TileDataset, make_dataset
from dinov2.data.datasets.damage import refuse_damage
from dinov2.data.errors import DatasetError
from dinov2.data.fingerprint import fingerprint
from dinov2.distributed.env import gather_objects, rank
from dinov2.utils.errors import UserError


def open_together(path: str, max_bad_fraction: float) -> TileDataset:
    """Open a data set on rank 0 and then, with the listing that rank 0 has kept, on the others.

    They wait for rank 0 for `parallel.timeout_minutes` at most. Where one fails, all of them do.

    Args:
        path: `train.dataset_path`.
        max_bad_fraction: `data.max_bad_fraction`, see `refuse_damage`.

    Raises:
        UserError: what the data set objects to, on this process or another.
        DatasetError: a process has other tiles than rank 0.
    """
    for turn in (rank() == 0, rank() > 0):
        failure: UserError | OSError | None = None
        if turn:
            try:
                dataset = make_dataset(path)
                refuse_damage(dataset, max_bad_fraction)
            except (UserError, OSError) as error:
                failure = error
        for number, said in enumerate(gather_objects(str(failure or ""))):
            if said:
                raise failure or DatasetError(f"rank {number} cannot open {path!r}: {said}")
    seen = gather_objects((len(dataset), fingerprint(dataset)))
    for number, (count, digest) in enumerate(seen):
        if (count, digest) != seen[0]:
            raise DatasetError(
                f"{path!r}: rank {number} finds {count:,} tiles (fingerprint {digest[:12]}), rank 0 {seen[0][0]:,} "
                f"({seen[0][1][:12]}): all processes must find the same files under the same names. Compare what is "
                "mounted on their nodes; a listing that is out of date is made anew with refresh=always"
            )
    return dataset
