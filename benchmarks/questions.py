"""What was measured, by question: the sections of docs/benchmarks.md (`page.py`)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Some figures of a result file.

    Attributes:
        title: what they are, with their unit.
        path: keys that lead to them; `*` stands for every key, which is then a row.
        swap: let the keys of `*` be columns.
    """

    title: str
    path: tuple[str, ...]
    swap: bool = False


@dataclass(frozen=True)
class Question:
    """One result file.

    Attributes:
        text: what was asked.
        result: name of the file below benchmarks/results, without its ending.
        commands: that write it again.
        tables: what is shown of it.
    """

    text: str
    result: str
    commands: tuple[str, ...]
    tables: tuple[Table, ...]


SPEED = "samples_per_second"
BY_BATCH = "by_batch_size"
CRITEO = "adrec prepare --config configs/criteo_kaggle.yaml --out RUN data.raw=FILE"

TRAINING = (
    Question(
        "How fast do our towers train beside a plain TorchRec trainer, and beside dense"
        " tables under Adam?",
        "training",
        ("python benchmarks/training.py --batch-size 2048 8192",),
        (
            Table("samples a second, by batch size", (BY_BATCH, "*", SPEED), swap=True),
            Table(
                "times as fast as the plain TorchRec trainer",
                (BY_BATCH, "*", "times_faster_than_torchrec_plain"),
                swap=True,
            ),
            Table(
                "times as fast as dense tables under Adam",
                (BY_BATCH, "*", "times_faster_than_dense_adam"),
                swap=True,
            ),
        ),
    ),
    Question(
        "Do trainers of the same loss learn the same?",
        "training_auc",
        ("python benchmarks/training_auc.py RUN/data --seeds 0 1 2 3 4 5",),
        (Table("test AUC", ("test_auc",)),),
    ),
    Question(
        "How much memory does a trainer take?",
        "training_memory",
        ("python benchmarks/training.py --memory",),
        (Table("peak, MB, by batch size", (BY_BATCH,)),),
    ),
    Question(
        "What do two ranks of one thread give on one machine?",
        "training_ranks",
        ("python benchmarks/training.py --ranks",),
        (
            Table("samples a second, by batch size", ("*", SPEED), swap=True),
            Table("two ranks over one", ("*", "two_ranks_over_one")),
        ),
    ),
    Question(
        "How fast does each ranker train, beside a plain TorchRec DLRM?",
        "ranker_speed",
        (CRITEO, "python benchmarks/ranker_speed.py RUN/data --rounds 5"),
        (
            Table("samples a second", (SPEED,)),
            Table("times the plain trainer", ("times_the_plain_trainer",)),
        ),
    ),
    Question(
        "Is a training step slower or faster than in an older commit?",
        "before",
        (
            "git worktree add /tmp/before COMMIT",
            "python benchmarks/before.py /tmp/before",
        ),
        (
            Table("samples a second, by batch size", (BY_BATCH, "*", SPEED)),
            Table("median of the ratios", (BY_BATCH, "*", "median_of_ratios")),
        ),
    ),
    Question(
        "How many operations does a training step call?",
        "before_operations",
        (
            "git worktree add /tmp/before COMMIT",
            "python benchmarks/before.py /tmp/before",
        ),
        (Table("operations a step, by batch size", ("*", "*", "total")),),
    ),
)

DATA = (
    Question(
        "How fast is `adrec prepare` beside polars' bare parse and plain Python?",
        "prepare",
        ("python benchmarks/prepare.py",),
        (
            Table("rows a second", ("rows_per_second",)),
            Table("prepare's speed over it", ("prepare_over",)),
            Table("peak memory, GB", ("peak_memory_gb",)),
        ),
    ),
    Question(
        "How fast do Parquet files become batches, beside a bare read of the columns?",
        "loading",
        ("python benchmarks/loading.py",),
        (
            Table("rows a second: bare read, and by batch size", ("rows_per_second",)),
            Table("times the bare read is as fast", ("bare_read_times_faster",)),
        ),
    ),
    Question(
        "What do several ranks of one machine read together?",
        "loading_ranks",
        ("python benchmarks/loading.py --ranks 1 2 4",),
        (Table("rows a second of all ranks", ("rows_per_second_of_all_ranks",)),),
    ),
    Question(
        "What does training lose by reading?",
        "loading_train",
        ("python benchmarks/loading.py --train",),
        (
            Table("samples a second", (SPEED,)),
            Table("share lost", ("lost_to_loading",)),
        ),
    ),
)

