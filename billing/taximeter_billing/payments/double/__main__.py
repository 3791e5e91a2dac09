"""`python -m taximeter_billing.payments.double --port N --data FILE`: serve the double until SIGTERM."""

import argparse
from pathlib import Path

import uvicorn

from taximeter_billing.payments.double.store import Store
from taximeter_billing.payments.double.web import StripeDouble


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="A double of the parts of Stripe's API that Taximeter uses")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8091)
    parser.add_argument("--data", type=Path, required=True, help="the SQLite file that remembers everything")
    options = parser.parse_args()
    app = StripeDouble(Store(options.data)).app()
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
