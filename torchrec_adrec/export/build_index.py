"""Exported vectors -> index shards on all ranks -> gate -> a published index.

index/
  shard-00000.faiss ...    some of the inverted lists, or of the ads by rising id
  ids.npy                  the ad of every number, by rising id
  manifest.json            made from what, kind, build and search parameters, sha256
  absorbed.npz             the changes of the ads that it was built with, if any
  gate.json, gate.png      what was measured against brute force on held-out users
  metrics.json             the recall alone
"""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from torchrec_adrec.arrays import Float32s
from torchrec_adrec.config.index import IndexConfig
from torchrec_adrec.data.catalog import load_catalog
from torchrec_adrec.distributed.process import Process
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.evaluation.pictures import gate_picture
from torchrec_adrec.evaluation.ranking_metrics import popularity_deciles
from torchrec_adrec.export.export import QUERIES
from torchrec_adrec.index.brute_force import Answers, brute_force
from torchrec_adrec.index.build import build_files
from torchrec_adrec.index.changes import Changes
from torchrec_adrec.index.choose import SAMPLE, Choice, Purpose, choose
from torchrec_adrec.index.device import check_limits, find_gpus, place
from torchrec_adrec.index.embeddings import ChangedEmbeddings, Embeddings
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.gate import gate_questions, tune_and_validate
from torchrec_adrec.index.kinds import derive_kind, open_kind
from torchrec_adrec.index.manifest import IDS, Gate, IndexManifest, load_vectors
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.updated import ABSORBED, Absorbed
from torchrec_adrec.runs.ad_changes import open_changes
from torchrec_adrec.runtime.files import check_files, sha256
from torchrec_adrec.runtime.ranks import SingleProcess, told_by_first
from torchrec_adrec.schema import AD_ID
from torchrec_adrec.tasks.sharded import check_origin, final_checkpoint

CHOICE = "choice.json"  # what the first rank tells the others
log = logging.getLogger(__name__)


def build_index(
    embeddings: Path,
    settings: IndexConfig,
    process: Process,
    out: Path,
    *,
    k: int,
    seed: int,
) -> None:
    """Build and measure an index. Collective; the caller renames the folder.

    Args:
        embeddings: what `export` wrote, in the folder of the run.
        settings: kind and sizes, number of shards, what the gate asks for.
        process: this rank.
        out: an existing folder.
        k: number of ads retrieved when serving; the gate measures the recall of as
            many.
        seed: of the sample that the index is trained on, and of the gate's users.

    Raises:
        ConfigError: the settings do not fit so few ads.
        ManifestError: the exported parts are damaged or incomplete, or from other
            towers than those that will be served.
        GateError: the index is too far from brute force.
    """
    embedded, changes = _open_export(embeddings)
    queries = _held_out_users(embeddings, settings.queries, seed)
    gpus = find_gpus(settings.device)
    on_gpu = gpus is not None
    choice = _choice(settings, embedded, queries, k, seed, process, out, on_gpu)
    kind = choice.kind
    layout = build_files(kind, embedded, settings.shards, seed, process, out, gpus)
    questions = gate_questions(queries, embedded.count, k)
    answers = brute_force(embedded, questions, process, out)
    if answers is None:  # the first rank measures
        return
    # Opened from the files: what is measured is what serving will read.
    index = ShardedIndex.open(out, layout, kind)
    if gpus is not None:
        place(index, settings.device, k, tuned=False)
    exported = _with_popularity(embedded, changes, answers)
    target, fixed = settings.target_recall, settings.search
    gate = tune_and_validate(
        index, exported, queries, k, target, fixed, exact=answers.tops
    )
    if settings.device == "gpu":
        check_limits(k, index.setting)  # of the setting that was tuned
    size = sum((out / name).stat().st_size for name in layout.names)
    names = [*layout.names, IDS]
    if changes.name:
        Absorbed.of(changes).save(out)
        names.append(ABSORBED)
    gate = gate.model_copy(
        update={"bytes_per_ad": size / index.count, "choice": choice.reason}
    )
    manifest = IndexManifest(
        embeddings=embedded.manifest,
        kind=kind.name,
        build=dict(vars(kind)),
        search=index.setting,
        count=index.count,
        layout=layout,
        changes=changes.name,
        files={name: sha256(out / name) for name in names},
        gate=gate,
    )
    manifest.save(out)
    _write_report(gate, out)
    log.info("index: %s", manifest.summary)


