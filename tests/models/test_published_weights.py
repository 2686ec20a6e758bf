"""The published MVHybrid's weights against loops over tokens, channels and states, written from its equations."""

import math

import pytest
import torch
import torch.nn.functional as F

from dinov2.layers.hydra import Hydra
from dinov2.layers.vim import BidirectionalMamba
from dinov2.models.published import is_published, published_student, rename_published
from dinov2.models.weights import load_backbone
from dinov2.utils.errors import CheckpointError

WIDTH, RANK, STATES = 128, 8, 4
HE_MEAN, IMAGENET_MEAN = (0.70322989, 0.53606487, 0.66096631), (0.485, 0.456, 0.406)


def draw(*shape, scale=0.1):
    return scale * torch.randn(*shape)


def norm_state(prefix, dim=WIDTH):
    return {f"{prefix}.weight": 1 + draw(dim), f"{prefix}.bias": draw(dim)}


def linear_state(prefix, into, out, bias=True):
    state = {f"{prefix}.weight": draw(out, into, scale=into**-0.5)}
    return state | ({f"{prefix}.bias": draw(out)} if bias else {})


def mamba_vision_state(prefix):
    """Names and shapes of the published mixer: half of `in_proj` to either branch, no bias but that of `dt_proj`."""
    return {
        **linear_state(f"{prefix}.in_proj", WIDTH, 2 * WIDTH, bias=False),
        **linear_state(f"{prefix}.x_proj", WIDTH, RANK + 2 * STATES, bias=False),
        **linear_state(f"{prefix}.dt_proj", RANK, WIDTH),
        **linear_state(f"{prefix}.out_proj", 2 * WIDTH, WIDTH, bias=False),
        f"{prefix}.A_log": torch.arange(1.0, STATES + 1).log().repeat(WIDTH, 1) + draw(WIDTH, STATES),
        f"{prefix}.D": 1 + draw(WIDTH),
        f"{prefix}.conv1d_x.weight": draw(WIDTH, 1, 4, scale=0.5),
        f"{prefix}.conv1d_z.weight": draw(WIDTH, 1, 4, scale=0.5),
    }


def einfft_state(prefix):
    size = WIDTH // 4
    shapes = {"weight_1": (size, size), "weight_2": (size, size), "bias_1": (size,), "bias_2": (size,)}
    return {f"{prefix}.complex_{name}": draw(2, 4, *shape, scale=0.3) for name, shape in shapes.items()}


def published_state(seed=0, first=2, second=2, gammas=False):
    """A backbone of `first` MambaVision and EinFFT blocks and `second` transformer blocks, in the published names."""
    torch.manual_seed(seed)
    state = {"cls_token": draw(1, 1, WIDTH, scale=1.0), "mask_token": draw(1, WIDTH)}
    state |= {"patch_embed.proj.weight": draw(WIDTH, 3, 16, 16, scale=0.05), "patch_embed.proj.bias": draw(WIDTH)}
    for index in range(first + second):
        block = f"blocks.blocks.{index}"
        state |= norm_state(f"{block}.norm1") | norm_state(f"{block}.norm2")
        if index < first:
            state |= mamba_vision_state(f"{block}.mixer") | einfft_state(f"{block}.channel_mixer")
        else:
            state |= linear_state(f"{block}.mixer.qkv", WIDTH, 3 * WIDTH)
            state |= linear_state(f"{block}.mixer.proj", WIDTH, WIDTH)
            state |= linear_state(f"{block}.channel_mixer.fc1", WIDTH, 4 * WIDTH)
            state |= linear_state(f"{block}.channel_mixer.fc2", 4 * WIDTH, WIDTH)
        if gammas:
            state |= {f"{block}.gamma_1": 1 + draw(WIDTH), f"{block}.gamma_2": 1 + draw(WIDTH)}
    return state | norm_state("norm")


def part(state, prefix):
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}


def depthwise(x, weight, bias, ahead):
    """Channel by channel over (L, E): output t sees the kernel's width of tokens, the last of them t + ahead."""
    length = len(x)
    width = weight.shape[-1]
    out = torch.zeros_like(x)
    for t in range(length):
        for k in range(width):
            source = t + k - (width - 1) + ahead
            if 0 <= source < length:
                out[t] += weight[:, 0, k] * x[source]
    return out if bias is None else out + bias


