"""The objective as a whole, against its formula in float64 loops over the outputs of its own networks."""

import copy

import numpy as np
import pytest
import torch
from small_runs import SMALL

from dinov2.data.datasets import make_dataset
from dinov2.data.loaders import make_loader
from dinov2.train import ssl_meta_arch
from dinov2.train.ssl_meta_arch import SSLMetaArch


@pytest.fixture
def setup(small):
    def make(**sections):
        config = small(**sections)
        torch.manual_seed(0)
        arch = SSLMetaArch(config).train()
        dataset = make_dataset(config.train.dataset_path)
        batch = next(iter(make_loader(dataset, config.crops, config.ibot, patch_size=16, global_batch_size=4, seed=0)))
        return arch, batch

    return make


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(targets, scores):
    """Mean over rows of - sum t log softmax(s / 0.1)."""
    z = scores / 0.1
    log = z - z.max(-1, keepdims=True) - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))
    return -(targets * log).sum(-1)


def array(tensor):
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("distributed", [True, False])
def test_koleo_is_asked_for_as_configured(setup, monkeypatch, distributed):
    asked = []
    arch, batch = setup(dino=SMALL["dino"] | {"koleo_loss_distributed": distributed})
    whole = ssl_meta_arch.koleo_loss
    monkeypatch.setattr(ssl_meta_arch, "koleo_loss", lambda x, **options: asked.append(options) or whole(x, **options))
    arch(batch, 0.05)
    assert asked == [{"distributed": distributed}] * 2


@pytest.mark.parametrize("separate", [True, False])
def test_parts_against_the_formula(setup, separate):
    arch, batch = setup(
        train={"centering": "centering"},
        ibot={
            "head_n_prototypes": 32,
            "head_hidden_dim": 32,
            "head_bottleneck_dim": 16,
            "mask_sample_probability": 0.5,
            "separate_head": separate,
        },
    )
    size, temperature = 4, 0.05
    patch_head = "ibot_head" if separate else "dino_head"
    with torch.no_grad():
        teacher = arch.teacher["backbone"].forward_features(batch.global_crops)
        student = arch.student["backbone"].forward_features(batch.global_crops, batch.masks)
        local = arch.student["backbone"].forward_features(batch.local_crops)
        # The centres start at 0.
        targets = softmax(array(arch.teacher["dino_head"](teacher["x_norm_clstoken"])) / temperature)
        global_scores = array(arch.student["dino_head"](student["x_norm_clstoken"]))
        local_scores = array(arch.student["dino_head"](local["x_norm_clstoken"]))
        patch_targets = softmax(array(arch.teacher[patch_head](teacher["x_norm_patchtokens"])) / temperature)
        patch_scores = array(arch.student[patch_head](student["x_norm_patchtokens"]))
    first, second = targets[:size], targets[size:]
    pairs = 2 + 2 * 2
    expected = {
        "dino_global_crops_loss": (
            cross_entropy(second, global_scores[:size]).mean() + cross_entropy(first, global_scores[size:]).mean()
        )
        / pairs,
        "dino_local_crops_loss": sum(
            cross_entropy(t, local_scores[c * size : (c + 1) * size]).mean() for t in (first, second) for c in range(2)
        )
        / pairs,
        "ibot_loss": np.mean(
            [
                cross_entropy(patch_targets[i][m], patch_scores[i][m]).mean() if m.any() else 0.0
                for i, m in enumerate(batch.masks.numpy())
            ]
        ),
        "koleo_loss": 0.1 * sum(koleo(array(student["x_norm_clstoken"][c * size : (c + 1) * size])) for c in (0, 1)),
    }
    parts = arch(batch, temperature)
    for name, value in expected.items():
        assert float(parts[name].detach()) == pytest.approx(value, rel=2e-4), name
    assert float(parts["total_loss"].detach()) == pytest.approx(sum(expected.values()), rel=2e-4)


def koleo(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    distances = [min(np.linalg.norm(a - b) for j, b in enumerate(x) if j != i) for i, a in enumerate(x)]
    return -np.mean(np.log(np.array(distances) + 1e-8))


def test_teacher_gets_no_gradient_and_stays_in_evaluation_mode(setup):
    arch, batch = setup()
    arch.train()
    assert not any(module.training for module in arch.teacher.modules())
    arch(batch, 0.05)["total_loss"].backward()
    assert all(p.grad is None for p in arch.teacher.parameters())
    assert all(p.grad is not None for p in arch.student.parameters())


def test_update_teacher_is_a_moving_average(setup):
    arch, _ = setup()
    with torch.no_grad():
        for p in arch.student.parameters():
            p.add_(1.0)
    before = {name: p.clone() for name, p in arch.teacher.named_parameters()}
    arch.update_teacher(0.9)
    student = dict(arch.student.named_parameters())
    for name, p in arch.teacher.named_parameters():
        torch.testing.assert_close(p, 0.9 * before[name] + 0.1 * student[name])


def test_parts_can_be_switched_off(setup, small):
    arch, batch = setup(
        ibot={"loss_weight": 0.0}, dino={"head_n_prototypes": 32, "head_hidden_dim": 32, "koleo_loss_weight": 0.0}
    )
    assert "ibot_head" not in arch.student
    losses = {name for name in arch(batch, 0.05) if name.endswith("_loss")}
    assert losses == {"dino_global_crops_loss", "dino_local_crops_loss", "total_loss"}


def test_no_local_crops(setup):
    arch, batch = setup(crops={"global_crops_size": 64, "local_crops_number": 0})
    parts = arch(batch, 0.05)
    assert "dino_local_crops_loss" not in parts
    assert torch.isfinite(parts["total_loss"])


def test_batch_without_a_mask(setup):
    arch, batch = setup(ibot={"head_n_prototypes": 32, "head_hidden_dim": 32, "mask_sample_probability": 0.0})
    assert len(batch.mask_indices) == 0
    parts = arch(batch, 0.05)
    parts["total_loss"].backward()
    assert float(parts["ibot_loss"].detach()) == 0.0
    assert torch.isfinite(parts["total_loss"])


def test_shared_heads_score_with_one_call(small):
    config = small(ibot={"separate_head": False, "mask_sample_probability": 1.0})
    arch = SSLMetaArch(config)
    calls = []
    arch.student["dino_head"].register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    cls, patches = torch.randn(6, 32), torch.randn(5, 32)
    together = arch._score(arch.student, cls, patches)
    assert calls == [11]
    alone = copy.deepcopy(arch.student["dino_head"])
    torch.testing.assert_close(together, (alone(cls), alone(patches)))
