"""Self-supervised pretraining of pathology vision foundation models: DINOv2 over six isotropic backbones."""

__version__ = "0.1.0"
