"""NDIF's API with one rule of ours, which stands in for the key database: what gunicorn serves.

NDIF asks Postgres whether the owner of an API key is trusted. A trusted request runs in the
model's own process, any other one in a sandbox. Without Postgres it trusts everybody, so the
sandbox would never run; here a key of its own says "untrusted".
"""

import os
from typing import Annotated

from fastapi import Form, Header
from ndif.common.schema import BackendRequestModel
from ndif.services.api.app import app
from ndif.services.api.auth import validate_request

__all__ = ["app"]


async def validate_by_key(
    data: Annotated[str, Form()],
    api_key: Annotated[str | None, Header(alias="ndif-api-key")] = None,
) -> BackendRequestModel:
    """NDIF's own check of a request, then the key decides whether it is trusted."""
    request = await validate_request(data, api_key)
    request.trusted = api_key != os.environ["NDIF_UNTRUSTED_KEY"]
    return request


app.dependency_overrides[validate_request] = validate_by_key
