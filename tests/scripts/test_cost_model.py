"""The cost model against the code that trains: collectives of a real step, operations, memory, and its page."""

import contextlib
import importlib
import io
import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dinov2.data.collate import MultiCropBatch
from dinov2.distributed.parallelize import parallelize
from dinov2.models import build_backbone, get_spec
from dinov2.models.flops import count_flops
from dinov2.train.optim import build_optimizer
from dinov2.train.ssl_meta_arch import SSLMetaArch

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("common", "report", "cost_units", "cost_messages", "cost_predict", "cost_tables", "cost_model")
IMAGES = 4
KINDS = {
    "c10d::_allgather_base_": "all-gather",
    "c10d::allgather_": "all-gather",
    "c10d::_reduce_scatter_base_": "reduce-scatter",
    "c10d::alltoall_": "reduce-scatter",  # in which gloo lacks one, for the gradients of KoLeo's all-gather
    "c10d::allreduce_": "all-reduce",
}


@pytest.fixture(scope="module")
def cost():
    """The modules of the cost model, imported as `python scripts/bench/cost_model.py` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts" / "bench"))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def eight_processes():
    """A process group of eight, of which only this one exists: nothing is sent."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=8)
    yield
    dist.destroy_process_group()


class Collectives(TorchDispatchMode):
    """Counts collectives and their bytes by kind."""

    def __init__(self):
        super().__init__()
        self.count, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            kind = KINDS[func._schema.name]
            self.count[kind] += 1
            self.bytes[kind] += max(map(size_of, args))
        return func(*args, **(kwargs or {}))


def size_of(argument):
    if isinstance(argument, torch.Tensor):
        return argument.numel() * argument.element_size()
    return sum(map(size_of, argument)) if isinstance(argument, list | tuple) else 0


def batch_for(config):
    """Return four images, a quarter of whose patches are masked."""
    crops = config.crops
    patches = (crops.global_crops_size // config.student.patch_size) ** 2
    masks = (torch.arange(patches) % 4 == 0).expand(2 * IMAGES, -1)
    indices = masks.flatten().nonzero().flatten()
    empty = {"step": 0, "positions": [], "paths": [], "bad": []}
    return MultiCropBatch(
        global_crops=torch.randn(2 * IMAGES, 3, crops.global_crops_size, crops.global_crops_size),
        local_crops=torch.randn(2 * IMAGES, 3, crops.local_crops_size, crops.local_crops_size),
        masks=masks,
        mask_indices=indices,
        mask_weights=torch.full((len(indices),), 1 / patches),
        **empty,
    )


@pytest.mark.parametrize(
    ("strategy", "reshard", "arch", "centering"),
    [
        ("fsdp", True, "mvhybrid", "sinkhorn_knopp"),
        ("fsdp", False, "hydra_hybrid", "sinkhorn_knopp"),
        ("hsdp", True, "mvhybrid", "centering"),
    ],
)
def test_a_real_steps_collectives(strategy, reshard, arch, centering, cost, small, eight_processes):
    student = {"arch": arch, "embed_dim": 32, "num_heads": 2, "depth": 2}
    parallel = {"strategy": strategy, "reshard_after_forward": reshard}
    config = small(student=student, parallel=parallel, train={"centering": centering})
    model = SSLMetaArch(config).train()
    objective = parallelize(model, config.parallel, torch.device("cpu"), torch.bfloat16, 4)
    with warnings.catch_warnings(), Collectives() as seen, torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch about its own calls
        objective(batch_for(config), 0.05)["total_loss"].backward()

    student_units, teacher_units = cost.cost_units.model_units(config)
    expected = [
        *cost.cost_messages.parameter_messages(student_units, teacher_units, strategy, 2, 4, reshard),
        *cost.cost_messages.loss_messages(config, IMAGES, 32, 2, 4),
    ]
    count, size = Counter(), Counter()
    for message in expected:
        count[message.kind] += message.count
        size[message.kind] += message.count * message.bytes
    hint = "if crops pass through the blocks in another way, BLOCK_CALLS and FLOAT32_CALLS have changed"
    assert seen.count == count, hint
    assert seen.bytes == size, hint


def test_memory_is_that_of_the_tensors(cost, small):
    config = small()
    model = SSLMetaArch(config)
    optimizer = build_optimizer(model.student, config.optim)
    for parameter in model.student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    gradients = [parameter.grad for parameter in model.student.parameters()]
    units = cost.cost_units.model_units(config)
    predicted = cost.cost_predict.Model(config, IMAGES, 32, *units, cost.cost_units.Operations(0, 0, 0))
    stored = size_of([*model.parameters(), *gradients, *moments])
    # DDP keeps gradients in buckets besides; FSDP over one process stores what one process has.
    assert cost.cost_predict.memory(predicted, "ddp", 1, 1)["stored"] == stored + size_of(gradients)
    assert cost.cost_predict.memory(predicted, "fsdp", 1, 1)["stored"] == stored


@pytest.mark.parametrize("name", ["mvhybrid", "vit12"])
def test_operations_continue_in_depth_as_counted(name, cost):
    spec = get_spec(name, size="tiny", depth=6, img_size=64)
    whole = count_flops(build_backbone(name, size="tiny", depth=6, img_size=64), torch.zeros(1, 3, 64, 64))
    assert cost.cost_units.backbone_macs(spec, 64) == whole


@given(
    shapes=st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4),
    shards=st.integers(1, 64),
)
def test_padding_fills_an_axis_up_where_none_divides(cost, shapes, shards):
    unit = cost.cost_units.Unit("any", tuple(shapes), True, 2)
    pieces = []
    for shape in shapes:
        axis = next((i for i, size in enumerate(shape) if size % shards == 0), 0)
        pieces.append(torch.empty(shape, device="meta").chunk(shards, axis)[0].numel())
    assert unit.padded_values(shards) == shards * sum(pieces)
    assert unit.padded_values(1) == unit.values <= unit.padded_values(shards)