def _choice(
    settings: IndexConfig,
    embedded: Embeddings,
    queries: Float32s,
    k: int,
    seed: int,
    process: Process,
    out: Path,
    on_gpu: bool,
) -> Choice:
    """Take the kind that the settings name, or let the vectors decide. Collective."""
    count, dim = embedded.count, embedded.manifest.dim
    if settings.kind != "auto":
        kind = derive_kind(settings.kind, settings.build, count, dim)
        return Choice(kind, "index.kind names it")
    # The sample reads all parts, of which each rank has looked at its own: a damaged
    # one would be an error of Parquet, or wrong vectors.
    embedded.check(embedded.share(process.rank, process.world_size))
    process.barrier()
    text = ""
    if process.is_first:
        memory = settings.memory_gib * 2**30
        purpose = Purpose(count, k, settings.target_recall, memory, on_gpu)
        choice = choose(embedded.sample(SAMPLE, seed), queries, purpose)
        log.info("index: %s, because %s", choice.kind.name, choice.reason)
        name, build = choice.kind.name, dict(vars(choice.kind))
        text = json.dumps([name, build, choice.reason])
    # Timings and rounding may not let every rank decide for itself.
    name, build, reason = json.loads(told_by_first(process, text, out / CHOICE))
    return Choice(open_kind(name, build), reason)


def exported_vectors(run: Path, users: int, seed: int) -> tuple[Exported, Float32s]:
    """Open all exported ads, and held-out users as the gate draws them, (B, D).

    Args:
        run: its folder.
        users: at most so many.
        seed: of the draw.

    Raises:
        ManifestError: the files of the export are damaged, or of other ads.
    """
    embedded, changes = _open_export(run / "export")
    embedded.check(range(len(embedded.manifest.parts)))
    with TemporaryDirectory() as folder:
        answers = brute_force(embedded, (), SingleProcess(), Path(folder))
    assert answers is not None  # of the only rank
    queries = _held_out_users(run / "export", users, seed)
    return _with_popularity(embedded, changes, answers), queries


def _with_popularity(
    embedded: Embeddings, changes: Changes, answers: Answers
) -> Exported:
    """Open the exported vectors, with each ad's decile of the training impressions.

    Raises:
        ManifestError: the catalog holds other ads.
    """
    # The ids as they were exported, and not as the index holds them: the gate compares.
    ids = embedded.ids()
    run = embedded.folder.parent
    catalog = changes.applied_to(load_catalog(run / "data"))
    if not np.array_equal(catalog[AD_ID].to_numpy(), ids):
        raise ManifestError(
            f"{run / 'data'} holds other ads than {run / 'export'}; run `adrec export`"
            " again"
        )
    groups = popularity_deciles(catalog["impressions"].to_numpy())
    return Exported(ids, answers.vectors, groups, answers.lengths)


def _write_report(gate: Gate, out: Path) -> None:
    """Write what the gate measured: whole, as a picture, and in short for a run."""
    report = gate.model_dump(mode="json")
    (out / "gate.json").write_text(json.dumps(report, indent=1) + "\n")
    figures = {"k": gate.k, "recall": gate.recall, "target_recall": gate.target_recall}
    (out / "metrics.json").write_text(json.dumps(figures, indent=1) + "\n")
    gate_picture(report, out / "gate.png")


def _open_export(folder: Path) -> tuple[Embeddings, Changes]:
    """Open a whole export, made from the towers that will be served, as it is changed.

    Raises:
        ManifestError: as of `build_index`.
    """
    exported = Embeddings.open(folder)
    files = exported.manifest.files
    # The parts are compared by the ranks that read them, each its own.
    others = {n: files[n] for n in files if n not in exported.manifest.parts}
    check_files(folder, others)
    towers = final_checkpoint(folder.parent / "retrieval")
    check_origin(folder, exported.manifest.checkpoint, towers)
    changes = open_changes(folder.parent, exported.manifest)
    if not changes.name:
        return exported, changes
    return ChangedEmbeddings(folder, exported.manifest, changes), changes


def _held_out_users(embeddings: Path, count: int, seed: int) -> Float32s:
    """Draw at most `count` of the exported users, (B, D)."""
    _, users = load_vectors(embeddings, QUERIES)
    order = np.random.default_rng(seed).permutation(len(users))
    return users[order[:count]]
