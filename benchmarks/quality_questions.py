"""What was measured of the quality of predictions and lists, for docs/benchmarks.md."""

from question import CRITEO, Question, Table

LIGHTGCN = "adrec lightgcn --out RUN --dim 64"
TEN_EPOCHS = "--set train.epochs=10 train.evaluate_every=500 train.patience=null"

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
        "What does the recommended configuration reach on Criteo, raw file to ranker?",
        "criteo_kaggle_recommended",
        (
            "python benchmarks/runs.py --config configs/criteo_kaggle.yaml --name"
            " criteo_kaggle_recommended --seeds 0 1 2 --set data.raw=PATH",
        ),
        (Table("test rows", ("summary",)),),
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
    Question(
        "Does a ranker gain by retrieved ads as negatives (a small known world)?",
        "retrieved_negatives_small",
        (
            "python benchmarks/retrieved_negatives.py --out FOLDER --seeds 0 --small"
            " --name retrieved_negatives_small",
        ),
        (Table("mean (deviation) over the seeds", ("runs",)),),
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
    *(
        Question(
            f"How do recommenders of the literature do on {data}?",
            f"classics_{name}",
            (
                f"adrec prepare --config configs/{config}.yaml --out RUN data.raw=FILE",
                "python benchmarks/classics.py RUN --models popularity item_knn ease"
                f" als bpr lightgcn --name {name}",
                "python benchmarks/classics.py RUN --towers NAME=TRAINED_RUN --rerank"
                f" NAME lightgcn --name {name}",
            ),
            (Table("test, every item a candidate", ("summary",)),),
        )
        for data, name, config in (
            ("Amazon Beauty", "beauty", "amazon_beauty"),
            ("Amazon Toys and Games", "toys", "amazon_beauty"),
            ("Amazon Sports and Outdoors", "sports", "amazon_beauty"),
            ("Amazon Video Games", "games", "amazon_video_games"),
            ("MovieLens 1M", "movielens_1m", "movielens_1m"),
            ("Gowalla", "gowalla", "gowalla"),
        )
    ),
    Question(
        "How does LightGCN learn Gowalla, epoch by epoch?",
        "classics_gowalla_curve",
        (
            "adrec prepare --config configs/gowalla.yaml --out RUN data.raw=FILES",
            "python benchmarks/classics.py RUN --curve 25 --name gowalla_curve --grid"
            ' \'[{"batch": 4096, "temperature": 0.1, "rate": 0.01}]\'',
        ),
        (Table("test, every place a candidate", ("curve", "epochs")),),
    ),
    Question(
        "What do features, encoders and losses add to towers of Amazon Video Games?",
        "sweep_games_towers",
        ("adrec sweep configs/sweeps/games_towers.yaml --out FOLDER data.raw=FILE",),
        (Table("validation, two epochs each, one seed", ("validation",)),),
    ),
    *(
        Question(
            text,
            f"negatives_{name}",
            (
                "adrec prepare --config configs/amazon_beauty_attention.yaml --out RUN"
                " data.raw=FILE",
                *before,
                "python benchmarks/negatives.py configs/amazon_beauty_attention.yaml"
                f" RUN/data --name {name} --temperatures 0.07 {options}",
            ),
            (Table("test, every item a candidate", ("summary",)),),
        )
        for text, name, before, options in (
            (
                "Which loss and which negatives do towers of Amazon Beauty need?",
                "beauty_ten_epochs",
                (),
                TEN_EPOCHS,
            ),
            (
                "What do towers of Amazon Beauty reach?",
                "beauty",
                (),
                "--seeds 0 1 2 --rows 'softmax, mixed, log_q without_positive'",
            ),
            *(
                (
                    f"What do towers of Amazon {data} reach?",
                    data.split()[0].lower(),
                    (),
                    "--rows 'softmax, mixed, log_q without_positive'",
                )
                for data in ("Toys and Games", "Sports and Outdoors")
            ),
            (
                "What do vectors of LightGCN add to towers of ten epochs (Beauty)?",
                "beauty_lightgcn",
                (LIGHTGCN,),
                f"{TEN_EPOCHS} --vectors RUN/lightgcn",
            ),
            (
                "What do towers reach that start with them (Beauty)?",
                "beauty_lightgcn_whole",
                (LIGHTGCN,),
                "--rows started --seeds 0 1 --vectors RUN/lightgcn",
            ),
            (
                "What do negatives add that an earlier run mined (Beauty)?",
                "beauty_mined",
                ("adrec train retrieval --out RUN",),
                f"{TEN_EPOCHS} --rows mined --mined"
                " RUN/retrieval/checkpoints/step-NUMBER",
            ),
        )
    ),
    *(
        Question(
            f"Which encoder of a history do towers of {data} need?",
            f"encoders_{name}",
            (
                f"python benchmarks/history_encoders.py configs/{config}.yaml --seeds 0"
                f" 1 2 --name encoders_{name} --set data.raw=FILE{further}",
            ),
            (Table("mean (deviation) over the seeds", ("figures",)),),
        )
        for data, name, config, further in (
            ("KuaiRand", "kuairand", "kuairand", ""),
            (
                "Yelp (S3-Rec)",
                "yelp",
                "amazon_beauty_attention",
                " train.epochs=5 train.evaluate_every=0 train.patience=null",
            ),
        )
    ),
    Question(
        "How much of the best list's worth is lost in a known world?",
        "regret",
        ("adrec run --demo", "python benchmarks/regret.py --run runs/demo"),
        (Table("share lost, mean (deviation) over the worths", ("regret",)),),
    ),
)
