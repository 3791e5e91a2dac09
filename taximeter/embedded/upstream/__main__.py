"""`python -m taximeter.embedded.upstream`: the simulated model server, until SIGTERM."""

import signal
import sys

import uvicorn

from taximeter.embedded.upstream.engine import Engine
from taximeter.embedded.upstream.settings import UpstreamSettings
from taximeter.embedded.upstream.web import Upstream

STOP_SECONDS_MAX = 5


def main() -> None:
    """Build the server from the environment and run it."""
    settings = UpstreamSettings()
    # uvicorn stops at SIGTERM and then sends it on; the end in order is exit status 0.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    uvicorn.run(
        Upstream(Engine(settings)),
        host=settings.host,
        port=settings.upstream_port,
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=300,
        timeout_graceful_shutdown=STOP_SECONDS_MAX,
    )


if __name__ == "__main__":
    main()
