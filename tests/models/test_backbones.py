"""One suite over the six backbones: outputs, order of tokens, masks, gradients, sizes and state dicts."""

import re

import pytest
import torch
from torch import nn

from dinov2.models import build_backbone
from dinov2.utils.errors import UserError

SIX = ("vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid")
TINY = {"embed_dim": 64, "num_heads": 2, "depth": 2, "img_size": 64}


@pytest.fixture(params=SIX)
def name(request):
    return request.param


def build(name, seed=0, **overrides):
    torch.manual_seed(seed)
    return build_backbone(name, **(TINY | overrides))


def spread(model):
    """Move every parameter off its initial value, so that none has an effect too small to see."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def without_blocks(model):
    """The model with its blocks and last norm replaced by the identity: tokens come out as they went in."""
    model.blocks = nn.ModuleList(nn.Identity() for _ in model.blocks)
    model.norm = nn.Identity()
    return model


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 80), (16, 16)])
def test_output_contract(name, height, width, registers):
    model = spread(build(name, num_register_tokens=registers)).eval()
    x, n = images(2, 3, height, width), height * width // 256
    masks = torch.zeros(2, n, dtype=torch.bool)
    out = model(x, masks, is_training=True)
    assert set(out) == {"x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens", "x_prenorm", "masks"}
    assert out["x_norm_clstoken"].shape == (2, 64)
    assert out["x_norm_regtokens"].shape == (2, registers, 64)
    assert out["x_norm_patchtokens"].shape == (2, n, 64)
    assert out["x_prenorm"].shape == (2, 1 + registers + n, 64)
    assert out["masks"] is masks
    assert all(torch.isfinite(t).all() for t in out.values())
    # x_prenorm is ordered CLS, registers, patches.
    parts = [out["x_norm_clstoken"][:, None], out["x_norm_regtokens"], out["x_norm_patchtokens"]]
    assert torch.equal(model.norm(out["x_prenorm"]), torch.cat(parts, dim=1))
    assert torch.equal(model(x), out["x_norm_clstoken"])


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (16, 16)])
def test_patches_come_out_in_raster_order(name, height, width, registers):
    model = without_blocks(spread(build(name, pos_embed="none", num_register_tokens=registers)))
    x = images(2, 3, height, width)
    out = model.forward_features(x)
    assert torch.equal(out["x_norm_patchtokens"], model.patch_embed(x))
    assert torch.equal(out["x_norm_clstoken"], model.cls_token[0].expand(2, -1))
    if registers:
        assert torch.equal(out["x_norm_regtokens"], model.register_tokens.expand(2, -1, -1))


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (16, 16)])
def test_blocks_see_cls_and_registers_at_their_place(name, height, width, registers):
    model = spread(build(name, pos_embed="none", num_register_tokens=registers))
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = images(1, 3, height, width)
    model(x)
    patches = model.patch_embed(x)
    n = patches.shape[1]
    at = 0 if name.startswith("vit") else n // 2
    special = [model.cls_token] + ([model.register_tokens] if registers else [])
    assert torch.equal(seen[0], torch.cat([patches[:, :at], *special, patches[:, at:]], dim=1))


def test_position_embeddings_are_added_in_raster_order(name):
    model = without_blocks(spread(build(name)))
    x = images(1, 3, 64, 64)
    out = model.forward_features(x)
    if name == "mvhybrid":
        assert model.pos_embed is None
        return
    assert model.pos_embed.shape == (1, 17, 64)
    torch.testing.assert_close(out["x_norm_patchtokens"], model.patch_embed(x) + model.pos_embed[:, 1:])
    torch.testing.assert_close(out["x_norm_clstoken"], (model.cls_token + model.pos_embed[:, :1])[:, 0])


def test_masks_put_the_mask_token_in_place_of_the_patch(name):
    model = without_blocks(spread(build(name, pos_embed="none")))
    x = images(2, 3, 64, 64)
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[0, [1, 7]] = masks[1, 15] = True
    out = model.forward_features(x, masks)["x_norm_patchtokens"]
    assert torch.equal(out[masks], model.mask_token.expand(3, -1))
    assert torch.equal(out[~masks], model.patch_embed(x)[~masks])


def test_masked_pixels_have_no_influence(name):
    model = spread(build(name)).eval()
    x = images(1, 3, 64, 64)
    masks = torch.zeros(1, 16, dtype=torch.bool)
    masks[0, 6] = True  # row 1, column 2
    changed = x.clone()
    changed[:, :, 16:32, 32:48] += 1
    assert torch.equal(model(changed, masks), model(x, masks))
    assert not torch.equal(model(changed), model(x))
    assert not torch.equal(model(x, masks), model(x))


def test_masks_of_another_shape_are_refused(name):
    with pytest.raises(ValueError, match=r"masks have shape \(2, 15\); expected \(2, 16\)"):
        build(name).forward_features(images(2, 3, 64, 64), torch.zeros(2, 15, dtype=torch.bool))


@pytest.mark.parametrize("layerscale", [None, 1e-5])
def test_gradients_reach_every_parameter(name, layerscale):
    model = build(name, layerscale=layerscale, num_register_tokens=2).train()
    x = images(2, 3, 64, 64)
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[:, 3:6] = True
    out = model.forward_features(x, masks)
    weight = images(*out["x_prenorm"].shape, seed=2)
    parts = [out["x_norm_clstoken"][:, None], out["x_norm_regtokens"], out["x_norm_patchtokens"]]
    (torch.cat(parts, dim=1) * weight).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


def test_every_token_hears_of_every_patch(name):
    """Two blocks suffice for information to reach all tokens, in both directions."""
    model = spread(build(name)).double().eval()
    x = images(1, 3, 64, 64).double().requires_grad_()
    tokens = model.forward_features(x)["x_prenorm"]
    for index in (0, 1, tokens.shape[1] - 1):
        (gradient,) = torch.autograd.grad(tokens[0, index].square().sum(), x, retain_graph=True)
        reached = gradient.reshape(3, 4, 16, 4, 16).abs().amax((0, 2, 4))  # (4, 4)
        assert (reached > 0).all()


def test_state_dict_round_trip(name):
    one, two = spread(build(name, num_register_tokens=1)).eval(), build(name, seed=5, num_register_tokens=1).eval()
    x = images(1, 3, 64, 64)
    assert not torch.equal(one(x), two(x))
    two.load_state_dict(one.state_dict(), strict=True)
    assert torch.equal(one(x), two(x))


def test_crops_of_several_sizes_in_one_call(name):
    model = spread(build(name)).eval()
    large, small = images(2, 3, 64, 64), images(3, 3, 32, 48)
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[:, :5] = True
    first, second = model.forward_features_list([large, small], [masks, None])
    assert torch.equal(first["x_prenorm"], model.forward_features(large, masks)["x_prenorm"])
    assert torch.equal(second["x_prenorm"], model.forward_features(small)["x_prenorm"])
    assert second["masks"] is None


@pytest.mark.parametrize("registers", [0, 2])
def test_intermediate_layers(name, registers):
    model = spread(build(name, depth=4, num_register_tokens=registers)).eval()
    x = images(2, 3, 32, 48)
    out = model.forward_features(x)
    ((patches, cls),) = model.get_intermediate_layers(x, return_class_token=True)
    assert torch.equal(patches, out["x_norm_patchtokens"])
    assert torch.equal(cls, out["x_norm_clstoken"])
    two = model.get_intermediate_layers(x, n=2)
    by_index = model.get_intermediate_layers(x, n=[3, 0])  # in the order of the blocks, as DINOv2 has them
    assert torch.equal(two[1], by_index[1])
    assert not torch.equal(two[0], by_index[0])
    (raw,) = model.get_intermediate_layers(x, norm=False)
    assert torch.equal(raw, out["x_prenorm"][:, 1 + registers :])
    (maps,) = model.get_intermediate_layers(x, reshape=True)
    assert maps.shape == (2, 64, 2, 3)
    assert torch.equal(maps[:, :, 1, 2], patches[:, 5])
    # The first block alone: the same as a model that has no other.
    model.blocks = model.blocks[:1]
    assert torch.equal(by_index[0], model.forward_features(x)["x_norm_patchtokens"])


@pytest.mark.parametrize("n", [3, 0, -1, [2], [-1], [], [1, 1]], ids=str)
def test_intermediate_layers_that_do_not_exist(name, n):
    with pytest.raises(UserError, match=rf"n = {re.escape(repr(n))}; there are blocks 0 to 1"):
        build(name).get_intermediate_layers(images(1, 3, 32, 32), n=n)


def test_evaluation_is_deterministic_and_drop_path_is_training_only(name):
    model = spread(build(name, drop_path_rate=0.5))
    x = images(4, 3, 32, 32)
    model.eval()
    assert torch.equal(model(x), model(x))
    plain = spread(build(name)).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), plain(x))
    model.train()
    torch.manual_seed(0)
    first = model(x)
    assert not torch.equal(first, model(x))


def test_drop_path_rates_per_block(name):
    uniform = build(name, depth=4, drop_path_rate=0.3)
    assert [block.drop_path.p for block in uniform.blocks] == [0.3] * 4
    growing = build(name, depth=4, drop_path_rate=0.3, drop_path_uniform=False)
    assert [block.drop_path.p for block in growing.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_initial_values(name):
    model = build(name, embed_dim=128, layerscale=1e-5)
    for parameter_name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), parameter_name
    assert 0 < model.cls_token.abs().max() < 1e-5
    assert not model.mask_token.any()
    if model.pos_embed is not None:
        assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear) and module.weight.numel() > 5000]
    assert linears
    for module in linears:
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert module.bias is None or not module.bias.any()
    assert all((block.ls1.gamma == 1e-5).all() for block in model.blocks)


def test_the_seed_decides_the_weights(name):
    x = images(1, 3, 32, 32)
    assert torch.equal(build(name)(x), build(name)(x))
    assert not torch.equal(build(name)(x), build(name, seed=1)(x))


def test_an_image_that_the_patch_does_not_divide_is_refused(name):
    with pytest.raises(ValueError, match="image of 40 x 64 px"):
        build(name)(images(1, 3, 40, 64))


def test_one_training_step_lowers_a_loss(name):
    model = spread(build(name)).train()
    x, target = images(4, 3, 32, 32), images(4, 64, seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_autocast_gives_nearly_the_same_and_finite_gradients(name):
    model = spread(build(name)).eval()
    x = images(2, 3, 64, 64)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
    assert nn.functional.cosine_similarity(exact, low.float()).min() > 0.98
    low.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
