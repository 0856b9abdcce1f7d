"""Adds, replaces and removes while a server answers: how soon and how right is it?

    python benchmarks/index_delta.py --minutes 10 --rate 1

Every update adds one ad, replaces one and removes one (`adrec index update`, in this
process, with models that stay loaded), at so many updates a second, while users ask
`adrec serve` for all their candidates, at so many queries a second:

- found: from when an update is published to the end of the first answer that holds the
  new ad, to a user among whose best it is by brute force, who asks without a pause;
- returned: answers that hold an ad which was removed before, in the version that the
  answer names or over a second ago, and answers that hold an ad twice;
- recall against brute force of an index of lists, before the first update and after
  every half minute, and after `adrec index compact`.

The run (30,000 named ads, small models) is made once, in --folder.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from named_run import BRANDS, K, make_run
from served_now import ASKED, Served
from server_process import Connection, percentiles, serving
from timing import keep_result

from torchrec_adrec.export.ad_file import AdIds, AdRows
from torchrec_adrec.export.update import Updater
from torchrec_adrec.runs.ad_changes import changes_name

LATE, RECALL_SECONDS, LONGEST = 1.0, 30, 30.0


def main() -> None:
    """Make the run, update and ask, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=1, help="updates a second")
    parser.add_argument("--queries", type=float, default=5, help="queries a second")
    parser.add_argument("--folder", type=Path, default=Path("runs/index_delta"))
    args = parser.parse_args()
    base = args.folder / "run"
    make_run(base)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        run = Path(folder) / "run"
        shutil.copytree(base, run, symlinks=True)
        with serving(run, Path(folder) / "server.log") as server:
            trial = Trial(run, server.port)
            figures = asyncio.run(trial.run_for(args.minutes * 60, args))
            figures["compaction"] = trial.compacted()
    keep_result("index_delta", figures)


