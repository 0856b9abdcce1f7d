"""The gate: every index is measured against brute force before it is published."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from torchrec_adrec.arrays import Float32s, Float64s, Int64s
from torchrec_adrec.errors import GateError
from torchrec_adrec.index.brute_force import ExactTop, Question
from torchrec_adrec.index.exported import Exported
from torchrec_adrec.index.gate_checks import (
    check_answer,
    check_ids,
    check_lengths,
    self_hits,
)
from torchrec_adrec.index.kinds.kind import SearchGrid, SearchSetting, describe
from torchrec_adrec.index.manifest import FilteredSearch, Gate, GroupRecall
from torchrec_adrec.index.sharded import ShardedIndex
from torchrec_adrec.index.trial import Trial, interval_of_mean
from torchrec_adrec.index.tune import more_thorough

TIMED = 200  # single queries of the chosen setting
COLD = 10  # the number of the group of ads without impressions in training
# Eligible shares of the ads for which a setting is tuned, from the largest down, until
# comparing every eligible ad is as fast.
SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
FILTERED_USERS = 100


def tune_and_validate(
    index: ShardedIndex,
    exported: Exported,
    queries: Float32s,
    k: int,
    target: float,
    fixed: SearchSetting | None = None,
    shares: Sequence[float] = SHARES,
    exact: Sequence[ExactTop] | None = None,
) -> Gate:
    """Choose the cheapest search settings that reach the target recall, and prove them.

    Half of the users choose the setting and the other half judge it: a setting that
    just reaches the target on some users would miss it on others half of the time.

    Args:
        index: its `setting` and `filtered` are replaced by the chosen ones.
        exported: what it was built from.
        queries: (B, D), held-out users.
        k: number of ads that are retrieved when serving.
        target: recall against brute force.
        fixed: search parameters that are not to be tuned.
        shares: of the ads that are eligible, for which a search is tuned too.
        exact: answers to `gate_questions`, which all ranks have searched together;
            None: brute force over all vectors by this one.

    Raises:
        GateError: the shards do not hold each exported ad once, an exported vector is
            not finite, no setting reaches the target recall, an answer holds an ad
            twice, or scores or stored vectors are further from the exported ones than
            the kind explains.
    """
    k = min(k, len(exported))
    check_ids(index, exported)
    check_lengths(exported)
    questions = gate_questions(queries, len(exported), k, shares)
    tops: Sequence[ExactTop | None] = exact or [None] * len(questions)
    tuning, judging, *filtered = (
        Trial(index, exported, question.queries, k, question.mask, top)
        for question, top in zip(questions, tops, strict=True)
    )
    grid = index.kind.search_grid()
    grid |= {name: (value,) for name, value in (fixed or {}).items() if name in grid}
    index.setting = _confirmed(tuning, judging, grid, target)
    ids, scores = index.search(judging.queries, k)
    errors = check_answer(index, exported, judging.queries, ids, scores)
    recalls, self_found = judging.recalls_of(ids), self_hits(index, exported)
    _check_recall(index, recalls, self_found, k, target)
    index.filtered = _filtered(filtered, shares, grid, target)
    return Gate(
        k=k,
        target_recall=target,
        tuned_on=len(tuning.queries),
        score_error=errors[0],
        code_error=errors[1],
        self_hits=self_found,
        **_report(judging, ids, recalls),
    )


def gate_questions(
    queries: Float32s, count: int, k: int, shares: Sequence[float] = SHARES
) -> list[Question]:
    """List what the gate asks brute force: who chooses a setting, and who judges it.

    First of all ads, then of each share of eligible ones. The same on every rank.

    Args:
        queries: (B, D), held-out users.
        count: N, the number of ads.
        k: number of ads that are retrieved.
        shares: of the ads that are eligible.
    """
    k, half = min(k, count), max(len(queries) // 2, 1)
    users = queries[:half], queries[half:] if len(queries) > 1 else queries
    questions = [Question(part, k) for part in users]
    rng = np.random.default_rng(0)
    for share in shares:
        mask = rng.random(count) < share
        if mask.sum() <= k:  # every eligible ad is returned
            break
        questions += [Question(part[:FILTERED_USERS], k, mask) for part in users]
    return questions


def _confirmed(
    tuning: Trial, judging: Trial, grid: SearchGrid, target: float
) -> SearchSetting:
    """Return the cheapest setting for some users, or more if others need more."""
    most = {name: values[-1] for name, values in grid.items()}
    chosen = tuning.cheapest(grid, target) or most
    setting = _raised(judging, grid, chosen, target)
    return most if setting is None else setting


def _raised(
    judging: Trial, grid: SearchGrid, chosen: SearchSetting, target: float
) -> SearchSetting | None:
    """Return the first setting from the chosen one on that is enough for users."""
    for setting in more_thorough(grid, chosen):
        if judging.reaches(setting, lambda recalls: recalls.mean() >= target):
            return setting
    return None


def _check_recall(
    index: ShardedIndex,
    recalls: Float64s,
    self_found: float | None,
    k: int,
    target: float,
) -> None:
    """Refuse an index that does not reach the target.

    Raises:
        GateError: users, or ads that are searched by their own vector, miss too many.
    """
    search = describe(index.setting) or index.kind.name
    if not recalls.mean() >= target:
        raise GateError(
            f"recall@{k} against brute force is {recalls.mean():.4f} even at the most"
            f" thorough search ({search}), below index.target_recall {target:g};"
            " nothing was published"
        )
    if self_found is not None and not self_found >= target:
        raise GateError(
            f"only {self_found:.4f} of sampled ads are found by their own vector"
            f" ({search}), below index.target_recall {target:g}; nothing was published"
        )


def _filtered(
    trials: Sequence[Trial], shares: Sequence[float], grid: SearchGrid, target: float
) -> tuple[FilteredSearch, ...]:
    """Tune a setting for each share of eligible ads at which it is worth its while.

    As where all ads are eligible, some users choose and others judge.

    Args:
        trials: of those who choose and those who judge, for each share in turn; fewer
            than shares where all that is eligible is returned.
        shares, grid, target: as of the gate.
    """
    levels: list[FilteredSearch] = []
    # The last shares may have no trials: there every eligible ad is returned.
    for share, chooser, judge in zip(shares, trials[::2], trials[1::2], strict=False):
        chosen = chooser.cheapest(grid, target)
        setting = None if chosen is None else _raised(judge, grid, chosen, target)
        if setting is None:
            break
        times = [judge.milliseconds(way)["p50"] for way in (setting, None)]
        if times[0] >= times[1]:
            break
        levels.append(
            FilteredSearch(
                share=share,
                search=setting,
                recall=float(judge.recalls(setting).mean()),
                milliseconds=times[0],
                all_milliseconds=times[1],
            )
        )
    return tuple(levels)


def _report(judging: Trial, ids: Int64s, recalls: Float64s) -> dict[str, Any]:
    """Measure what the chosen setting does; these are fields of `Gate`."""
    index, exported, k = judging.index, judging.exported, judging.k
    nearest, _ = index.nearest(judging.queries, k, index.setting)
    shards = _by_group(judging, ids, index.shard_of_each())
    groups = {}
    if exported.groups is not None:
        groups = _by_group(judging, ids, exported.groups)
    names = {group: "cold" if group == COLD else str(group + 1) for group in groups}
    lengths = exported.lengths
    low, high = interval_of_mean(recalls)
    return {
        "queries": len(judging.queries),
        "recall": float(recalls.mean()),
        "low": low,
        "high": high,
        "by_popularity": {names[group]: groups[group] for group in groups},
        "worst_shard": min(recall.recall for recall in shards.values()),
        "short_lists": int((nearest < 0).any(axis=1).sum()),
        "lengths": (float(lengths.min()), float(lengths.max())),
        "milliseconds": judging.milliseconds(index.setting, TIMED),
        "filtered": tuple(index.filtered),
        "device": "gpu" if any(shard.copy for shard in index.shards) else "cpu",
    }


def _by_group(trial: Trial, ids: Int64s, groups: Int64s) -> dict[int, GroupRecall]:
    """Measure which of the best ads were returned, for each group of ads.

    Args:
        trial: of the users.
        ids: (B, K), what was returned.
        groups: (N,) the group of each ad by rising id.
    """
    returned = trial.exported.returned(trial.top, ids)
    of_each = groups[trial.top.rows]
    recalls = {}
    for group, ads in zip(*np.unique(groups, return_counts=True), strict=True):
        among_best = of_each == group
        if among_best.any():
            hits = (among_best & returned).sum(axis=1)
            low, high = interval_of_mean(hits, among_best.sum(axis=1))
            recalls[int(group)] = GroupRecall(
                ads=int(ads),
                among_best=int(among_best.sum()),
                recall=float(hits.sum() / among_best.sum()),
                low=low,
                high=high,
            )
    return recalls
