"""What an export writes gives the backbone's embeddings, where it is to be used and without this package."""

import json
import re
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from dinov2.models import build_backbone, export_graph, list_backbones
from dinov2.models.export import export_backbone, largest_difference, main
from dinov2.models.export_formats import FORMATS, Export, timm_architecture
from dinov2.models.export_graph import ELEMENTARY, ExportError, run_onnx, run_torchscript
from dinov2.models.registry import get_spec
from dinov2.models.weights import load_backbone, save_backbone
from dinov2.ops import dispatch
from dinov2.utils.config import config_from_dict

SIX = ("vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid")
TINY = {"embed_dim": 64, "num_heads": 2, "depth": 2}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def trained(folder, arch="mvhybrid", **student):
    """A teacher as the trainer writes it, at 64 px, with parameters away from their initial values."""
    config = config_from_dict(
        {
            "student": {"arch": arch, **TINY, **student},
            "crops": {"global_crops_size": 64, "local_crops_size": 32, "normalize": {"mean": MEAN, "std": STD}},
            "train": {"dataset_path": "Folder:root=tiles", "global_batch_size": 96},
        }
    )
    torch.manual_seed(0)
    model = build_backbone(arch, **TINY, img_size=64, **student)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir(exist_ok=True)
    save_backbone(folder / "teacher.safetensors", model.state_dict(), config, 1234)
    return folder


