"""Engines compute the same model; their error is measured, and too much is refused."""

import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
import torch
from ranking_rows import SCHEMA, columns_of
from torch import Tensor, nn

from torchrec_adrec.config.run import EngineName, RecommendConfig
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.data.loader.collate import tower_input
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.models.rankers.registry import build_ranker
from torchrec_adrec.schema import Side
from torchrec_adrec.serve import engines
from torchrec_adrec.serve import scorer as scorer_module
from torchrec_adrec.serve.engines import ENGINES, bfloat16, choose, compiled, int8
from torchrec_adrec.serve.engines.choose import Request, take_engine
from torchrec_adrec.serve.recommender import Recommender
from torchrec_adrec.serve.scorer import RankingScorer

ADS = 40
IDS = np.arange(100, 100 + ADS)
# Far above what 8 bits round here, far below what a wrong layer makes of a logit.
LOOSE = 1.0


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace, but do not call a C++ compiler for half a minute."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")


def a_scorer(model: str = "dcnv2") -> RankingScorer:
    """A ranker whose weights are all random, and a catalog."""
    torch.manual_seed(0)
    config = RankingConfig.model_validate({"model": model, "model_dim": 8})
    ranker = build_ranker(SCHEMA, config, 8)
    with torch.no_grad():
        for weight in ranker.parameters():
            weight.normal_(0, 0.2)
    raw = {f"raw_{name}": np.zeros(ADS) for name in SCHEMA.sources_of(Side.AD)}
    catalog = pl.DataFrame({"ad_id": IDS} | columns_of(Side.AD, ADS) | raw)
    return RankingScorer(ranker.eval(), SCHEMA, catalog)


def some_requests(count: int = 3) -> list[Request]:
    """Users, each with ads in no order."""
    rng = np.random.default_rng(0)
    users = (
        tower_input(columns_of(Side.USER, 1, i), SCHEMA, Side.USER)
        for i in range(count)
    )
    return [(user, rng.permutation(ADS)[:20], {}) for user in users]


@torch.inference_mode()
def logits(scorer: RankingScorer) -> Tensor:
    requests = some_requests()
    return torch.cat([scorer.ranker.dense(*scorer.inputs(*r)) for r in requests])


def settings(**changes: Any) -> RecommendConfig:
    return RecommendConfig.model_validate({"max_score_error": LOOSE} | changes)


def test_the_registry_holds_what_the_config_names() -> None:
    assert (*ENGINES, "auto") == get_args(EngineName)
    assert set(engines.QUICK) < set(ENGINES) and engines.EXACT in engines.QUICK


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *((n, m) for n in ("bfloat16", "int8") for m in ("transformer", "dcnv2")),
        ("float32", "dnn"),
        ("compiled", "dnn"),
    ],
)
def test_an_engine_computes_the_model(name: str, model: str) -> None:
    scorer = a_scorer(model)
    exact, head = logits(scorer), scorer.ranker.head
    before = [weight.clone() for weight in head.parameters()]
    engine = take_engine(scorer, settings(engine=name), some_requests())
    served = logits(scorer)
    assert served.dtype == torch.float32 and scorer.ranker.head is engine.head
    error = (served.double() - exact.double()).abs().max().item()
    # What is reported is what is served, here on the very same requests.
    assert engine.error == pytest.approx(error, rel=0.01, abs=1e-6)
    assert error < 0.2 * exact.std().item()
    # The head that the others are measured against is as it was.
    assert all(map(torch.equal, before, head.parameters()))


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_a_rounding_engine_ties_no_candidates(name: str) -> None:
    """Logits in bfloat16 would leave some 130 numbers between 1 and 2."""
    scorer = a_scorer()
    take_engine(scorer, settings(engine=name), some_requests())
    assert len(logits(scorer)[:, 0].unique()) == len(logits(scorer)[:, 0])


class Faulty(nn.Module):
    """A head that adds an error to the last label's logit of the last ad."""

    def __init__(self, head: nn.Module, error: float) -> None:
        super().__init__()
        self.head, self.error = head, error

    def forward(self, *inputs: Tensor) -> Tensor:
        scores: Tensor = self.head(*inputs).clone()
        scores[-1, -1] += self.error
        return scores


