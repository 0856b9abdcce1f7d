"""The types of requests and answers, made from the schema of the run.

OpenAPI is generated from them, so that it names every column of a user with its kind.
They accept what `data.request` accepts, within bounds.
"""

from collections.abc import Iterable, Mapping, Set
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    create_model,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from torchrec_adrec.config.serve import ServeConfig
from torchrec_adrec.data.request import column_kinds
from torchrec_adrec.schema import AD_ID, RANK_SCORE, SCORE, Schema, Side

# Far inside of a 64-bit integer, and of every transform of a number.
LARGEST = 1e18
NUMBER_TEXT = (
    r"^([+-]?([0-9]{1,18}([.][0-9]{0,18})?|[.][0-9]{1,18})"
    r"([eE]([+]?0{0,9}1?[0-9]|-[0-9]{1,9}))?)?$"
)
HEX_TEXT = r"^([0-9a-fA-F]{8})?$"
LONGEST_DETAIL = 500  # characters of an error's text
MOST_FAULTS = 5  # that one error lists

REASONS = {
    "extra_forbidden": "unknown keys, see /openapi.json",
    "json_invalid": "the body is no JSON",
    "model_attributes_type": "expected an object, with Content-Type: application/json",
}
EXPECTED = {
    "number": f"a number from -{LARGEST:g} to {LARGEST:g}, or null",
    "hex": "eight hexadecimal digits as text, or null",
    "text": "a text of at most {text_length} characters, or null",
    "sequence": "a list of at most {list_length} texts, the latest last, or null",
    "list": "a list of at most {list_length} texts, in any order, or null",
    "vector": "a list of {size} finite numbers, or null",
}


class Version(BaseModel):
    """What computed an answer.

    Attributes:
        towers: hash of the weights of the two towers' checkpoint.
        ranker: hash of the weights of the ranker's checkpoint.
        index: the build of the index and, behind a plus, the changes of its ads.
    """

    towers: str
    ranker: str
    index: str


class Fault(BaseModel):
    """The body of every error.

    Attributes:
        detail: what is wrong and what was expected; it repeats nothing of the request.
    """

    detail: str = Field(max_length=LONGEST_DETAIL)


class Bodies:
    """The types of one run's requests and answers.

    Args:
        schema: of the run.
        bounds: how long texts and lists may be.
        candidates: number of ads that the ranker scores.
        examples: raw users, from which the examples of OpenAPI are taken.

    Attributes:
        recommend, batch: bodies of requests.
        answer, answers: bodies of answers.
        expected: raw column of a user -> what it may hold, in words.
    """

    def __init__(
        self,
        schema: Schema,
        bounds: ServeConfig,
        candidates: int,
        examples: list[dict[str, Any]],
    ) -> None:
        kinds = column_kinds(schema, Side.USER)
        limits = bounds.model_dump()
        sizes = {f.source: f.size for f in schema.vectors_of(Side.USER)}
        self.expected = {
            n: EXPECTED[k].format(size=sizes.get(n), **limits) for n, k in kinds.items()
        }
        user = _user_type(kinds, self.expected, bounds, examples, sizes)
        number = Annotated[StrictInt, Field(ge=1, le=candidates)]
        top = Annotated[number, BeforeValidator(_whole)] | None
        number_of_ads = Field(
            default=None, description="Number of ads. Default: `recommend.top`."
        )
        sample = examples[0] if examples else {}
        self.recommend = create_model(
            "RecommendRequest",
            __config__=_closed({"user": sample, "top": 3}),
            user=(user, ...),
            top=(top, number_of_ads),
        )
        users = Field(min_length=1, max_length=bounds.batch_users)
        self.batch = create_model(
            "BatchRequest",
            __config__=_closed({"users": [sample, {}], "top": 3}),
            users=(Annotated[list[user], users], ...),  # type: ignore[valid-type]
            top=(top, number_of_ads),
        )
        ranking = {
            "ads": (list[_ad_type(schema)], ...),  # type: ignore[misc]
            "candidates": (Annotated[int, Field(description="Ads ranked.")], ...),
            "milliseconds": (dict[str, float], ...),
        }
        one: Any = create_model("Ranking", **ranking)  # type: ignore[call-overload]
        self.answer = create_model("Answer", __base__=one, version=(Version, ...))
        self.answers = create_model(
            "Answers", answers=(list[one], ...), version=(Version, ...)
        )

    def explain(self, faults: Iterable[Mapping[str, Any]]) -> str:
        """Say what is wrong with a body, without repeating any of it.

        Args:
            faults: as pydantic lists them.
        """
        lines: dict[str, None] = {}  # one for each place, in order
        for fault in faults:
            # A column is known by its name; other names are the client's own words.
            known = [p for p in fault["loc"] if p in self.expected]
            place = ".".join(str(p) for p in fault["loc"][1:2]) or "body"
            if fault["type"] in REASONS:
                line = REASONS[fault["type"]]
            elif known:
                line = f"{known[0]}: expected {self.expected[known[0]]}"
            else:
                line = f"{place}: {fault['msg']}"
            lines[line] = None
        return "; ".join(list(lines)[:MOST_FAULTS])[:LONGEST_DETAIL]


