"""Progress of a benchmark, on standard error."""

import sys


def note(text: str) -> None:
    """Say what is being done or was found."""
    print(f"  {text}", file=sys.stderr, flush=True)