QUALITY = (
    Question(
        "Which ranker predicts best on Criteo, LightGBM among them?",
        "rankers",
        (
            CRITEO,
            "python benchmarks/rankers.py RUN/data --keep FOLDER --seeds 0 1 2",
            "python benchmarks/ranker_table.py RUN/data FOLDER --name rankers",
        ),
        (Table("mean (deviation) over the seeds", ("fits",)),),
    ),
    Question(
        "What do plain towers and a plain ranker reach on Criteo?",
        "criteo_kaggle",
        (
            "python benchmarks/runs.py --config configs/criteo_kaggle_plain.yaml"
            " --name criteo_kaggle --seeds 0 1 2 --set data.raw=PATH",
        ),
        (Table("test rows", ("summary",)),),
    ),
    Question(
        "Does a refit on the validation rows help the ranker on later rows?",
        "refit",
        (CRITEO, "python benchmarks/refit.py RUN/data --seeds 0 1 2"),
        (Table("mean (deviation) over the seeds", ("runs",)),),
    ),
    *(
        Question(
            f"Does the second stage improve the list ({name})?",
            f"second_stage_{name}",
            (f"python benchmarks/second_stage.py configs/{name}.yaml",),
            (Table("test rows", ("summary",)),),
        )
        for name in ("synthetic_demo", "kuairand")
    ),
    *(
        Question(
            f"One ranker of three labels or three rankers (KuaiRand, {label})?",
            "multi_task",
            (
                "adrec prepare --config configs/kuairand_two_logs.yaml --out RUN"
                " data.raw=FOLDER",
                "python benchmarks/multi_task.py RUN/data --seeds 0 1 2",
            ),
            (Table("mean (deviation) over the seeds", ("labels", label)),),
        )
        for label in ("click", "engagement", "value")
    ),
    *(
        Question(
            f"How near do towers come to what a known law allows ({size})?",
            result,
            (command,),
            (Table("mean (deviation) over the seeds", ("summary",)),),
        )
        for size, result, command in (
            (
                "the size of the demo",
                "known_world",
                "python benchmarks/known_world.py --seeds 0 1 2",
            ),
            (
                "ten million rows",
                "known_world_10m",
                "python benchmarks/known_world.py --name known_world_10m --seeds 0 1 2"
                " --set 'data.synthetic={rows: 10000000, ads: 50000, users: 10000}'"
                " train.batch_size=2048",
            ),
            (
                "ten million rows, wide",
                "known_world_10m_wide",
                "python benchmarks/known_world.py --name known_world_10m_wide --seeds 0"
                " --set 'data.synthetic={rows: 10000000, ads: 50000, users: 10000}'"
                " train.batch_size=1024 train.precision=bfloat16"
                " retrieval.embedding_dim=32 'retrieval.hidden=[512]'",
            ),
        )
    ),
    *(
        Question(
            f"How near does the served score come, with {int(rows):,} rows?",
            "known_world_curve",
            ("python benchmarks/known_world_curve.py",),
            (Table("of the seeds that were run", ("runs", rows)),),
        )
        for rows in ("120000", "1000000")
    ),
    Question(
        "How much of the best list's worth is lost in a known world?",
        "regret",
        ("adrec run --demo", "python benchmarks/regret.py --run runs/demo"),
        (Table("share lost, mean (deviation) over the worths", ("regret",)),),
    ),
)

INDEX = (
    Question(
        "Our index, hnswlib and usearch at equal recall?",
        "index_peers",
        ("python benchmarks/index_peers.py",),
        (Table("at equal recall, a row each", ("equal",)),),
    ),
    Question(
        "Does `auto` choose well at a million ads?",
        "index",
        ("python benchmarks/index.py",),
        (Table("by kind", ("grid",)),),
    ),
    Question(
        "How much memory does a rank need to build an index?",
        "index_build",
        ("python benchmarks/index_build.py",),
        (Table("a build a row", ("builds",)),),
    ),
    Question(
        "How soon is a new ad found while the server answers?",
        "index_delta",
        ("python benchmarks/index_delta.py --minutes 10 --rate 1",),
        (
            Table("an update, ms", ("update_ms",)),
            Table("found after, ms", ("found_ms",)),
            Table("an answer, ms", ("answer_ms",)),
        ),
    ),
    Question(
        "Does an ineligible ad ever come back?",
        "index_eligible",
        ("python benchmarks/index_eligible.py --queries 1000000",),
        (
            Table("queries", ("queries",)),
            Table("ineligible ads that came back", ("ineligible",)),
            Table("the least recall of a kind", ("least_recall",)),
        ),
    ),
)

SERVING = (
    Question(
        "What does it save to compute the user once for 500 candidates?",
        "serving",
        ("python benchmarks/serving.py --run runs/demo",),
        (
            Table("milliseconds", ("milliseconds",)),
            Table("times as fast", ("times_faster_once",)),
        ),
    ),
    *(
        Question(
            f"How long does it take to rank 500 candidates{kind}?",
            result,
            (CRITEO, "python benchmarks/ranking_latency.py RUN/data"),
            (Table("milliseconds", ("milliseconds",)),),
        )
        for kind, result in (
            ("", "ranking_latency"),
            (" with the recommended ranker", "ranking_latency_recommended"),
        )
    ),
    Question(
        "What do wrong requests do to an innocent client?",
        "server_attack",
        ("python benchmarks/server_attack.py --run runs/demo",),
        (Table("99th percentile, attacked over quiet", ("attacks", "*", "p99_ratio")),),
    ),
    Question(
        "How does the server behave at 80% of what it can do, and above it?",
        "server_load",
        ("python benchmarks/server_load.py --run runs/demo --minutes 10",),
        (
            Table("requests a second at saturation", ("saturation_qps",)),
            Table("at 80%, ms and counts", ("at_80_percent",)),
        ),
    ),
)

FAILURE = (
    Question(
        "Does training that lost ranks end as if nothing had happened?",
        "chaos",
        ("python benchmarks/chaos.py --runs 20",),
        (Table("", ("summary",)),),
    ),
)

GPU = tuple(
    Question(
        text,
        result,
        ("make gpu-check",),
        (
            Table("samples a second, by batch size", ("speed", "*", SPEED), swap=True),
            Table(
                "times the plain trainer in float32",
                ("speed", "*", "times_plain_float32"),
                swap=True,
            ),
        ),
    )
    for text, result in (
        ("How fast is a training step on one H200?", "gpu_h200"),
        ("Does the GPU's check run on a CPU? (small, no speed)", "gpu_cpu"),
    )
)

SECTIONS: dict[str, tuple[Question, ...]] = {
    "Training": TRAINING,
    "Data": DATA,
    "Quality": QUALITY,
    "Index": INDEX,
    "Serving": SERVING,
    "Failures": FAILURE,
    "One GPU": GPU,
}
