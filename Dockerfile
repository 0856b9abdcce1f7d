# Images for torchx's schedulers `local_docker` and `kubernetes` (launch/README.md).
# hadolint checks this file (`make lint-docker`); neither target was built where it was
# written. What it is told to pass over:
# hadolint global ignore=DL3008
# (Debian's mirrors keep only the newest release of a package, so a pin breaks the build.)
#   docker build --target cpu -t adrec:cpu .
#   docker build --target cuda -t adrec:cuda .
# torchx starts `python -m torchrec_adrec` in it, so there is no entry point.

FROM python:3.11-slim AS cpu
# OpenMP, which faiss and torch share.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/adrec
COPY constraints.txt setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY packaging packaging
COPY launch launch
COPY configs configs
COPY torchrec_adrec torchrec_adrec
# The stub goes in together with torchrec, as in the Makefile: without it pip takes the
# CUDA build of fbgemm and unpacks it over the CPU build.
RUN pip install --no-cache-dir --constraint constraints.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu \
        ./packaging/fbgemm-gpu ".[cpu,serve]" \
    && adrec doctor
WORKDIR /work

FROM python:3.11-slim AS cuda
# torch's wheels bring CUDA; the driver is the host's. fbgemm and triton compile kernels.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/adrec
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY launch launch
COPY configs configs
COPY torchrec_adrec torchrec_adrec
# setup.py pins torch, fbgemm, torchrec, torchx and faiss.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[gpu,serve]"
WORKDIR /work
