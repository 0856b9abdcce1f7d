"""The base of all settings: an unknown key is an error, and nothing changes later."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**23)]


class Settings(BaseModel):
    """A block of settings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True
    )