def test_times_of_collectives(cost):
    group, message = cost.cost_messages.Group, cost.cost_messages.Message
    network = cost.cost_messages.Network(
        node_gbit=80.0, nvlink_gbyte=100.0, usable=0.5, hop_us=1.0, node_hop_us=4.0, start_us=10.0
    )
    # Inside a node: 7/8 of 8 GB at half of 100 GB/s, after the start and 7 hops.
    gather = message("forward", "all-gather", 8 * 10**9, group(1, 8))
    assert network.seconds(gather) == pytest.approx(7 / 50 + 17e-6)
    assert gather.sent == 7 * 10**9
    # Between two nodes: half of 1 GB, up and down, four times side by side, at half of 10 GB/s; one hop, up and down.
    reduce = message("backward", "all-reduce", 10**9, group(2, 1), count=3, side_by_side=4)
    assert network.seconds(reduce) == pytest.approx(3 * (4 * 2 * 0.5 / 5 + 18e-6))
    assert network.seconds(message("forward", "all-gather", 10**9, group(1, 1))) == 0


def test_prediction_with_a_perfect_network_is_computation(cost, small):
    config = small()
    units = cost.cost_units.model_units(config)
    model = cost.cost_predict.Model(config, IMAGES, 32, *units, cost.cost_units.Operations(1e12, 2e12, 4e12))
    machine = cost.cost_predict.Machine(tflops=10.0, fraction=0.5, memory_gbyte=1e12)
    network = cost.cost_messages.Network(1e12, 1e12, 1.0, 0.0, 0.0, 0.0)
    step = cost.cost_predict.predict(model, "ddp", 4, machine, network)
    assert step.seconds(overlap=True) == pytest.approx(IMAGES * 7 / 5)
    assert step.seconds(overlap=False) == pytest.approx(IMAGES * 7 / 5)
    slow = cost.cost_predict.predict(model, "ddp", 4, machine, cost.cost_messages.Network())
    assert slow.seconds(overlap=False) == pytest.approx(IMAGES * 7 / 5 + sum(slow.messages.values()))
    assert slow.seconds(overlap=False) > slow.seconds(overlap=True)


@pytest.fixture(scope="module")
def predicted(cost, tmp_path_factory):
    """What the program writes into a copy of the page, into its JSON file, and to the terminal."""
    folder = tmp_path_factory.mktemp("predicted")
    page, out, shown = folder / "scaling.md", folder / "out.json", io.StringIO()
    page.write_text((ROOT / "docs" / "scaling.md").read_text())
    with contextlib.redirect_stdout(shown):
        assert cost.common.run(cost.cost_model.program, ["--write", str(page), "--json", str(out)]) == 0
    return page.read_text(), json.loads(out.read_text()), shown.getvalue()


def test_the_page_shows_what_the_program_says(predicted):
    page, content, shown = predicted
    assert page == (ROOT / "docs" / "scaling.md").read_text(), (
        "renew it: python scripts/bench/cost_model.py --write docs/scaling.md"
    )
    assert {"machine", "command", "rows", "ratios"} <= set(content)
    assert content["machine"]["assumed"]["fraction"] == 0.4
    rows = [row for row in content["rows"] if row["strategy"] == "ddp" and row.get("gpus") == 256 and "sent_gb" in row]
    assert len(rows) == 12  # four models, three networks
    assert f"{rows[0]['sent_gb']:.4g}" in shown


