"""The alerts service over HTTP: health and metrics for all, the API of deliveries and endpoints for who holds the admin token."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from hmac import compare_digest

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from taximeter_schemas.control_snapshot import ControlSnapshot
from taximeter_streams.alerts.delivery_log import DeliveryLog, DeliveryStatus
from taximeter_streams.alerts.service import AlertsService

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AlertsApi:
    """Pages over the log of a service; they run in its event loop, and so between its own uses of the log."""

    def __init__(
        self, service: AlertsService, log: DeliveryLog, snapshot: Callable[[], ControlSnapshot], token: str
    ) -> None:
        self._service = service
        self._log = log
        self._snapshot = snapshot
        self._token = token

    def application(self) -> web.Application:
        """The application to serve."""
        app = web.Application(middlewares=[self._authorized])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/v1/deliveries", self._deliveries),
                web.get("/v1/alerts/{alert}", self._alert),
                web.post("/v1/alerts/{alert}/replay", self._replay),
                web.get("/v1/endpoints", self._endpoints),
                web.post("/v1/endpoints/{endpoint}/replay", self._replay_failed),
                web.post("/v1/endpoints/{endpoint}/enable", self._enable),
            ]
        )
        return app

    @web.middleware
    async def _authorized(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        is_open = not request.path.startswith("/v1/") or (not self._token and request.path == "/v1/deliveries")
        if not is_open and not (self._token and compare_digest(given.encode(), self._token.encode())):
            return _refused(401, "unauthorized", "the admin token is missing or wrong")
        return await handler(request)

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        is_ready, state = self._service.ready()
        return web.json_response({"ready": is_ready, **state}, status=200 if is_ready else 503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _deliveries(self, request: web.Request) -> web.Response:
        """The newest deliveries; `?status=failed` (or delivered, pending), `?tenant=`, `?endpoint=`."""
        wanted = request.query.get("status", "")
        if wanted and wanted not in list(DeliveryStatus):
            return _refused(422, "unknown_status", f"no such status: {wanted}; there are: {', '.join(DeliveryStatus)}")
        found = self._log.newest(
            DeliveryStatus(wanted) if wanted else None,
            tenant=request.query.get("tenant"),
            endpoint_id=request.query.get("endpoint"),
        )
        page = {"deliveries": [delivery.describe() for delivery in found], "counts": self._log.counts()}
        return web.json_response(page)

    async def _alert(self, request: web.Request) -> web.Response:
        """One alert: what each endpoint is sent, and what became of it."""
        found = self._log.of_alert(request.match_info["alert"])
        if not found:
            return _refused(404, "not_found", f"no alert {request.match_info['alert']} was entered")
        return web.json_response({"deliveries": [delivery.show() for delivery in found]})

    async def _replay(self, request: web.Request) -> web.Response:
        """Send an alert once more, to one endpoint (`?endpoint=`) or to all that it went to."""
        alert, only = request.match_info["alert"], request.query.get("endpoint")
        targets = [held.endpoint_id for held in self._log.of_alert(alert) if only in (None, held.endpoint_id)]
        if not targets:
            return _refused(404, "not_found", f"no alert {alert} was entered" + (f" for {only}" if only else ""))
        now = datetime.now(UTC)
        replayed = [target for target in targets if self._log.replay(alert, target, now)]
        self._service.look()
        return web.json_response({"replayed": replayed})

    async def _endpoints(self, _request: web.Request) -> web.Response:
        """The declared endpoints, without secrets and paths, and those that were given up."""
        dead = {held.endpoint_id: held for held in self._log.dead_endpoints()}
        page = [
            {
                "id": declared.id,
                "tenant": declared.tenant,
                "format": declared.format,
                "disabled": declared.disabled or declared.id in dead,
                "reason": dead[declared.id].reason if declared.id in dead else None,
                "disabled_at": dead[declared.id].disabled_at.isoformat() if declared.id in dead else None,
            }
            for declared in self._snapshot().alert_endpoints.values()
        ]
        return web.json_response({"endpoints": page})

    async def _replay_failed(self, request: web.Request) -> web.Response:
        """Send everything once more that failed at an endpoint."""
        count = self._log.replay_failed(request.match_info["endpoint"], datetime.now(UTC))
        self._service.look()
        return web.json_response({"replayed": count})

    async def _enable(self, request: web.Request) -> web.Response:
        """Take an endpoint back that was given up; what waits for it goes out in order."""
        name = request.match_info["endpoint"]
        if name not in self._snapshot().alert_endpoints:
            return _refused(404, "not_found", f"no endpoint is called {name!r}")
        enabled = self._log.enable(name, datetime.now(UTC))
        self._service.look()
        return web.json_response({"enabled": enabled})


def _refused(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)
