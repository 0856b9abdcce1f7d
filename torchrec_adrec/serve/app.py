"""The recommender over HTTP: POST /recommend. It needs the extra `serve`."""

from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from torchrec_adrec.errors import AdRecError, DataError
from torchrec_adrec.serve.recommender import Recommender


class Request(BaseModel):
    """The body of a request.

    Attributes:
        user: raw columns, as {"I1": 3, "C1": "68fd1e64"}.
        top: number of ads, as of `Recommender.recommend`.
    """

    model_config = ConfigDict(extra="forbid")

    user: dict[str, StrictInt | StrictFloat | StrictStr | list[StrictStr] | None]
    top: int | None = Field(default=None, ge=1)


class Response(BaseModel):
    """The answer to a request.

    Attributes:
        ads: best first; `ad_id` is text, because JavaScript rounds 63-bit numbers.
        candidates: number of ads that the ranker scored.
        milliseconds: per stage.
    """

    ads: list[dict[str, Any]]
    candidates: int
    milliseconds: dict[str, float]


def build_app(recommender: Recommender) -> FastAPI:
    """Make an application that answers with one recommender."""
    app = FastAPI(title="torchrec_adrec")

    @app.post("/recommend")
    def recommend(request: Request) -> Response:
        """Rank ads for one user."""
        try:
            answer = recommender.recommend(request.user, request.top)
        # A wrong request is the caller's error; anything else is ours.
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        except AdRecError as error:
            raise HTTPException(500, str(error)) from None
        ads = [{**ad, "ad_id": str(ad["ad_id"])} for ad in answer.ads.to_dicts()]
        return Response(
            ads=ads, candidates=answer.candidates, milliseconds=answer.milliseconds
        )

    return app