def _closed(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,
        json_schema_extra={"examples": [example]},
    )


def _user_type(
    kinds: Mapping[str, str],
    expected: Mapping[str, str],
    bounds: ServeConfig,
    examples: list[dict[str, Any]],
    sizes: Mapping[str, int],
) -> Any:
    """Make the type of a user: no column is required, and none may be unknown."""
    text = Annotated[str, Field(max_length=bounds.text_length)]
    # Each list names its first fault only: a thousand of them would cost more time
    # than the answer to a right request.
    texts = Field(max_length=bounds.list_length, fail_fast=True)
    number = Field(strict=True, allow_inf_nan=False, ge=-LARGEST, le=LARGEST)
    types: dict[str, Any] = {
        "number": Annotated[float, number]
        | Annotated[str, Field(pattern=NUMBER_TEXT)]
        | None,
        "hex": Annotated[str, Field(pattern=HEX_TEXT)] | None,
        "text": text | None,
        "sequence": Annotated[list[text], texts] | None,
        "list": Annotated[list[text], texts] | None,
    }
    fields = {}
    for name, kind in kinds.items():
        if kind == "vector":
            types[kind] = _vector_type(sizes[name])
        values = [u[name] for u in examples if u.get(name) not in (None, "", [])]
        described = Field(
            description=f"Expected: {expected[name]}", examples=values[:1]
        )
        fields[name] = Annotated[types[kind], described]
    # A dictionary and not a model, because a raw column may have any name.
    user = _typed_dict("User", fields)
    user.__pydantic_config__ = ConfigDict(extra="forbid")
    return Annotated[user, BeforeValidator(_known_columns(kinds.keys()))]


def _vector_type(size: int) -> Any:
    component = Field(strict=True, allow_inf_nan=False, ge=-LARGEST, le=LARGEST)
    components = Field(min_length=size, max_length=size, fail_fast=True)
    return Annotated[list[Annotated[float, component]], components] | None


def _known_columns(columns: Set[str]) -> Any:
    names = ", ".join(columns)

    def check(user: Any) -> Any:
        # Before the fields: pydantic would list every unknown key on its own.
        if isinstance(user, dict) and not columns >= user.keys():
            unknown = len(user.keys() - columns)
            raise PydanticCustomError(
                "unknown_columns",
                "{unknown} unknown columns, expected some of {names}",
                {"unknown": unknown, "names": names},
            )
        return user

    return check


def _ad_type(schema: Schema) -> Any:
    fields: dict[str, Any] = {
        AD_ID: Annotated[str, Field(description="Text: JavaScript rounds 63 bits.")]
    }
    for label in schema.label_names:
        fields[label] = Annotated[float, Field(description="The ranker's prediction.")]
    fields[SCORE] = Annotated[float, Field(description="The towers' inner product.")]
    raw: dict[str, Any] = dict.fromkeys(schema.shown_of(Side.AD), float | str | None)
    raw |= {f.source: list[str] for f in schema.sequences_of(Side.AD)}
    rank_score = {RANK_SCORE: Annotated[float | None, Field(description="rank_by")]}
    # Labels come first in an answer, so that a raw column of that name is not shown.
    return _typed_dict("Ad", raw | rank_score | fields)


def _whole(value: Any) -> Any:
    # JSON knows one kind of numbers: 3.0 is an integer of its schemas.
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def _typed_dict(name: str, fields: Mapping[str, Any]) -> Any:
    make: Any = TypedDict  # the type checker knows only those that are written out
    return make(name, fields, total=False)
