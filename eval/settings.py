"""What decides a score besides embeddings and data: the protocol and the head, as one checked record."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from eval.errors import EvalError, nearest

ProtocolName = Literal["hest-benchmark", "hest-extended"]
HeadName = Literal["ridge", "ridge-tuned", "pls", "knn"]
Solver = Literal["exact", "lsqr"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)
HEADS: tuple[HeadName, ...] = get_args(HeadName)
SOLVERS: tuple[Solver, ...] = get_args(Solver)

USED: dict[HeadName, tuple[str, ...]] = {  # what applies to which head
    "ridge": ("pca", "alpha", "solver", "intercept"),
    "ridge-tuned": ("pca", "intercept"),
    "pls": ("components",),
    "knn": ("pca", "neighbors"),
}


@dataclass(frozen=True)
class FitSettings:
    """The head; the defaults are the published benchmark's.

    Attributes:
        protocol: `hest-benchmark` or `hest-extended`; recorded, it decides nothing here.
        head: `ridge`; `ridge-tuned`, its penalty chosen inside the training set; `pls`; `knn`.
        pca: most principal components before ridge and knn, None for all directions.
        alpha: ridge penalty, None for the published 100 / (features x genes).
        solver: `exact`, or `lsqr`, scikit-learn's at its default tolerance, as the benchmark calls it.
        intercept: whether a ridge adds the training mean to its predictions; pls and knn always have it.
        components: of pls.
        neighbors: of knn.
    """

    protocol: ProtocolName = "hest-benchmark"
    head: HeadName = "ridge"
    pca: int | None = 256
    alpha: float | None = None
    solver: Solver = "exact"
    intercept: bool = False
    components: int = 10
    neighbors: int = 20

    def __post_init__(self) -> None:
        for name, choices in (("protocol", PROTOCOLS), ("head", HEADS), ("solver", SOLVERS)):
            if getattr(self, name) not in choices:
                value = getattr(self, name)
                raise EvalError(f"{name} {value!r}: it must be one of {', '.join(choices)}. {nearest(value, choices)}")
        if self.pca is not None and self.pca < 1:
            raise EvalError(f"pca {self.pca}: the number of components must be 1 or more (or use no PCA).")
        if self.alpha is not None and not self.alpha > 0:
            raise EvalError(f"alpha {self.alpha}: the ridge penalty must be above 0.")
        for name in ("components", "neighbors"):
            if getattr(self, name) < 1:
                raise EvalError(f"{name} {getattr(self, name)}: it must be 1 or more.")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("protocol", "head", *USED[self.head]) and value != field.default:
                heads = ", ".join(head for head, names in USED.items() if field.name in names)
                raise EvalError(
                    f"{field.name} {value!r}: the head {self.head!r} has no use for it. Leave it out, or choose the "
                    f"head it belongs to ({heads})."
                )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: what applies to the chosen head, and the target that all share."""
        values = asdict(self)
        return {k: values[k] for k in ("protocol", "head", *USED[self.head])} | {"target": "log1p(raw counts)"}
