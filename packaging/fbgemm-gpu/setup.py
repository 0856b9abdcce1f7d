"""An empty wheel named `fbgemm-gpu` for machines without a GPU.

torchrec requires `fbgemm-gpu`, a CUDA build, which pip would unpack over the files of
`fbgemm-gpu-cpu`; the import then fails or crashes. This wheel satisfies the
requirement and brings the CPU build instead. Install it before, or together with,
torchrec.
"""

from setuptools import setup

setup(
    name="fbgemm-gpu",
    version="1.8.0+cpu",
    description="Stands in for fbgemm-gpu where only fbgemm-gpu-cpu is wanted",
    install_requires=["fbgemm-gpu-cpu==1.8.0"],
    py_modules=[],
)
