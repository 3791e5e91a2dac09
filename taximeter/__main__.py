"""`python -m taximeter`: the same as the `taximeter` command."""

from taximeter.cli.main import run_cli

run_cli()