def images(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def embedding(run, x, pooling="cls"):
    with torch.no_grad():
        out = load_backbone(run).model.forward_features(x)
    mean = out["x_norm_patchtokens"].mean(1)
    return {"cls": out["x_norm_clstoken"], "mean": mean}.get(pooling, torch.cat([out["x_norm_clstoken"], mean], 1))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("arch", SIX)
def test_onnxruntime_gives_the_embeddings(tmp_path, arch):
    run = trained(tmp_path / "run", arch)
    difference = export_backbone(run, "onnx", tmp_path / "out", pooling="cls+mean")
    assert difference < 1e-4
    assert names(tmp_path / "out") == ["README.md", "model.onnx"]
    for batch in (1, 2, 5):
        x = images(batch, 3, 64, 64, seed=batch)
        found = run_onnx(tmp_path / "out" / "model.onnx", x)
        torch.testing.assert_close(found, embedding(run, x, "cls+mean"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", SIX)
def test_torchscript_needs_pytorch_only(tmp_path, arch):
    """In a process in which this package cannot be imported."""
    run = trained(tmp_path / "run", arch, num_register_tokens=1)
    export_backbone(run, "torchscript", tmp_path / "out")
    assert names(tmp_path / "out") == ["README.md", "model.torchscript.pt"]
    x = images(3, 3, 64, 64)
    torch.save(x, tmp_path / "x.pt")
    code = """
import sys
sys.path = [entry for entry in sys.path if entry not in ("", sys.argv[1])]
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dinov2", "timm"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import torch
model = torch.jit.load(sys.argv[2], map_location="cpu")
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[3])), sys.argv[4])
assert "dinov2" not in sys.modules
"""
    file, root = tmp_path / "out" / "model.torchscript.pt", sys.path[0]
    arguments = [root, str(file), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), embedding(run, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", SIX)
def test_torchscript_holds_neither_our_operators_nor_a_device(tmp_path, arch):
    export_backbone(trained(tmp_path / "run", arch), "torchscript", tmp_path / "out")
    graph = str(torch.jit.load(tmp_path / "out" / "model.torchscript.pt").inlined_graph)
    assert "aten::" in graph
    assert "dinov2::" not in graph
    assert 'Device = prim::Constant[value="cpu"]' not in graph


def test_every_operator_has_a_form_for_graphs():
    assert set(dispatch._operators) == set(ELEMENTARY) | {"ssd"}  # which has its own module


@pytest.mark.parametrize(("arch", "size"), [("vit12", 96), ("mvhybrid", 96)])
@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_another_size_and_pooling(tmp_path, arch, size, pooling):
    """A position embedding is resized once, by the backbone's own rule."""
    run = trained(tmp_path / "run", arch)
    export_backbone(run, "torchscript", tmp_path / "out", size, pooling)
    x = images(2, 3, size, size)
    found = run_torchscript(tmp_path / "out" / "model.torchscript.pt", x)
    torch.testing.assert_close(found, embedding(run, x, pooling), rtol=1e-4, atol=1e-4)


def test_graphs_carry_what_their_images_need(tmp_path):
    import onnx

    run = trained(tmp_path / "run", "vit12")
    export_backbone(run, "onnx", tmp_path / "a")
    export_backbone(run, "torchscript", tmp_path / "b")
    written = onnx.load(tmp_path / "a" / "model.onnx")
    onnx.checker.check_model(written)
    assert next(entry.version for entry in written.opset_import if entry.domain == "") >= 18
    assert [value.name for value in written.graph.input] == ["images"]
    assert [value.name for value in written.graph.output] == ["embedding"]
    extra = {"config.json": ""}
    torch.jit.load(tmp_path / "b" / "model.torchscript.pt", _extra_files=extra)
    for text in ({prop.key: prop.value for prop in written.metadata_props}["config.json"], extra["config.json"]):
        found = json.loads(text)
        assert (found["mean"], found["std"], found["image_size"]) == (list(MEAN), list(STD), 64)
        assert (found["pooling"], found["weights_sha256"]) == ("cls", load_backbone(run).weights_hash)


def test_large_weights_go_to_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr(export_graph, "_ONE_FILE", 0)
    run = trained(tmp_path / "run", "vit12")
    export_backbone(run, "onnx", tmp_path / "out")
    assert names(tmp_path / "out") == ["README.md", "model.onnx", "model.onnx.data"]
    x = images(2, 3, 64, 64)
    torch.testing.assert_close(run_onnx(tmp_path / "out" / "model.onnx", x), embedding(run, x), rtol=1e-4, atol=1e-4)


def test_small_weights_leave_no_second_file_of_large_ones(tmp_path, monkeypatch):
    run, real = trained(tmp_path / "run", "vit12"), FORMATS["onnx"]
    for files in (["model.onnx", "model.onnx.data"], ["model.onnx"]):

        def write(export, folder, files=files):
            for name in files:
                (folder / name).write_text("a graph")

        monkeypatch.setitem(FORMATS, "onnx", type(real)(real.files, write, lambda export, _, x: export.embedder()(x)))
        export_backbone(run, "onnx", tmp_path / "out")
        assert names(tmp_path / "out") == ["README.md", *files]


@pytest.mark.parametrize(
    ("first", "second", "others"),
    [
        ("timm", "torchscript", "config.json, model.safetensors"),
        ("safetensors", "onnx", "config.json, model.safetensors"),
        ("torchscript", "timm", "model.torchscript.pt"),
    ],
)
def test_formats_do_not_mix_in_a_folder(tmp_path, first, second, others):
    run = trained(tmp_path / "run", "vit12")
    export_backbone(run, first, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ExportError, match=f"holds {re.escape(others)} of another format.*remove them, or give another"):
        export_backbone(run, second, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_format_that_writes_the_same_files_replaces_them(tmp_path):
    run = trained(tmp_path / "run", "vit12")
    export_backbone(run, "timm", tmp_path / "out")
    export_backbone(run, "safetensors", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "dinov2-pathology"


@pytest.mark.parametrize("arch", SIX)
def test_timm_loads_the_folder_and_the_file(tmp_path, arch):
    run = trained(tmp_path / "run", arch, num_register_tokens=2)
    assert export_backbone(run, "timm", tmp_path / "out", size=80) == 0
    assert names(tmp_path / "out") == ["README.md", "config.json", "model.safetensors"]
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = images(2, 3, 80, 80)
    assert torch.equal(model(x), embedding(run, x))
    config = timm.data.resolve_model_data_config(model)
    assert (config["mean"], config["std"]) == (list(MEAN), list(STD))
    assert list(config["input_size"]) == [3, 80, 80]
    name, arguments = timm_architecture(load_backbone(run).model.spec)
    assert name == f"{arch}_small"
    same = timm.create_model(name, checkpoint_path=str(tmp_path / "out" / "model.safetensors"), **arguments).eval()
    assert torch.equal(same(x), embedding(run, x))


def test_the_exported_pooling_is_timms(tmp_path):
    run = trained(tmp_path / "run")
    export_backbone(run, "timm", tmp_path / "out", pooling="mean")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = images(1, 3, 64, 64)
    torch.testing.assert_close(model(x), embedding(run, x, "mean"))


@pytest.mark.parametrize("name", [f"{name}_{size}" for name in SIX for size in ("tiny", "small", "base")])
def test_the_usual_sizes_need_no_arguments_in_timm(name):
    assert timm_architecture(get_spec(name)) == (name, {})


@pytest.mark.parametrize("name", list_backbones())
def test_the_arguments_rebuild_the_architecture(name):
    spec = get_spec(name, embed_dim=64, num_heads=4, num_register_tokens=3, norm_eps=1e-3, img_size=112)
    architecture, arguments = timm_architecture(spec.override(blocks=("1 x mamba_vision + mlp", "2 x attention + mlp")))
    rebuilt = get_spec(architecture, **json.loads(json.dumps(arguments)))
    assert rebuilt == spec.override(blocks=("1 x mamba_vision + mlp", "2 x attention + mlp"))


def test_safetensors_is_ours_again(tmp_path):
    run = trained(tmp_path / "run")
    export_backbone(run, "safetensors", tmp_path / "out", size=96)
    assert names(tmp_path / "out") == ["README.md", "config.json", "model.safetensors"]
    first, again = load_backbone(run), load_backbone(tmp_path / "out")
    assert again.weights_hash == first.weights_hash
    assert (again.mean, again.input_size, again.iteration, again.origin) == (MEAN, 96, 1234, "trained")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == "mvhybrid_small"
    assert (config["num_features"], config["image_size"], config["mean"]) == (64, 96, list(MEAN))


def card(folder):
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_states_the_training_that_is_recorded(tmp_path):
    run = trained(tmp_path / "run")
    export_backbone(run, "timm", tmp_path / "out")
    front, body = card(tmp_path / "out")
    assert front["library_name"] == "timm"
    assert "mvhybrid" in front["tags"]
    assert "license" not in front
    for fact in ("| data | `Folder:root=tiles` |", "| steps | 1234 |", "| images a step | 96 |", "2 of 64 px"):
        assert fact in body
    assert load_backbone(run).weights_hash in body


def test_the_card_invents_no_training(tmp_path):
    """Of imported weights nothing is known, also when their export is exported again."""
    torch.save(build_backbone("vit_small", depth=1, img_size=112).state_dict(), tmp_path / "dinov2.pth")
    export_backbone(tmp_path / "dinov2.pth", "safetensors", tmp_path / "a", size=56)
    export_backbone(tmp_path / "a", "timm", tmp_path / "b", size=56)
    for folder in ("a", "b"):
        _, body = card(tmp_path / folder)
        assert "nothing about their training is recorded" in body
        assert "steps" not in body


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
@pytest.mark.parametrize("file_format", ["timm", "safetensors"])
def test_the_line_of_the_card_for_timm_pools_as_exported(tmp_path, file_format, pooling):
    """TRIDENT's recipe uses it too."""
    run = trained(tmp_path / "run")
    export_backbone(run, file_format, tmp_path / "out", pooling=pooling)
    _, body = card(tmp_path / "out")
    line = re.search(r"`(timm\.create_model\(.*\))`", body).group(1).replace("FOLDER", str(tmp_path / "out"))
    assert line in body.replace("FOLDER", str(tmp_path / "out")).split("With TRIDENT")[1]
    model = eval(line, {"timm": timm}).eval()
    x = images(2, 3, 64, 64)
    torch.testing.assert_close(model(x), embedding(run, x, pooling))
    assert model.head_hidden_size == model(x).shape[1]


@pytest.mark.parametrize("file_format", ["timm", "safetensors", "torchscript"])
def test_the_code_of_the_card_runs(tmp_path, file_format):
    run = trained(tmp_path / "run")
    export_backbone(run, file_format, tmp_path / "out")
    _, body = card(tmp_path / "out")
    code = body.split("```python\n")[1].split("```")[0].replace("FOLDER", str(tmp_path / "out"))
    x = images(2, 3, 64, 64)
    values = {"images": x}
    with torch.no_grad():
        exec(code, values)
        found = {
            "timm": lambda: values["model"](x),
            "safetensors": lambda: values["features"]["x_norm_clstoken"],
            "torchscript": lambda: values["embeddings"],
        }[file_format]()
    torch.testing.assert_close(found, embedding(run, x), rtol=1e-4, atol=1e-4)


class CustomInferenceEncoder(torch.nn.Module):
    """TRIDENT's wrapper of a model, as its load.py has it: the same signature, attributes and forward pass."""

    def __init__(self, enc_name, model, transforms, precision):
        super().__init__()
        self.enc_name, self.model, self.eval_transforms, self.precision = enc_name, model, transforms, precision

    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize("pooling", ["cls", "cls+mean"])
@pytest.mark.parametrize("file_format", ["timm", "safetensors", "torchscript"])
def test_the_lines_of_the_card_for_trident_give_the_embeddings(tmp_path, monkeypatch, file_format, pooling):
    """Used as TRIDENT uses an encoder: PIL patches through its transforms, then the module itself."""
    trident, models = ModuleType("trident"), ModuleType("trident.patch_encoder_models")
    models.CustomInferenceEncoder = CustomInferenceEncoder
    monkeypatch.setitem(sys.modules, "trident", trident)
    monkeypatch.setitem(sys.modules, "trident.patch_encoder_models", models)
    run = trained(tmp_path / "run")
    export_backbone(run, file_format, tmp_path / "out", pooling=pooling)
    _, body = card(tmp_path / "out")
    code = body.split("With TRIDENT:")[1].split("```python\n")[1].split("```")[0]
    values = {}
    exec(code.replace("FOLDER", str(tmp_path / "out")), values)
    encoder = values["encoder"]
    assert (encoder.enc_name, encoder.precision) == ("mvhybrid", torch.float32)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    patches = torch.stack([encoder.eval_transforms(Image.fromarray(patch)) for patch in pixels])
    with torch.inference_mode():
        found = encoder(patches)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    x = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, embedding(run, x, pooling), rtol=1e-4, atol=1e-4)


def test_wrong_files_are_found_and_not_kept(tmp_path, monkeypatch):
    run = trained(tmp_path / "run", "vit12")
    real = FORMATS["torchscript"]

    def altered(export, folder, images):
        return real.run(export, folder, images) + 2e-3

    monkeypatch.setitem(FORMATS, "torchscript", type(real)(real.files, real.write, altered))
    with pytest.raises(ExportError, match=r"differ by 2.0e-03 .*; nothing was exported"):
        export_backbone(run, "torchscript", tmp_path / "out")
    assert names(tmp_path) == ["run"]
    monkeypatch.setitem(
        FORMATS, "torchscript", type(real)(real.files, real.write, lambda *_: torch.full((1, 64), torch.nan))
    )
    with pytest.raises(ExportError, match="differ by nan"):
        largest_difference(Export(load_backbone(run), 64, "cls"), "torchscript", tmp_path)
    monkeypatch.setitem(FORMATS, "torchscript", type(real)(real.files, real.write, lambda *_: torch.zeros(1, 32)))
    with pytest.raises(ExportError, match=r"embeddings \(1, 32\), expected \(1, 64\)"):
        largest_difference(Export(load_backbone(run), 64, "cls"), "torchscript", tmp_path)


def test_the_command_line(tmp_path, capsys):
    run = trained(tmp_path / "run", "vit12")
    out = tmp_path / "exports" / "deep"
    assert main([str(run), "--format", "safetensors", "--out", str(out), "--size", "32"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: safetensors, embeddings within 0.0e+00")
    assert load_backbone(out).input_size == 32
    assert main([str(run), "--format", "safetensors", "--out", str(out)]) == 0
    assert load_backbone(out).input_size == 64  # replaced
    assert names(out.parent) == ["deep"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "60"], "error: --size 60: image of 60 x 60 px: each side must be a positive multiple of the patch"),
        (["--size", "-64"], "error: --size -64: "),
        (["--out", "FILE"], "is a file; give a folder"),
    ],
)
def test_errors_of_the_command_line(tmp_path, capsys, arguments, message):
    run = trained(tmp_path / "run", "vit12")
    arguments = [str(run / "teacher.safetensors") if word == "FILE" else word for word in arguments]
    command = [str(run), "--format", "safetensors", "--out", str(tmp_path / "out"), *arguments]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert names(tmp_path) == ["run"]


def test_no_checkpoint_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "nothing"), "--format", "onnx", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: checkpoint '")


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "python -m dinov2.models.export runs/mvhybrid --format timm" in capsys.readouterr().out


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"ONNX needs onnxruntime.*pip install 'dinov2-pathology\[export\]'"):
        export_backbone(trained(tmp_path / "run", "vit12"), "onnx", tmp_path / "out")
    assert names(tmp_path) == ["run"]


def test_without_a_folder_it_is_written_beside_the_weights(tmp_path, capsys):
    run = trained(tmp_path / "run")
    assert main([str(run), "--format", "safetensors"]) == 0
    assert (run / "export" / "safetensors" / "model.safetensors").is_file()
    assert main([str(run / "teacher.safetensors"), "--format", "timm"]) == 0
    assert (run / "export" / "timm" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--out", "/proc/nobody/x"], "--out '/proc/nobody/x' cannot be made"), (["--size", "0"], "--size 0: image of 0")],
)
def test_what_cannot_be_written_is_said(tmp_path, capsys, arguments, message):
    assert main([str(trained(tmp_path / "run")), "--format", "timm", *arguments]) == 2
    assert message in capsys.readouterr().err