def scan(u, delta, A, B, C, D):
    """h = exp(delta A) h + delta B u, y = C h + D u; u, delta (L, E), A (E, N), B, C (L, N)."""
    state, rows = torch.zeros_like(A), []
    for t in range(len(u)):
        state = torch.exp(delta[t, :, None] * A) * state + delta[t, :, None] * u[t, :, None] * B[t]
        rows.append((state * C[t]).sum(-1) + D * u[t])
    return torch.stack(rows)


def mamba_vision_loop(p, x):
    """One sequence (L, D). The bias of `dt_proj` enters in the projection and again as the scan's own."""
    x, z = (x @ p["in_proj.weight"].T).split(WIDTH, dim=-1)
    x, z = F.silu(depthwise(x, p["conv1d_x.weight"], None, 2)), F.silu(depthwise(z, p["conv1d_z.weight"], None, 2))
    dt, B, C = (x @ p["x_proj.weight"].T).split([RANK, STATES, STATES], dim=-1)
    projected = dt @ p["dt_proj.weight"].T + p["dt_proj.bias"]
    delta = torch.log1p(torch.exp(projected + p["dt_proj.bias"]))
    y = scan(x, delta, -torch.exp(p["A_log"]), B, C, p["D"])
    return torch.cat([y, z], dim=-1) @ p["out_proj.weight"].T


def einfft_loop(p, x):
    """One sequence (L, D), its transforms as sums over complex exponentials."""
    length, blocks = len(x), x.reshape(len(x), 4, -1).to(torch.complex128)
    over_tokens = torch.exp(-2j * math.pi / length * torch.outer(*[torch.arange(length, dtype=torch.float64)] * 2))
    over_blocks = torch.exp(-2j * math.pi / 4 * torch.outer(*[torch.arange(4, dtype=torch.float64)] * 2))
    scale = (4 * length) ** -0.5
    z = torch.einsum("kl,mb,lbs->kms", over_tokens, over_blocks, blocks) * scale
    for layer, shape in ((1, F.relu), (2, lambda part: F.softshrink(part, 0.01))):
        weight, bias = (torch.complex(*p[f"complex_{kind}_{layer}"].double()) for kind in ("weight", "bias"))
        z = torch.einsum("lbi,bio->lbo", z, weight) + bias
        z = torch.complex(shape(z.real), shape(z.imag))
    back = torch.einsum("kl,mb,kms->lbs", over_tokens.conj(), over_blocks.conj(), z) * scale
    return back.real.reshape(length, -1)


def attention_loop(p, x, heads):
    q, k, v = (x @ p["qkv.weight"].T + p["qkv.bias"]).reshape(len(x), 3, heads, -1).permute(1, 2, 0, 3)
    weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)
    return (weights @ v).transpose(0, 1).reshape(len(x), -1) @ p["proj.weight"].T + p["proj.bias"]


def layer_norm(p, x):
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5) * p[
        "weight"
    ] + p["bias"]


def published_forward(state, image, heads):
    """CLS (D,) and patch tokens (N, D) of one image (3, H, W), in float64."""
    state = {name: value.double() for name, value in state.items()}
    patches = image.double().unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1)
    x = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    middle = len(x) // 2
    x = torch.cat([x[:middle], state["cls_token"][0], x[middle:]])
    for index in range(sum(name.endswith("norm1.weight") for name in state)):
        p = part(state, f"blocks.blocks.{index}")
        mixer, channel = part(p, "mixer"), part(p, "channel_mixer")
        normed = layer_norm(part(p, "norm1"), x)
        mixed = attention_loop(mixer, normed, heads) if "qkv.weight" in mixer else mamba_vision_loop(mixer, normed)
        x = x + p.get("gamma_1", 1) * mixed
        normed = layer_norm(part(p, "norm2"), x)
        if "fc1.weight" in channel:
            hidden = F.gelu(normed @ channel["fc1.weight"].T + channel["fc1.bias"])
            mixed = hidden @ channel["fc2.weight"].T + channel["fc2.bias"]
        else:
            mixed = einfft_loop(channel, normed)
        x = x + p.get("gamma_2", 1) * mixed
    x = layer_norm(part(state, "norm"), x)
    return x[middle], torch.cat([x[:middle], x[middle + 1 :]])


