"""bf16 over two processes: what one process computes, up to rounding, and in float32 where it must be."""

import json

import precision_ranks
import pytest
from processes import run_ranks

from dinov2.utils.config import to_yaml

LOW = {"torch.bfloat16", "torch.float16"}
BF16 = {"compute_precision": {"dtype": "bf16"}}
# Of each run: the number of processes, and the sections that differ.
RUNS = {
    "one": (1, BF16),
    "fsdp": (2, BF16 | {"parallel": {"strategy": "fsdp"}}),
    "reduced": (2, BF16 | {"parallel": {"strategy": "fsdp", "reduce_dtype": "bf16"}}),
}


@pytest.mark.parametrize("arch", ["mvhybrid", pytest.param("hydra_hybrid", marks=pytest.mark.slow)])
def test_two_processes_in_bf16(arch, small, tmp_path):
    student = {"arch": arch, "embed_dim": 32, "num_heads": 2, "depth": 2}
    train = {"batch_size_per_gpu": 8, "global_batch_size": 8, "max_steps": 4, "checkpoint_period_iterations": 99}
    for processes in (1, 2):
        paths = []
        for name in (name for name, (count, _) in RUNS.items() if count == processes):
            config = small(train=train | {"output_dir": str(tmp_path / name)}, student=student, **RUNS[name][1])
            paths.append(tmp_path / f"{name}.yaml")
            paths[-1].write_text(to_yaml(config))
        codes, outputs = run_ranks(precision_ranks.main, processes, list(map(str, paths)), tmp_path)
        assert codes == [0] * processes, "\n".join(outputs)
    for name, (processes, _) in RUNS.items():
        seen = json.loads((tmp_path / name / "seen.json").read_text())
        assert seen["exact"]["calls"] > 0
        assert seen["exact"]["parameters"] == ["torch.float32"]
        assert "torch.float32" in seen["exact"]["computed"]
        assert not LOW & set(seen["exact"]["computed"])
        assert "torch.bfloat16" in seen["linear"]["computed"]
        assert seen["linear"]["parameters"] == ["torch.bfloat16" if processes == 2 else "torch.float32"]  # as gathered
        assert seen["gradients"] == ["torch.float32"]
    one, sharded, reduced = (losses(tmp_path / name) for name in RUNS)
    assert sharded == pytest.approx(one, rel=5e-3)  # about bf16's own step, 2^-8
    assert one[-1] < 0.9 * one[0]
    assert reduced == pytest.approx(sharded, rel=5e-3)
    assert reduced != sharded  # the gradients were rounded
    assert reduced[0] == sharded[0]


def losses(run):
    return [json.loads(line)["total_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
