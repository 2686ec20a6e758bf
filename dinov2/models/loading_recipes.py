"""How exported weights are loaded, by format: the texts of a model card, with its values in braces."""

TRIDENT = """\
```python
import timm, torch
from torchvision import transforms
from trident.patch_encoder_models import CustomInferenceEncoder

{model}
transform = transforms.Compose([
    transforms.Resize({size}, interpolation=transforms.InterpolationMode.BICUBIC),
    transforms.CenterCrop({size}),
    transforms.ToTensor(),
    transforms.Normalize(mean={mean}, std={std}),
])
encoder = CustomInferenceEncoder("{name}", model.eval(), transform, torch.float32)
```
"""
LOADING: dict[str, str] = {
    "timm": """\
```python
import timm
import dinov2.models  # registers the architecture with timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
```

The same weights under an architecture's name:
`timm.create_model("{architecture}", checkpoint_path="FOLDER/model.safetensors"{arguments})`.
""",
    "safetensors": """\
```python
from dinov2.models.weights import load_backbone

loaded = load_backbone("FOLDER/model.safetensors")
features = loaded.model.forward_features(images)  # x_norm_clstoken (B, {width}), x_norm_patchtokens (B, N, {width})
```

With timm, which knows the architecture once `dinov2.models` is imported:
`timm.create_model("{architecture}", checkpoint_path="FOLDER/model.safetensors"{arguments})`.
""",
    "torchscript": """\
```python
import torch

model = torch.jit.load("FOLDER/model.torchscript.pt", map_location="cpu")
embeddings = model(images)  # (B, 3, {size}, {size}) -> (B, {dim})
```

Nothing but PyTorch is needed. The batch size is free, the image size is not.
""",
    "onnx": """\
```python
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
embeddings = session.run(None, {{"images": images}})[0]  # float32 (B, 3, {size}, {size}) -> (B, {dim})
```

The batch size is free, the image size is not.
""",
}
