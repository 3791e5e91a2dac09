"""`python -m taximeter_billing.payments.double --port N --data FILE`: serve the double until SIGTERM."""

import argparse
import os
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
    parser.add_argument("--webhook-url", help="where events are delivered; replaces the address of an earlier start")
    parser.add_argument("--webhook-secret", default=os.environ.get("TAXIMETER_STRIPE_WEBHOOK_SECRET", ""),
                        help="what they are signed with (default: TAXIMETER_STRIPE_WEBHOOK_SECRET)")  # fmt: skip
    options = parser.parse_args()
    double = StripeDouble(Store(options.data))
    if options.webhook_url:
        double.listen_at(options.webhook_url, options.webhook_secret)
    try:
        uvicorn.run(double.app(), host=options.host, port=options.port, log_level="warning", access_log=False)
    finally:
        double.close()


if __name__ == "__main__":
    main()
