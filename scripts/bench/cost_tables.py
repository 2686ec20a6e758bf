"""The tables of `cost_model.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

from cost_messages import Network, loss_messages
from cost_predict import STRATEGIES, Machine, Model, memory, one_gpu, predict
from cost_units import total_values

Row = dict[str, Any]
GIB = 2**30


def efficiency_rows(name: str, model: Model, gpus: Sequence[int], machine: Machine, network: Network) -> list[Row]:
    """Return a row for every strategy and number of GPUs on one network."""
    rows = []
    alone = one_gpu(model, machine)
    for count in gpus:
        for strategy in STRATEGIES:
            step = predict(model, strategy, count // machine.per_node, machine, network)
            best, worst = step.seconds(overlap=True), step.seconds(overlap=False)
            rows.append(
                {
                    "model": name,
                    "node_gbit": network.node_gbit,
                    "gpus": count,
                    "strategy": strategy,
                    "sent_gb": step.sent / 1e9,
                    "compute_ms": 1e3 * sum(step.compute.values()),
                    "messages_ms": 1e3 * sum(step.messages.values()),
                    "step_ms_from": 1e3 * best,
                    "step_ms_to": 1e3 * worst,
                    "efficiency_from": alone / worst,
                    "efficiency_to": alone / best,
                }
            )
    return rows


def memory_rows(name: str, model: Model, gpus: Sequence[int], machine: Machine) -> list[Row]:
    """Return a row for every strategy and number of GPUs: GiB a GPU, activations left out."""
    return [
        {"model": name, "gpus": count, "strategy": strategy}
        | {
            f"{key}_gib": size / GIB
            for key, size in memory(model, strategy, count // machine.per_node, machine.per_node).items()
        }
        for count in gpus
        for strategy in STRATEGIES
    ]


def markdown(rows: Sequence[Row], held: Sequence[Row], models: Mapping[str, Model], machine: Machine) -> str:
    """Return the tables of docs/scaling.md."""
    parts = ["### The models", "", *_models(models, machine)]
    parts += ["", "### Memory of parameters, gradients and optimiser, GiB a GPU: stored + gathered at most", ""]
    parts += _pivot(held, "model", lambda row: f"{row['stored_gib']:.2f} + {row['gathered_gib']:.2f}")
    parts += [
        "",
        "### All of the student's units gathered once, MB",
        "",
        *_gathers(models, [row["gpus"] for row in held]),
    ]
    first = rows[0]["node_gbit"]
    parts += ["", "### Sent by each GPU in a step, GB", ""]
    parts += _pivot([row for row in rows if row["node_gbit"] == first], "model", lambda row: f"{row['sent_gb']:.1f}")
    for gbit in dict.fromkeys(row["node_gbit"] for row in rows):
        parts += ["", f"### Predicted efficiency, % (no overlap to perfect overlap), {gbit:g} Gb/s a node", ""]
        parts += _pivot(
            [row for row in rows if row["node_gbit"] == gbit],
            "model",
            lambda row: f"{100 * row['efficiency_from']:.0f} to {100 * row['efficiency_to']:.0f}",
        )
    return "\n".join(parts)


def _models(models: Mapping[str, Model], machine: Machine) -> list[str]:
    lines = [
        "| model | parameters: backbone | heads | images a GPU | TFLOP an image | compute, ms | losses, MB at 8 GPUs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, model in models.items():
        heads = [unit for unit in model.student if "head" in unit.name]
        total = sum(vars(model.operations).values())
        losses = sum(m.sent for m in loss_messages(model.config, model.images, model.width, 1, machine.per_node))
        backbone = total_values(model.student) - total_values(heads)
        lines.append(
            f"| {name} | {backbone / 1e6:.1f} M | {total_values(heads) / 1e6:.1f} M | {model.images} "
            f"| {total / 1e12:.3f} | {1e3 * one_gpu(model, machine):.0f} | {losses / 1e6:.1f} |"
        )
    return lines


def _gathers(models: Mapping[str, Model], gpus: Sequence[int]) -> list[str]:
    counts = [1, *dict.fromkeys(gpus)]
    head = "without padding | " + " | ".join(f"{count} shards" for count in counts[1:])
    lines = [f"| model | {head} |", "|---|" + "---|" * len(counts)]
    for name, model in models.items():
        sizes = [sum(unit.gathered_bytes * unit.padded_values(count) for unit in model.student) for count in counts]
        lines.append(f"| {name} | " + " | ".join(f"{size / 1e6:,.0f}" for size in sizes) + " |")
    return lines


def _pivot(rows: Sequence[Row], by: str, cell: Any) -> list[str]:
    """Return a table with a row for every model and strategy, and a column for every number of GPUs."""
    counts = sorted({row["gpus"] for row in rows})
    lines = ["| model | strategy | " + " | ".join(map(str, counts)) + " |", "|---|---|" + "---|" * len(counts)]
    for model, strategy in dict.fromkeys((row[by], row["strategy"]) for row in rows):
        cells = [cell(row) for row in rows if (row[by], row["strategy"]) == (model, strategy)]
        lines.append(f"| {model} | {strategy} | " + " | ".join(cells) + " |")
    return lines
