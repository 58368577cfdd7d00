"""The HTTP application. The only importer of fastapi."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from fedms.core.errors import UserError
from fedms.serve import schema
from fedms.serve.guard import Guard
from fedms.serve.limits import DamagedError, NotFoundError, OverloadedError
from fedms.serve.page import POLICY, page
from fedms.serve.service import Service
from fedms.use import Said

_ABOUT = (
    "Predictions of the models that a federated run left: every client's own, over one foundation "
    "model. Nothing that is sent is kept."
)
_NAME = 40
"""Characters of a key that an answer repeats."""
_STATUS: dict[type[UserError], int] = {NotFoundError: 404, OverloadedError: 503, DamagedError: 500}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": schema.Refusal, "description": "no valid token"},
    404: {"model": schema.Refusal, "description": "no such client"},
    413: {"model": schema.Refusal, "description": "body too large"},
    422: {"model": schema.Refusal, "description": "an input that cannot be used"},
    503: {"model": schema.Refusal, "description": "too much at a time"},
}


def make_app(
    service: Service,
    *,
    token: str | None = None,
    hosts: Collection[str] | None = None,
    say: Callable[[str], None] | None = None,
) -> FastAPI:
    """An ASGI application, which closes the service when it ends.

    Args:
        service: answers.
        token: see `Guard`.
        hosts: likewise.
        say: likewise.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="fedms",
        version=version("fedms"),
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_routes(app, service)
    for kind in (UserError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _refuse)
    routes = {route.path for route in app.routes if hasattr(route, "path")}
    app.add_middleware(
        Guard,
        limits=service.limits,
        routes=routes,
        token=token,
        hosts=hosts,
        say=say,
    )
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    models, limits = service.models, service.limits

    @app.post("/predict", responses=_REFUSALS)
    async def predict(ask: schema.Ask) -> schema.Answer:
        """Classes, probabilities, gate weights and both experts' opinions, input by input."""
        said = await service.predict(ask.client, ask.inputs)
        return schema.Answer(client=ask.client, predictions=[_prediction(x, ask.top) for x in said])

    @app.get("/clients", responses={401: _REFUSALS[401]})
    async def clients() -> schema.Clients:
        """Who has a model of its own here; `new` is the model of anyone else."""
        return schema.Clients(clients=models.clients)

    @app.get("/model", responses={401: _REFUSALS[401]})
    async def model() -> schema.Model:
        """What the models take, their classes, and what a request may be at most."""
        return schema.Model(
            name=models.config.name,
            method=models.config.method,
            takes=models.takes,
            classes=list(models.classes),
            limits=schema.Bounds.model_validate(limits, from_attributes=True),
        )

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> schema.Health:
        """That the service is there; without a token."""
        return schema.Health()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()), headers={"content-security-policy": POLICY})


def _prediction(said: Said, top: int) -> schema.Prediction:
    experts = {
        name: schema.Opinion(label=label, probability=p)
        for name, (label, p) in said.experts.items()
    }
    return schema.Prediction(
        label=said.label,
        probability=said.probability,
        gate_weight=said.gate_weight,
        experts=experts,
        probabilities=said.likeliest(top),
    )


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    """Why, in one line, without what was sent."""
    status, said, headers = 500, "internal error", {}
    if isinstance(error, RequestValidationError):
        status, said = 422, "; ".join(_complaint(each) for each in error.errors())
    elif isinstance(error, HTTPException):
        status, said = error.status_code, f"got {error.detail}; try GET /docs"
        headers = dict(error.headers or {})
    elif isinstance(error, UserError):
        status = _STATUS.get(type(error), 422)
        said = str(error)
        headers = {"retry-after": "1"} if status == 503 else {}
    return JSONResponse({"error": said}, status, headers)


def _complaint(found: Any) -> str:
    """Of pydantic: the place and the reason."""
    if found["loc"] == ("body",) and found["type"] == "value_error":
        return f"got {found['ctx']['error']}"
    if found["loc"] == ("body",) or found["type"] == "json_invalid":
        return "got no JSON object; expected one, with content-type: application/json"
    _, *names = found["loc"]
    place = "".join(f"[{part}]" if isinstance(part, int) else part[:_NAME] for part in names)
    return f"{place}: {found['msg']}"
