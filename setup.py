"""Installation: ranges here, the tested versions in requirements.txt."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "dinov2" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)
SLIDES = [
    "openslide-python>=1.4",
    "openslide-bin>=4.0",
    "tifffile>=2024.1",
    "imagecodecs>=2024.1",
    "opencv-python-headless>=4.9",
]
EXPORT = ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"]

setup(
    name="dinov2-pathology",
    version=VERSION,
    description="DINOv2 pretraining of pathology foundation models over six isotropic backbones, and their evaluation",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["dinov2", "dinov2.*", "eval", "eval.*"]),
    package_data={"dinov2.ops": ["*.h", "*/*.c"], "eval": ["results.schema.json"]},
    install_requires=[
        "torch>=2.7",
        "torchvision>=0.22",
        "timm>=1.0.15",
        "einops>=0.8",
        "omegaconf>=2.3",
        "submitit>=1.5",
        "fvcore>=0.1.5.post20221221",
        "tensorboardX>=2.6",
        "safetensors>=0.4",
        "numpy>=1.26",
        "pillow>=10",
        "simplejpeg>=1.7",
        "tqdm>=4.66",
        "pandas>=2.1",
        "scikit-learn>=1.4",
        "scipy>=1.15",
        "pyyaml>=6",
        "h5py>=3.10",
        "anndata>=0.10.8",
        "matplotlib>=3.8",
        "huggingface_hub>=0.25",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.14",
            "scanpy>=1.10",
            *EXPORT,
            *SLIDES,
            "jsonschema>=4.20",
        ],
        "bench": ["mambapy==1.2.0"],  # a peer of scripts/bench/selective_scan.py, as it was measured
        "export": EXPORT,
        "slides": SLIDES,
        "xformers": ["xformers>=0.0.30"],
        "mamba": ["mamba-ssm>=2.2", "causal-conv1d>=1.5"],
    },
)