def test_the_text_of_the_page_agrees_with_its_tables(predicted):
    page, content, _ = predicted
    text = " ".join(page.split("## Tables")[0].split())
    stored = {
        (row["model"], row["strategy"], row["gpus"]): row for row in content["rows"] if "stored_gib" in row
    }  # GiB
    steps = {}
    for row in content["rows"]:
        if "sent_gb" in row:
            steps.setdefault((row["model"], row["gpus"], row["node_gbit"]), {})[row["strategy"]] = row

    def slower(first, second, fields=("step_ms_from", "step_ms_to"), of=steps):
        """By how many percent steps of the first strategy take longer at most."""
        return round(100 * max(of[key][first][f] / of[key][second][f] - 1 for key in of for f in fields))

    ddp = [stored[name, "ddp", 8]["stored_gib"] for name in ("mvhybrid_small", "vit_large", "vit_giant2")]
    small = {key: row for key, row in steps.items() if key[0] == "mvhybrid_small"}
    assert slower("hsdp", "ddp") == slower("hsdp", "ddp", ["step_ms_to"], small)
    several = {key: row for key, row in steps.items() if key[1] > 8}
    at_400 = {("vit_giant2", 64, 400.0): steps["vit_giant2", 64, 400.0]}
    best = slower("ddp", "fsdp, kept")
    assert best == slower("ddp", "fsdp, kept", ["step_ms_from"], at_400)
    gathers = next(line for line in page.splitlines() if line.startswith("| mvhybrid_small | 155 "))
    sizes = dict(zip((1, 8, 16, 32, 64, 128, 256), gathers.split(" | ")[1:], strict=True))
    assert sizes[1] == sizes[8] == sizes[16] == sizes[32]
    for expected in (
        "{:.1f} GiB for `mvhybrid_small`, {:.1f} GiB for `vit_large`, {:.1f} GiB for `vit_giant2`. It".format(*ddp),
        f"nowhere in the tables below slower than `fsdp` or `hsdp` by more than {slower('ddp', 'fsdp')}%",
        f"a step of `mvhybrid_small` takes up to {slower('hsdp', 'ddp')}% longer than with `ddp`",
        f"nowhere slower than `fsdp` by more than {slower('hsdp', 'fsdp', of=several)}%",
        f"fit ({stored['vit_giant2', 'fsdp, kept', 8]['gathered_gib']:.1f} GiB for `vit_giant2`)",
        f"up to {best}% over `ddp`, for `vit_giant2` on 64 GPUs at 400 Gb/s",
        f"student is {sizes[32]} MB on up to 32 GPUs, {sizes[64]} MB on 64 and {sizes[256].strip(' |')} MB on 256",
    ):
        assert expected in text
    assert slower("ddp", "hsdp") <= slower("ddp", "fsdp")
    for (model, gpus, _), row in steps.items():
        if gpus == 8 or model.startswith("vit"):  # nothing is filled up
            assert 1 - row["fsdp, kept"]["sent_gb"] / row["fsdp"]["sent_gb"] == pytest.approx(1 / 5, abs=0.02)


def test_bytes_of_each_strategy_are_those_of_the_pages_table(cost):
    """Of parameters without parts in float32, gathered by rings whose (n - 1) / n is taken out."""
    values, nodes, per_node = 640, 2, 8
    units = [cost.cost_units.Unit("a", ((values,),), trained, 2) for trained in (True, False)]

    def parameters(strategy, reshard, inside=None):
        messages = cost.cost_messages.parameter_messages(units[:1], units[1:], strategy, nodes, per_node, reshard)
        sent = [m.sent * m.group.size / (m.group.size - 1) for m in messages if inside in (None, m.group.nodes == 1)]
        return sum(sent) / values

    assert parameters("ddp", False) == 8
    assert parameters("fsdp", True) == 10
    assert parameters("fsdp", False) == 8
    assert parameters("hsdp", True, inside=True) == 10
    assert parameters("hsdp", True, inside=False) == 8 / per_node
    rows = [line.split(" | ") for line in (ROOT / "docs" / "scaling.md").read_text().splitlines()]
    told = {row[0]: row[-1].strip(" |") for row in rows if row[0].startswith(("| `ddp`", "| `fsdp`", "| `hsdp`"))}
    assert list(told.values()) == ["8 P", "10 P", "8 P", "10 P inside, 8 P / G outside"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "vit_huge"], "--models vit_huge: unknown; choose from mvhybrid_small"),
        (["--gpus", "12"], "--gpus 12: it must be a multiple of the 8 GPUs of a node"),
        (["--gpus", "8", "--models", "vit_large", "--write", "no-such-page.md"], "expected a page with the marks"),
    ],
)
def test_bad_options(cost, options, message, capsys):
    assert cost.common.run(cost.cost_model.program, options) == 2
    assert message in capsys.readouterr().err