@pytest.mark.parametrize("error", [0.03, -0.03, float("nan")])
@pytest.mark.parametrize("requested", ["int8", "auto"])
def test_an_engine_that_errs_is_refused(
    requested: str, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = {name: lambda head, _: Faulty(head, error) for name in ENGINES}
    monkeypatch.setattr(choose, "ENGINES", faulty)
    scorer = a_scorer()
    with pytest.raises(
        ConfigError, match=r"score error (0\.03|nan).* 0\.02 is allowed"
    ):
        take_engine(
            scorer, settings(engine=requested, max_score_error=0.02), some_requests()
        )


def test_auto_takes_the_fastest_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock that each engine moves by its own milliseconds."""
    clock = [0.0]
    errors = {"float32": 0.0, "bfloat16": 0.01, "int8": 0.5}

    def engine(name: str, seconds: float) -> Any:
        def make(head: nn.Module, _: int) -> nn.Module:
            faulty = Faulty(head, errors[name])
            faulty.register_forward_hook(
                lambda *_: clock.__setitem__(0, clock[0] + seconds)
            )
            return faulty

        return make

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    for bfloat16_seconds, expected in ((2.0, "bfloat16"), (2.9, "float32")):
        ways = {"float32": 3.0, "bfloat16": bfloat16_seconds, "int8": 1.0}
        heads = {name: engine(name, seconds) for name, seconds in ways.items()}
        monkeypatch.setattr(choose, "ENGINES", heads)
        bounded = settings(engine="auto", max_score_error=0.02)
        fastest = take_engine(a_scorer(), bounded, some_requests())
        assert fastest.name == expected
        assert fastest.milliseconds == pytest.approx(ways[expected] * 1e3)


def test_all_ads_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same scores from vectors that are kept, in any order of the ads."""
    monkeypatch.setattr(scorer_module, "BLOCK", 16)  # the last one is not full
    scorer = a_scorer()
    exact = logits(scorer)
    scorer.look_up_ads(0)
    assert scorer.looked_up is None
    scorer.look_up_ads(1)
    scorer.ranker.ad_tables = None  # not needed any more
    torch.testing.assert_close(logits(scorer), exact)


@pytest.mark.parametrize("table_type", ["float16", "int8"])
def test_rounded_tables_count_as_error(table_type: str) -> None:
    scorer = a_scorer()
    exact = logits(scorer)
    engine = take_engine(scorer, settings(table_type=table_type), some_requests())
    error = (logits(scorer) - exact).abs().max().item()
    assert engine.name == "float32" and 0 < error < 0.1 * exact.std().item()
    assert engine.error == pytest.approx(error, rel=0.01)


def test_a_run_is_served_by_an_engine_within_the_bound(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, served = Recommender.load(run), Recommender.load(run, engine="auto")
    assert exact.engine is None and served.engine is not None
    assert served.engine.error <= served.settings.max_score_error
    assert served.scorer.ranker.head is served.engine.head
    lists = [r.recommend({}, top=50).ads.sort("ad_id") for r in (exact, served)]
    for label in served.scorer.schema.label_names:
        expected, actual = (ads[label].to_numpy() for ads in lists)
        np.testing.assert_allclose(actual, expected, rtol=0.05, err_msg=label)
    monkeypatch.setitem(ENGINES, "int8", lambda head, _: Faulty(head, 1.0))
    with pytest.raises(ConfigError, match=r"recommend\.engine=int8 .* score error 1,"):
        Recommender.load(run, engine="int8")


def test_without_users_nothing_can_be_measured() -> None:
    with pytest.raises(ConfigError, match="example users, of which the data has none"):
        take_engine(a_scorer(), settings(engine="auto"), [])


def test_the_layers_of_logits_stay_in_float32() -> None:
    head = a_scorer().ranker.head
    for convert in (bfloat16.in_bfloat16, int8.in_int8):
        widths = {
            module.out_features
            for module in convert(head, 2).modules()
            if isinstance(module, nn.Linear) and module.weight.dtype == torch.float32
        }
        assert widths == {2}
