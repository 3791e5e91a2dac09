"""The named queries: one .sql file each, whose first line says what it answers."""

from functools import cache
from importlib.resources import files


@cache
def query(name: str) -> str:
    """The text of a named query. Raises KeyError when there is none."""
    path = files(__name__).joinpath(f"{name}.sql")
    if not path.is_file():
        raise KeyError(f"no query is called {name!r}; there are: {', '.join(query_names())}")
    return path.read_text(encoding="utf-8")


def query_names() -> list[str]:
    """The names of all queries."""
    return sorted(entry.name.removesuffix(".sql") for entry in files(__name__).iterdir() if entry.name.endswith(".sql"))