def saved(folder, state, config=None):
    """The published layout: RUN/config.yaml and RUN/eval/training_N/teacher_checkpoint.pth."""
    path = folder / "run" / "eval" / "training_9" / "teacher_checkpoint.pth"
    path.parent.mkdir(parents=True)
    heads = {"dino_head.mlp.0.weight": torch.zeros(3, 3), "ibot_head.mlp.0.weight": torch.zeros(3, 3)}
    torch.save({"teacher": {f"backbone.{name}": value for name, value in state.items()} | heads}, path)
    if config is not None:
        (folder / "run" / "config.yaml").write_text(config)
    return path


# What the published code writes into its run folder: DINOv2's defaults with its own keys merged in.
CONFIG = """
student: {arch: mamba_vision_S, if_einfft: true, einfft_mamba_only: true, if_mlp: false, num_cls_tokens: 1,
  if_registers: false, patch_size: 16, layerscale: 1.0e-05, ffn_layer: mlp, block_chunks: 0, depth: 24, cls_reduce: x}
crops: {global_crops_size: 64, local_crops_size: 32}
"""


@pytest.mark.parametrize(("first", "second", "gammas"), [(2, 2, False), (1, 2, True)])
def test_features_are_those_of_the_equations(tmp_path, first, second, gammas):
    state = published_state(first=first, second=second, gammas=gammas)
    model = load_backbone(saved(tmp_path, state)).model
    image = torch.randn(3, 48, 64)
    cls, patches = published_forward(state, image, heads=2)
    with torch.no_grad():
        out = model.forward_features(image[None])
    torch.testing.assert_close(out["x_norm_clstoken"][0], cls.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out["x_norm_patchtokens"][0], patches.float(), rtol=1e-4, atol=1e-4)


def test_the_bias_of_delta_is_doubled_and_nothing_else():
    state = published_state()
    renamed = rename_published(state)
    assert len(renamed) == len(state)
    assert torch.equal(renamed["blocks.1.mixer.scan.dt_bias"], state["blocks.blocks.1.mixer.dt_proj.bias"] * 2)
    unchanged = sum(any(torch.equal(value, other) for other in state.values()) for value in renamed.values())
    assert unchanged == len(state) - 2


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "teacher.backbone.", "teacher.backbone.module."])
def test_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    state = {f"{prefix}{name}": value for name, value in published_state(first=1, second=1).items()}
    if prefix.startswith("teacher."):
        state |= {f"student.{name.removeprefix('teacher.')}": torch.zeros(1) for name in state}
    torch.save(state, tmp_path / "weights.pth")
    loaded = load_backbone(tmp_path / "weights.pth")
    blocks = [(g.count, g.sequence_mixer, g.channel_mixer) for g in loaded.model.spec.blocks]
    assert blocks == [(1, "mamba_vision", "einfft"), (1, "attention", "mlp")]
    assert (loaded.name, loaded.mean, loaded.origin) == ("mvhybrid", HE_MEAN, "imported")


def test_the_configuration_beside_it_gives_the_size_but_not_the_architecture(tmp_path):
    loaded = load_backbone(saved(tmp_path, published_state(), CONFIG))
    assert (loaded.input_size, loaded.mean) == (64, HE_MEAN)
    assert (loaded.model.spec.depth, loaded.model.spec.layerscale) == (4, None)


def test_a_vit_of_the_published_code_has_its_statistics(tmp_path):
    """Its DINOv2 names do not tell, but its configuration does."""
    from dinov2.models import build_backbone

    student = "arch: vit_small, patch_size: 16, embed_dim: 32, num_heads: 2, depth: 2, block_chunks: 0, layerscale: 1.0"
    crops = "crops: {global_crops_size: 64, local_crops_size: 32}"
    state = build_backbone("vit_small", patch_size=16, embed_dim=32, num_heads=2, depth=2, img_size=64).state_dict()
    path = saved(tmp_path, state, f"student: {{{student}, num_cls_tokens: 1}}\n{crops}")
    assert load_backbone(path).mean == HE_MEAN
    (tmp_path / "run" / "config.yaml").write_text(f"student: {{{student}}}\n{crops}")
    assert load_backbone(path).mean == IMAGENET_MEAN


