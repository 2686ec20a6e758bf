"""Measuring one operator: contenders are checked against float64, timed in turn, and compared."""

import argparse
from collections.abc import Callable, Mapping

import torch
from check import check
from common import Options
from operators import Contender, Operator, Shape, Workload
from peak_memory import MIB, extra_bytes_cpu, extra_bytes_cuda
from report import Report
from timing import Timing, interleave, shown

from dinov2.utils.errors import UserError

MODES = ("forward", "forward+backward")


def add_shape_options(parser: argparse.ArgumentParser, batch: int, lengths: list[int], scaling: list[int]) -> None:
    """Add `--batch`, `--lengths`, `--scaling`, `--dim` and `--without` with these defaults."""
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[batch], help=f"one for all lengths, or one for each; default: {batch}"
    )
    parser.add_argument("--lengths", type=int, nargs="*", default=lengths, help=f"tokens; default: {lengths}")
    parser.add_argument("--scaling", type=int, nargs="*", default=scaling, help=f"for ours alone; default: {scaling}")
    parser.add_argument("--dim", type=int, default=384, help="width; default: 384")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="rows to leave out, by name")


def measure_lengths(
    operator: Operator, args: argparse.Namespace, shape: Mapping[str, int], options: Options, report: Report
) -> None:
    """Measure all contenders on `--lengths`, and ours alone on `--scaling` with the ratio of its times per token.

    Raises:
        UserError: the numbers of batches and lengths differ.
        WrongResultError: a contender's output or gradient is wrong.
    """
    batches = args.batch * len(args.lengths) if len(args.batch) == 1 else args.batch
    if len(batches) != len(args.lengths):
        raise UserError(
            f"--batch gives {len(batches)} numbers for {len(args.lengths)} lengths; give one, or one for each"
        )
    for batch, length in zip(batches, args.lengths, strict=True):
        if options.late:
            report.note(f"out of time: {length} tokens were not measured")
            continue
        measure(operator, {"batch": batch, "length": length, **shape}, options, report, without=args.without)
    per_token: dict[str, dict[int, float]] = {mode: {} for mode in MODES}
    for length in args.scaling:
        if options.late:
            report.note(f"out of time: scaling was not measured at {length} tokens")
            continue
        whole = {"batch": args.batch[0], "length": length, **shape}
        for mode, timing in measure(operator, whole, options, report, only_ours=True).items():
            per_token[mode][length] = timing.minimum / length
    for mode, times in per_token.items():
        if len(times) > 1:
            first, last = min(times), max(times)
            report.ratios[f"{mode}: time per token at {first} over that at {last}"] = times[first] / times[last]
    report.save()


def measure(
    operator: Operator,
    shape: Shape,
    options: Options,
    report: Report,
    without: list[str] | None = None,
    only_ours: bool = False,
) -> dict[str, Timing]:
    """Check and measure contenders on one shape, add rows and ratios to the report; return the timings of ours by mode.

    Raises:
        WrongResultError: a contender's output or gradient is wrong.
    """
    device, dtype = options.device, options.dtype
    work = operator.make(shape, device, dtype)
    ours = operator.ours(shape, device, dtype)
    everyone = operator.contenders(shape, device, dtype, report.note)
    for name in without or []:
        if name not in {contender.name for contender in everyone}:
            report.note(f"--without {name!r}: there is no such row")
    contenders = [contender for contender in everyone if contender.name not in (without or [])]
    contenders = [c for c in contenders if c.name == ours or not only_ours]
    where = f"{shape['batch']} x {shape['length']} tokens"
    contenders = [c for c in shown(contenders, f"checking {where}") if _checked(c, operator, work, dtype, report)]
    result: dict[str, Timing] = {}
    for mode in MODES:
        calls = {c.name: c.bind(work, mode) for c in contenders}
        timings = interleave(calls, device, options.repeats, options.seconds, f"{where}, {mode}")
        for contender in shown(contenders, f"{where}, {mode}: memory") if options.memory else contenders:
            name = contender.name
            row = {"name": name, "mode": mode, **shape, **timings[name].columns}
            if options.memory:
                extra = _extra_bytes(operator, shape, name, mode, calls[name], options)
                row |= {"extra_mib": extra / MIB, "io_mib": work.bytes / MIB, "extra_over_io": extra / work.bytes}
            report.rows.append(row)
            if contender.peer and ours in timings:
                ratio = f"{mode}, {where}: {ours} over {name}"
                report.ratios[ratio] = timings[name].minimum / timings[ours].minimum
        if operator.layer is not None and not only_ours:
            report.rows.append(_layer_row(operator.layer(shape), shape, mode, options))
        if ours in timings:
            result[mode] = timings[ours]
        report.save()
    return result


def _checked(contender: Contender, operator: Operator, work: Workload, dtype: torch.dtype, report: Report) -> bool:
    """Check a contender; return whether the GPU's memory was enough for it."""
    try:
        check(contender, operator.exact, work, dtype)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        report.note(f"{contender.name}, {tuple(work.grad.shape)}: out of GPU memory")
        return False
    return True


def _extra_bytes(
    operator: Operator, shape: Shape, name: str, mode: str, call: Callable[[], object], options: Options
) -> int:
    if options.device.type == "cuda":
        return extra_bytes_cuda(call)
    case = {**shape, "contender": name, "mode": mode, "bf16": options.dtype == torch.bfloat16}
    return extra_bytes_cpu(operator.module, case, options.threads)


def _layer_row(layer: torch.nn.Module, shape: Shape, mode: str, options: Options) -> dict[str, object]:
    """Time the whole layer that the operator is part of, under autocast where the activations are not float32."""
    device, dtype = options.device, options.dtype
    layer.to(device)
    tokens = torch.randn(shape["batch"], shape["length"], shape["dim"], device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(tokens)
    wanted = (tokens, *layer.parameters())

    def call() -> object:
        with (
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
            torch.set_grad_enabled(mode != MODES[0]),
        ):
            out = layer(tokens)
        return out if mode == MODES[0] else torch.autograd.grad(out, wanted, grad)

    name = f"{type(layer).__name__} (whole layer)"
    timing = interleave({name: call}, device, options.repeats, options.seconds)[name]
    return {"name": name, "mode": mode, **shape, **timing.columns}
