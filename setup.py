"""Installs wd_plasticity: `pip install -e .`; exact versions are in requirements.lock."""

from pathlib import Path

from setuptools import find_packages, setup

# Upper bounds are the next release that may break us; requirements.lock pins
# what the tests were run with.
CORE = [
    "absl-py>=2.1,<3",
    "clu>=0.0.12,<0.1",
    "etils[epath]>=1.10,<2",
    "flax>=0.12,<0.13",
    "grain>=0.2.12,<0.3",
    "jax>=0.10,<0.13",
    "jinja2>=3.1.6,<4",
    "math-verify[antlr4_13_2]>=0.9,<0.10",
    "matplotlib>=3.9,<4",
    "ml-collections>=1.0,<2",
    "ml-dtypes>=0.5,<1",
    "numpy>=2.0,<3",
    "optax>=0.2.5,<0.3",
    "orbax-checkpoint>=0.12.3,<0.13",
    "plotly>=6,<8",
    "protobuf>=4.25,<8",
    "pyarrow>=17,<27",
    "rich>=13.7,<16",
    "safetensors>=0.4.3,<1",
    "scipy>=1.13,<2",
    "sentencepiece>=0.2,<0.3",
    "tensorboardX>=2.6.2,<3",
    "tensorstore>=0.1.76,<0.2",
    "tensorflow-datasets>=4.9.9,<5",
    "threadpoolctl>=3.5,<4",
    "tokenizers>=0.21,<0.24",
    "zstandard>=0.22,<1",
]

EXTRAS = {
    "cuda": ["jax[cuda12]>=0.10,<0.13"],
    "tpu": ["jax[tpu]>=0.10,<0.13"],
    "tensorflow": ["tensorflow>=2.16"],
    "wandb": ["wandb>=0.19.10"],
    "lm_eval": ["lm-eval>=0.4.13,<0.5"],
    # In an environment of its own: it needs a protobuf that is older than the lock's.
    "xmanager": ["google-cloud-bigquery>=3.20", "xmanager>=0.8.5,<0.9"],
    "docs": ["ipykernel>=6.29,<8", "latex2mathml>=3.77,<4", "myst-nb>=1.2,<2", "sphinx>=8,<10",
             "sphinx-book-theme>=1.1,<2"],
    "test": ["coverage>=7.10,<8", "pytest>=8,<10", "pytest-timeout>=2.3,<3", "pytest-xdist>=3.6,<4",
             "ruff>=0.6", "scikit-learn>=1.5,<2"],
    # torch is the independent reference of the parity suite and of bench --peer.
    "parity": ["torch>=2.4,<2.14", "transformers>=4.47,<6"],
}

setup(
    name="wd_plasticity",
    version="0.1.0",
    description="Which weight decay to pretrain with, if the model will be fine-tuned afterwards",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    if Path(__file__).with_name("README.md").exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["wd_plasticity", "wd_plasticity.*"]),
    package_data={"wd_plasticity.report": ["page.html", "page.css", "page.js"]},
    install_requires=CORE,
    extras_require=EXTRAS,
)