def test_a_missing_tensor_is_named(tmp_path):
    state = published_state(first=1, second=1)
    del state["blocks.blocks.0.mixer.x_proj.weight"]
    with pytest.raises(CheckpointError, match=r"missing blocks\.0\.mixer\.x_proj\.weight"):
        load_backbone(saved(tmp_path, state))


def test_an_unknown_mixer_and_unknown_positions_are_refused(tmp_path):
    state = published_state(first=1, second=1)
    torch.save(state | {"blocks.blocks.7.mixer.w": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a.pth: block 7 holds no mixer that is known, only mixer.w"):
        load_backbone(tmp_path / "a.pth")
    torch.save(state | {"pos_embed": torch.zeros(1, 17, WIDTH)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"b.pth: pos_embed: which of its entries is that of CLS"):
        load_backbone(tmp_path / "b.pth")


def test_dinov2s_and_our_own_names_are_not_taken_for_published():
    ours = rename_published(published_state())
    assert not is_published(ours)
    assert published_student(published_state())["arch"] == "mvhybrid"


def test_vims_two_directions():
    """Names of Vim's bidirectional Mamba; each bias of delta enters once."""
    torch.manual_seed(0)
    inner = 2 * WIDTH
    state = linear_state("mixer.in_proj", WIDTH, 2 * inner, bias=False)
    state |= linear_state("mixer.out_proj", inner, WIDTH, bias=False)
    for suffix, log in (("", "A_log"), ("_b", "A_b_log")):
        state[f"mixer.conv1d{suffix}.weight"] = draw(inner, 1, 4, scale=0.5)
        state[f"mixer.conv1d{suffix}.bias"] = draw(inner)
        state |= linear_state(f"mixer.x_proj{suffix}", inner, RANK + 2 * STATES, bias=False)
        state |= linear_state(f"mixer.dt_proj{suffix}", RANK, inner)
        state[f"mixer.{log}"] = torch.arange(1.0, STATES + 1).log().repeat(inner, 1) + draw(inner, STATES)
        state[f"mixer.D{suffix}"] = 1 + draw(inner)
    renamed = rename_published({f"blocks.blocks.0.{name}": value for name, value in state.items()})
    mixer = BidirectionalMamba(WIDTH, STATES)
    mixer.load_state_dict(part(renamed, "blocks.0.mixer"))
    p = {name.removeprefix("mixer."): value.double() for name, value in state.items()}
    tokens = torch.randn(7, WIDTH)
    x, z = (tokens.double() @ p["in_proj.weight"].T).split(inner, dim=-1)
    total = torch.zeros(7, inner, dtype=torch.float64)
    for suffix, log in (("", "A_log"), ("_b", "A_b_log")):
        u, gate = (x, z) if not suffix else (x.flip(0), z.flip(0))
        u = F.silu(depthwise(u, p[f"conv1d{suffix}.weight"], p[f"conv1d{suffix}.bias"], 0))
        dt, B, C = (u @ p[f"x_proj{suffix}.weight"].T).split([RANK, STATES, STATES], dim=-1)
        delta = torch.log1p(torch.exp(dt @ p[f"dt_proj{suffix}.weight"].T + p[f"dt_proj{suffix}.bias"]))
        y = scan(u, delta, -torch.exp(p[log]), B, C, p[f"D{suffix}"]) * F.silu(gate)
        total += y if not suffix else y.flip(0)
    expected = (total / 2) @ p["out_proj.weight"].T
    torch.testing.assert_close(mixer(tokens[None])[0], expected.float(), rtol=1e-4, atol=1e-5)


def test_hydras_names_are_the_papers():
    source = Hydra(WIDTH)
    theirs = {name.replace("scan.", ""): value + 0.1 for name, value in source.state_dict().items()}
    assert {"A_log", "dt_bias", "D", "fc_D.weight", "norm.weight", "in_proj.weight", "out_proj.weight"} <= set(theirs)
    renamed = rename_published({f"blocks.blocks.0.mixer.{name}": value for name, value in theirs.items()})
    mixer = Hydra(WIDTH)
    mixer.load_state_dict(part(renamed, "blocks.0.mixer"))
    assert torch.equal(mixer.scan.dt_bias, theirs["dt_bias"])
