"""`python -m taximeter.embedded.upstream`: the simulated model server, until SIGTERM."""

import uvicorn

from taximeter.embedded.upstream.server import SimulatedServer
from taximeter.embedded.upstream.settings import UpstreamSettings


def main() -> None:
    """Serve."""
    settings = UpstreamSettings()
    app = SimulatedServer(settings).app()
    uvicorn.run(app, host=settings.host, port=settings.upstream_port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
