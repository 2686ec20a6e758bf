"""Predictions of `cost_model.py`: seconds, bytes sent and memory of a step, for a model, a strategy and a machine."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cost_messages import Message, Network, loss_messages, parameter_messages, scalar_messages
from cost_units import BF16, FP32, Operations, Unit, model_units, operations, total_values

from dinov2.utils.config import config_from_dict
from dinov2.utils.errors import UserError
from dinov2.utils.schema import SSLConfig

PATCH14 = {"crops": {"global_crops_size": 224, "local_crops_size": 98}}
MODELS: dict[str, tuple[int, Mapping[str, Mapping[str, Any]]]] = {  # images a GPU, and what the configuration changes
    "mvhybrid_small": (64, {}),
    "mvhybrid_base": (64, {"student": {"size": "base"}}),
    "vit_large": (32, {"student": {"arch": "vit_large", "patch_size": 14}, **PATCH14}),
    "vit_giant2": (12, {"student": {"arch": "vit_giant2", "patch_size": 14}, **PATCH14}),
}
STRATEGIES = {"ddp": ("ddp", False), "fsdp": ("fsdp", True), "fsdp, kept": ("fsdp", False), "hsdp": ("hsdp", True)}
# Bytes moved for a parameter by AdamW (reads p, g, m, v; writes p, m, v) and the moving average (reads t, s; writes t).
UPDATE_BYTES = (7 + 3) * FP32


@dataclass(frozen=True)
class Machine:
    """Assumed GPUs.

    Attributes:
        per_node: GPUs of a node.
        tflops: dense bf16 TFLOP/s of a GPU.
        fraction: of these, what training reaches.
        memory_gbyte: GB/s of a GPU's memory.
    """

    per_node: int = 8
    tflops: float = 989.0
    fraction: float = 0.4
    memory_gbyte: float = 3350.0


@dataclass(frozen=True)
class Model:
    """What the predictions need of a model."""

    config: SSLConfig
    images: int
    width: int
    student: Sequence[Unit]
    teacher: Sequence[Unit]
    operations: Operations


@dataclass(frozen=True)
class Step:
    """A predicted step: seconds of each phase's computation and messages, and the bytes that each GPU sends."""

    compute: Mapping[str, float]
    messages: Mapping[str, float]
    sent: float

    def seconds(self, overlap: bool) -> float:
        """Return the time of the step, with perfect overlap within each phase or none."""
        join = max if overlap else lambda pair: sum(pair)
        return sum(join((time, self.messages.get(phase, 0.0))) for phase, time in self.compute.items())


def make_model(name: str) -> Model:
    """Return one of `MODELS`, with heads of 65,536 prototypes.

    Raises:
        UserError: the name is unknown.
    """
    if name not in MODELS:
        raise UserError(f"--models {name}: unknown; choose from {', '.join(MODELS)}")
    images, sections = MODELS[name]
    config = config_from_dict({key: dict(section) for key, section in sections.items()})
    student, teacher = model_units(config)
    width = next(unit for unit in student if unit.root).shapes[0][-1]
    return Model(config, images, width, student, teacher, operations(config))


def predict(model: Model, strategy: str, nodes: int, machine: Machine, network: Network) -> Step:
    """Predict a step of one of `STRATEGIES` on so many full nodes."""
    name, reshard = STRATEGIES[strategy]
    messages = [
        *parameter_messages(model.student, model.teacher, name, nodes, machine.per_node, reshard),
        *loss_messages(model.config, model.images, model.width, nodes, machine.per_node),
        *scalar_messages(nodes, machine.per_node),
    ]
    shards = {"ddp": 1, "hsdp": machine.per_node}.get(name, nodes * machine.per_node)
    return Step(_compute(model, machine, shards), _by_phase(messages, network), sum(m.sent for m in messages))


def one_gpu(model: Model, machine: Machine) -> float:
    """Predict the seconds of a step on one GPU."""
    return sum(_compute(model, machine, 1).values())


def memory(model: Model, strategy: str, nodes: int, per_node: int) -> dict[str, float]:
    """Return the bytes that a GPU holds for parameters: `stored` all the time, `gathered` at most besides.

    Stored are float32 parameters of student and teacher, gradients, AdamW's two moments and, with ddp, its buckets of
    gradients. Gathered are the two largest units, the one in use and the one fetched ahead, or all of the student's
    where they are kept, and with ddp autocast's copies of the student's weights. Activations come on top; they are the
    same for all strategies.
    """
    name, reshard = STRATEGIES[strategy]
    if name == "ddp":
        values = total_values(model.student)
        return {"stored": float(FP32 * (5 * values + total_values(model.teacher))), "gathered": float(BF16 * values)}
    shards = per_node if name == "hsdp" else nodes * per_node
    student, teacher = (
        sum(unit.padded_values(shards) for unit in units) / shards for units in (model.student, model.teacher)
    )
    sizes = sorted(unit.gathered_bytes * unit.padded_values(shards) for unit in model.student)
    gathered = sum(sizes[-2:]) if reshard else sum(sizes)
    return {"stored": FP32 * (4 * student + teacher), "gathered": float(gathered)}


def _compute(model: Model, machine: Machine, shards: int) -> dict[str, float]:
    rate = 1e12 * machine.tflops * machine.fraction
    times = {phase: model.images * count / rate for phase, count in asdict(model.operations).items()}
    update = UPDATE_BYTES * total_values(model.student) / shards / (1e9 * machine.memory_gbyte)
    return {**times, "update": update, "blocking": 0.0}


def _by_phase(messages: Sequence[Message], network: Network) -> dict[str, float]:
    times: dict[str, float] = {}
    for message in messages:
        times[message.phase] = times.get(message.phase, 0.0) + network.seconds(message)
    return times
