"""The HTTP face of ingest: POST /v1/events, health, readiness and metrics; POST /v1/traces is in `otlp`."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest

from taximeter_producers.errors import ProducerClosedError, SpoolError, SpoolFullError
from taximeter_producers.ingest.bodies import BodyError, raw_events
from taximeter_producers.ingest.intake import Intake, Result, status_of
from taximeter_producers.ingest.otlp import add_otlp
from taximeter_producers.ingest.requests import authorize, read_body
from taximeter_producers.ingest.settings import IngestSettings
from taximeter_producers.producer import UsageProducer

RETRY_AFTER_SECONDS = 5


def build_app(settings: IngestSettings, producer: UsageProducer) -> FastAPI:
    """The service over a producer, which the caller closes."""
    app = FastAPI(title="Taximeter ingest", openapi_url="/openapi.json")
    intake = Intake(producer, settings.ingest_event_bytes_max)
    registry = CollectorRegistry()
    counted = Counter("taximeter_ingest_events", "Events by what became of them", ["status"], registry=registry)
    spooled = Gauge("taximeter_ingest_spool_bytes", "Bytes that wait on disk for the broker", registry=registry)
    spooled.set_function(lambda: producer.state().spool_bytes)

    @app.post("/v1/events")
    async def post_events(request: Request) -> Response:
        authorize(request, settings)
        body = await read_body(request, settings.ingest_body_bytes_max)
        events, many = raw_events(body, dict(request.headers))
        if not many and len(body) > settings.ingest_event_bytes_max:
            raise BodyError(413, "event_too_large", f"an event has at most {settings.ingest_event_bytes_max} bytes")
        results = await intake.take(events)
        for result in results:
            counted.labels(result.status).inc()
        return _answer(results)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> Response:
        # A broker that is away does not stop ingest: events are safe in the spool until that is full.
        state = producer.state()
        ready = state.spool_bytes < settings.ingest_spool_bytes_max
        broker = "away" if state.broker_away else "reachable"
        content = {"ready": ready, "broker": broker, "spool_bytes": state.spool_bytes, "unsafe_events": state.unsafe}
        return JSONResponse(content, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    add_otlp(app, settings, intake, registry)
    _name_errors(app)
    return app


def _answer(results: list[Result]) -> Response:
    content = {"results": [result.model_dump(mode="json", exclude_none=True) for result in results]}
    return JSONResponse(content, status_of(results))


def _name_errors(app: FastAPI) -> None:
    @app.exception_handler(BodyError)
    async def refused(_request: Request, error: BodyError) -> Response:
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return _error(error.status, error.code, str(error), headers)

    @app.exception_handler(SpoolError)
    async def no_room(_request: Request, error: SpoolError) -> Response:
        code = "spool_full" if isinstance(error, SpoolFullError) else "spool_unusable"
        return _error(503, code, str(error), {"Retry-After": str(RETRY_AFTER_SECONDS)})

    @app.exception_handler(ProducerClosedError)
    async def closed(_request: Request, error: ProducerClosedError) -> Response:
        return _error(503, "closing", str(error), {"Retry-After": str(RETRY_AFTER_SECONDS)})


def _error(status: int, code: str, message: str, headers: dict[str, str]) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)