@dataclass
class Trial:
    """Updates one run and asks its server.

    Attributes:
        run: its folder.
        port: of the server.
        removed: id -> version number of the changes and time of its removal.
        seconds: of answers, `waits`: until a new ad was in one, `apply`: of updates.
    """

    run: Path
    port: int
    removed: dict[str, tuple[int, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    apply: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.updater = Updater(self.run)
        self.served = Served(self.run)
        self.rng = np.random.default_rng(1)
        self.left = self.rng.permutation(self.served.exported.ids)
        self.names = dict(self.updater.ads.catalog.select("ad_id", "raw_item").rows())
        self.ends = 0.0

    async def run_for(self, seconds: float, args: argparse.Namespace) -> dict[str, Any]:
        """Update and ask for so long; return what was measured."""
        recalls = [self.served.recall()]
        self.ends = time.monotonic() + seconds
        load = os.getloadavg()[0]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ask(args.queries))
            group.create_task(self._update(args.rate))
            group.create_task(self._measure(recalls))
        late = sum(seconds > LATE for seconds in self.waits)
        return {
            "minutes": args.minutes,
            "updates_a_second": args.rate,
            "queries_a_second": args.queries,
            "load": [load, os.getloadavg()[0]],
            "updates": len(self.apply),
            "update_ms": milliseconds(self.apply),
            "found": len(self.waits),
            "found_ms": milliseconds(self.waits),
            "found_after_a_second": late,
            "answers": len(self.seconds),
            "answer_ms": milliseconds(self.seconds),
            "counts": dict(self.counts),
            "recall": recalls,
            "recall_lost": round(recalls[0] - min(recalls), 5),
        }

    async def _update(self, rate: float) -> None:
        number, begin = 0, time.monotonic()
        while time.monotonic() < self.ends:
            await asyncio.sleep(max(0, begin + number / rate - time.monotonic()))
            await self._one_update(number)
            number += 1

    async def _one_update(self, number: int) -> None:
        folder, schema = self.run.parent, self.updater.ads.encoder.schema
        replaced, removed = self.left[2 * number : 2 * number + 2].tolist()
        lines = ["item,brand,price", self._like_the_best(f"new{number}")]
        other = f"b{self.rng.integers(BRANDS)},{self.rng.integers(70)}"
        lines.append(f"{self.names[replaced]},{other}")
        (folder / "ads.csv").write_text("\n".join(lines) + "\n")
        (folder / "ids.txt").write_text(f"{removed}\n")
        began = time.perf_counter()
        await asyncio.to_thread(
            self.updater.apply,
            AdRows.read(folder / "ads.csv", schema),
            AdIds.read(folder / "ids.txt"),
        )
        published = time.perf_counter()
        self.apply.append(published - began)
        self.removed[str(removed)] = int(changes_name(self.run)[:6]), published
        await asyncio.to_thread(self.served.refresh)
        await self._find(f"new{number}", published)

    def _like_the_best(self, name: str) -> str:
        """Return the row of an ad with brand and price of the best one of a user."""
        best = self.served.best_of(int(self.rng.integers(ASKED)))
        rows = self.updater.ads.catalog.filter(pl.col("ad_id") == best)
        return f"{name},{rows['raw_brand'][0]},{rows['raw_price'][0]}"

    async def _find(self, item: str, published: float) -> None:
        ad = self.served.ad_of(item)
        user = self.served.user_for(ad)
        if user is None:
            self.counts["new ads of no user's best"] += 1
            return
        connection = Connection(self.port)
        while True:
            ids, _ = await self._answer(connection, user)
            waited = time.perf_counter() - published
            if str(ad) in ids:
                self.waits.append(waited)
                break
            if waited > LONGEST:
                self.counts["new ads never found"] += 1
                break
        await connection.close()

    async def _ask(self, rate: float) -> None:
        connection, number, begin = Connection(self.port), 0, time.monotonic()
        while time.monotonic() < self.ends:
            await asyncio.sleep(max(0, begin + number / rate - time.monotonic()))
            number += 1
            began = time.perf_counter()
            await self._answer(connection, number % ASKED)
            self.seconds.append(time.perf_counter() - began)
        await connection.close()

    async def _answer(self, connection: Connection, user: int) -> tuple[list[str], str]:
        """Ask for all candidates of a user, and check what must never be in them."""
        began = time.perf_counter()
        body = json.dumps({"user": self.served.users[user], "top": K}).encode()
        status, text = await connection.post(body)
        self.counts[str(status)] += 1
        if status != 200:
            return [], ""
        answer = json.loads(text)
        ids = [ad["ad_id"] for ad in answer["ads"]]
        version = answer["version"]["index"].partition("+")[2]
        number = int(version[:6]) if version else 0
        for gone in self.removed.keys() & set(ids):
            first, published = self.removed[gone]
            self.counts["removed and returned by its version"] += number >= first
            late = began - published > LATE
            self.counts["removed and returned after a second"] += late
        self.counts["an ad twice"] += len(ids) != len(set(ids))
        self.counts["short"] += len(ids) != K
        return ids, version

    async def _measure(self, recalls: list[float]) -> None:
        while time.monotonic() < self.ends:
            left = self.ends - time.monotonic()
            await asyncio.sleep(max(0.0, min(RECALL_SECONDS, left)))
            recalls.append(await asyncio.to_thread(self.served.recall))

    def compacted(self) -> dict[str, Any]:
        """Build the changes in, and measure the recall again."""
        began = time.perf_counter()
        command = [sys.executable, "-m", "torchrec_adrec", "index", "compact"]
        subprocess.run([*command, "--out", str(self.run)], check=True)
        seconds = time.perf_counter() - began
        self.served = Served(self.run)
        index = self.served.recommender.retriever.index
        return {
            "seconds": round(seconds, 1),
            "recall": self.served.recall(),
            "changed_share": getattr(index, "changed_share", None),
        }


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Return median, 99% and the longest; nothing of nothing."""
    if not seconds:
        return {}
    return percentiles(seconds) | {"longest": round(1e3 * max(seconds), 1)}


if __name__ == "__main__":
    main()
