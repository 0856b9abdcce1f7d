"""The recommender over HTTP: POST /recommend. Needs the extra `serve`."""

from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from torchrec_adrec.errors import AdRecError, DataError
from torchrec_adrec.serve.recommender import Recommender


class Request(BaseModel):
    """One user; `user` holds raw columns, as {"I1": 3, "C1": "68fd1e64"}."""

    model_config = ConfigDict(extra="forbid")

    user: dict[str, StrictInt | StrictFloat | StrictStr | list[StrictStr] | None]
    top: int | None = Field(default=None, ge=1)


class Response(BaseModel):
    """Ranked ads, best first, and milliseconds per stage.

    `ad_id` is text: JavaScript rounds 63-bit numbers.
    """

    ads: list[dict[str, Any]]
    candidates: int
    milliseconds: dict[str, float]


def build_app(recommender: Recommender) -> FastAPI:
    """An application that answers with one recommender."""
    app = FastAPI(title="torchrec_adrec")

    @app.post("/recommend")
    def recommend(request: Request) -> Response:
        """Ranked ads for one user."""
        try:
            answer = recommender.recommend(request.user, request.top)
        except DataError as error:
            raise HTTPException(422, str(error)) from None
        except AdRecError as error:
            raise HTTPException(500, str(error)) from None
        ads = [{**ad, "ad_id": str(ad["ad_id"])} for ad in answer.ads.to_dicts()]
        return Response(
            ads=ads, candidates=answer.candidates, milliseconds=answer.milliseconds
        )

    return app
