"""Settings of the index over all ads."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from torchrec_adrec.config.base import Count, Fraction, Rate, Settings

IndexDevice = Literal["auto", "cpu", "gpu"]


class IndexConfig(Settings):
    """The FAISS index over all ads, in shards."""

    kind: Literal[
        "auto",
        "exact",
        "ivf_flat",
        "ivf_sqfp16",
        "ivf_sq8",
        "ivf_sq8_refined",
        "ivf_pq_refined",
        "ivf_rabitq_refined",
        "pca_ivf_sq8_refined",
        "hnsw",
    ] = "auto"
    """auto: exact where that is as fast (up to 100,000 ads, more than 1% of all ads
    retrieved, or vectors without near neighbours), else inverted lists of the code that
    suits the vectors. It says what it chose and why. The other kinds stand in
    docs/index.md with what was measured of each."""
    build: dict[str, Annotated[int, Field(ge=0)]] = Field({})
    """Build parameters of the kind, as {nlist: 4000}; those that are left out follow
    from the number of ads and the width of a vector. `auto` takes none."""
    search: dict[str, Rate] = Field({})
    """Search parameters that are not to be tuned, as {nprobe: 64}. The recall that they
    give is measured all the same."""
    memory_gib: Rate = 0
    """Memory that `auto` may fill with the index, in GiB; 0: as much as it takes."""
    shards: Count = 2
    """Number of files in which the index lies. At least the number of ranks that build
    it, because a rank works on whole files."""
    device: IndexDevice = "cpu"
    """Where lists are trained, ads are assigned to them, and searches run, also when
    serving. auto: on the NVIDIA GPUs that FAISS sees, or else on the CPU, and it says
    which. gpu: an error where there is none, or where kind, size or candidates do not
    fit one. What nobody has run on more than one card stands in docs/gpu.md."""
    target_recall: Fraction = 0.95
    """Recall at `recommend.candidates`, against brute force, below which the index is
    not published."""
    queries: Count = 1_000
    """Number of held-out users whose ads the gate searches. Half of them choose the
    search parameters, the other half judge them."""
    keep_versions: Count = 3
    """Number of published versions that stay, the current one among them: `adrec
    versions rollback` goes back to one at once."""
    max_changed: Fraction = 0.05
    """Share of the index's ads that `adrec index update` may add, replace or remove
    before `adrec index compact` must build them in: added ads are compared one by one
    in every search, and removed ones are passed over."""

    @model_validator(mode="after")
    def _auto_builds_as_it_chooses(self) -> Self:
        if self.kind == "auto" and self.build:
            raise ValueError("build parameters need a kind: name one beside `build`")
        return self
