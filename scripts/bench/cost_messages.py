"""The collectives of a training step: which, how many bytes, among whom, and how long they take on a network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cost_units import FP32, Unit, total_values

from dinov2.train.ssl_meta_arch import N_GLOBAL_CROPS
from dinov2.utils.schema import SSLConfig

Kind = Literal["all-gather", "reduce-scatter", "all-reduce"]
Phase = Literal["teacher", "forward", "backward", "blocking"]
BUCKETS = (2**20, 25 * 2**20)  # most bytes of DDP's first bucket of gradients, and of the others
SINKHORN_ITERATIONS = 3


@dataclass(frozen=True)
class Group:
    """So many processes: `nodes` nodes with `per_node` each."""

    nodes: int
    per_node: int

    @property
    def size(self) -> int:
        """How many processes."""
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Message:
    """`count` equal collectives; `bytes` is the whole gathered, scattered or reduced tensor of one of them.

    `side_by_side` groups on a node do the same at the same time, and share what leads out of it. Messages of the phase
    `blocking` are waited for; the others can travel while their phase computes.
    """

    phase: Phase
    kind: Kind
    bytes: int
    group: Group
    count: int = 1
    side_by_side: int = 1

    @property
    def sent(self) -> float:
        """Bytes that each process sends in all of them, by a ring."""
        factor = 2 if self.kind == "all-reduce" else 1
        return self.count * factor * self.bytes * (self.group.size - 1) / self.group.size


@dataclass(frozen=True)
class Network:
    """Assumed rates and delays.

    Attributes:
        node_gbit: Gb/s into and out of a node, all its adapters together.
        nvlink_gbyte: GB/s into and out of a GPU within its node.
        usable: the share of both that collectives reach.
        hop_us: delay of a step between GPUs of a node.
        node_hop_us: delay of a step between nodes.
        start_us: delay of any collective.
    """

    node_gbit: float = 400.0
    nvlink_gbyte: float = 450.0
    usable: float = 0.8
    hop_us: float = 2.0
    node_hop_us: float = 5.0
    start_us: float = 10.0

    def seconds(self, message: Message) -> float:
        """Return the time of a message: rings gather and scatter, trees reduce to all (as NCCL does by default)."""
        group, size = message.group, message.group.size
        if size == 1:
            return 0.0
        ring = (group.nodes - 1) * self.node_hop_us + (size - group.nodes) * self.hop_us
        tree = 2 * ((group.per_node - 1) * self.hop_us + math.log2(group.nodes) * self.node_hop_us)
        delay = 1e-6 * (self.start_us + (tree if message.kind == "all-reduce" else ring))
        factor = 2 if message.kind == "all-reduce" else 1
        inside = outside = 0.0
        if group.per_node > 1:
            inside = factor * message.bytes * (size - 1) / size / (1e9 * self.nvlink_gbyte)
        if group.nodes > 1:
            # A ring crosses a node's border with everything that is not its own; a tree with everything, up and down.
            share = (size - 1) / size if message.kind != "all-reduce" else (group.nodes - 1) / group.nodes
            outside = factor * message.side_by_side * message.bytes * share / (1e9 * self.node_gbit / 8)
        return message.count * (delay + max(inside, outside) / self.usable)


def parameter_messages(
    student: Sequence[Unit], teacher: Sequence[Unit], strategy: str, nodes: int, per_node: int, reshard: bool
) -> list[Message]:
    """Return the collectives on parameters and gradients in one step without accumulation.

    Args:
        student: its units.
        teacher: its units; with `ddp` every process has the whole of it, and nothing is sent.
        strategy: ddp, fsdp or hsdp.
        nodes: how many.
        per_node: processes on each.
        reshard: `parallel.reshard_after_forward`.
    """
    world = Group(nodes, per_node)
    if strategy == "ddp":
        total = FP32 * total_values(student)
        rest = math.ceil(max(total - BUCKETS[0], 0) / BUCKETS[1])
        return [Message("backward", "all-reduce", total // (1 + rest), world, 1 + rest)]
    shards = world if strategy == "fsdp" else Group(1, per_node)
    copies = Group(nodes, 1)
    messages = []
    for unit in teacher:
        size = unit.gathered_bytes * unit.padded_values(shards.size)
        messages.append(Message("teacher", "all-gather", size, shards))
    for unit in student:
        values = unit.padded_values(shards.size)
        size = unit.gathered_bytes * values
        freed = reshard and not unit.root
        forward, backward = (unit.calls, unit.calls) if freed else (1, unit.calls - 1)
        messages.append(Message("forward", "all-gather", size, shards, forward))
        # A unit is freed after the backward of each call, whatever the policy.
        messages += [Message("backward", "all-gather", size, shards, backward)] * bool(backward)
        messages.append(Message("backward", "reduce-scatter", FP32 * values, shards))
        if strategy == "hsdp":
            messages.append(Message("backward", "all-reduce", FP32 * values // per_node, copies, side_by_side=per_node))
    return messages


def loss_messages(config: SSLConfig, images: int, width: int, nodes: int, per_node: int) -> list[Message]:
    """Return the collectives of Sinkhorn-Knopp, or of the centres, and of KoLeo, all of them waited for.

    Args:
        config: the run's.
        images: of one process in a step.
        width: of the CLS embedding.
        nodes: how many.
        per_node: processes on each.
    """
    world = Group(nodes, per_node)
    messages = []
    scores = [config.dino.head_n_prototypes]
    if config.ibot.loss_weight:
        scores.append((config.ibot if config.ibot.separate_head else config.dino).head_n_prototypes)
    for prototypes in scores:
        if config.train.centering == "sinkhorn_knopp":
            messages.append(Message("blocking", "all-reduce", FP32, world, 2))  # the largest score, the sample count
            messages.append(Message("blocking", "all-reduce", FP32 * prototypes, world, SINKHORN_ITERATIONS))
        else:
            messages.append(Message("blocking", "all-reduce", FP32, world))
            messages.append(Message("blocking", "all-reduce", FP32 * prototypes, world))
    if config.dino.koleo_loss_weight and config.dino.koleo_loss_distributed:
        everyone = FP32 * images * width * world.size
        messages.append(Message("blocking", "all-gather", everyone, world, N_GLOBAL_CROPS))
        messages.append(Message("blocking", "reduce-scatter", everyone, world, N_GLOBAL_CROPS))
    return messages


def scalar_messages(nodes: int, per_node: int) -> list[Message]:
    """Return the numbers that all processes agree on in a step: three gradient norms, losses, and whether to stop."""
    return [Message("blocking", "all-reduce", FP32, Group(nodes, per_node), 5)]
