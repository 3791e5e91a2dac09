"""A webhook receiver: checks each alert's signature and keeps what it was told."""

from dataclasses import dataclass, field

from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError


@dataclass
class Receiver:
    """Receives alerts on 127.0.0.1:`port`, path /alerts, signed with `secret` (Standard Webhooks)."""

    port: int
    secret: str
    alerts: dict[str, dict[str, object]] = field(default_factory=dict)
    forged: int = 0
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where alerts are to be sent."""
        return f"http://127.0.0.1:{self.port}/alerts"

    async def start(self) -> None:
        """Start to listen."""
        app = web.Application()
        app.router.add_post("/alerts", self._receive)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _receive(self, request: web.Request) -> web.Response:
        body = await request.text()
        try:
            alert = Webhook(self.secret).verify(body, dict(request.headers))
        except WebhookVerificationError:
            self.forged += 1
            return web.Response(status=401)
        self.alerts.setdefault(request.headers["webhook-id"], alert)
        return web.Response(status=204)
