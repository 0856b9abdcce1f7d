"""What was measured, by question: the sections of docs/benchmarks.md (`page.py`)."""

from quality_questions import QUALITY
from question import CRITEO, Question, Table

SPEED = "samples_per_second"
BY_BATCH = "by_batch_size"

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
        "What do a bag of embeddings and blocks gain in a step of LightGCN?",
        "lightgcn_step",
        ("python benchmarks/lightgcn_step.py",),
        (Table("median of the ratios", ("times",)),),
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
