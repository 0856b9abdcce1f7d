"""A formula can do arithmetic and nothing else."""

import pytest

from torchrec_adrec.config.formula import Formula
from torchrec_adrec.config.run import load_config
from torchrec_adrec.errors import ConfigError

VALUES = {"click": 0.5, "value": 3.0, "bid": 2.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("click", 0.5),
        (" click * value ", 1.5),
        ("click * (value - 1) / bid", 0.5),
        ("value - bid - click", 0.5),
        ("-click + 2 * +bid", 3.5),
        ("1e-1 * value", 0.3),
    ],
)
def test_it_computes_as_python_does(text: str, expected: float) -> None:
    assert Formula.parse(text).value(VALUES) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "click.real",
        "click[0]",
        "__import__('os')",
        "exp(click)",
        "click ** 2",
        "click // 2",
        "click % 2",
        "click @ value",
        "click if value else bid",
        "click and value",
        "click < value",
        "not click",
        "~click",
        "[click for _ in bid]",
        "lambda: click",
        "(click, value)",
        "(x := click)",
        "'a' * click",
        "True * click",
        "2j * click",
        "1e999 * click",
        "9" * 400 + " * click",
        "click * ",
        "click; bid",
        "",
        "1 + 2",
        "(" * 150 + "click" + ")" * 150,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|names nothing"):
        Formula.parse(text)


def test_a_wrong_formula_is_refused_where_settings_are_read() -> None:
    assert load_config(None, ["recommend.rank_by=click * bid"]).recommend.rank_by
    with pytest.raises(ConfigError, match=r"recommend.rank_by: .*'open\(bid\)'"):
        load_config(None, ["recommend.rank_by=click * open(bid)"])


@pytest.mark.parametrize("formula", ["click * value", "value * bid * (click + 1)"])
def test_a_click_that_a_label_holds_already_counts_once(formula: str) -> None:
    """Also through a label in between."""
    words = [
        f"recommend.rank_by={formula}",
        "ranking.conditional={value: {given: engagement}, engagement: {given: click}}",
    ]
    assert load_config(None, words[:1]).recommend.rank_by == formula
    with pytest.raises(ConfigError, match="multiplies value by click, but"):
        load_config(None, words)
    assert load_config(None, [*words, "recommend.rank_by=click * 1000 + value"])
