"""What happens to the local tables when the log begins anew: their content stays, their place in the old changelog goes.

The embedded broker keeps its log in memory, while the tables beside the worker are on disk. After a restart of both, the
changelog is empty and its offsets begin at 0; a table that remembered its old place there would skip what is new.
"""

import logging
from pathlib import Path

from rocksdict import Options, Rdict

OFFSET_KEY = b"__faust\0offset__"
"""Where faust's RocksDB store keeps the changelog offset that a table has reached."""
_log = logging.getLogger(__name__)


def begin_life(folder: Path, log_id: str) -> bool:
    """Note which life of the log the tables in `folder` belong to; True when it is a new one and old tables were kept."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "log_id"
    before = note.read_text() if note.exists() else log_id
    tables = [path for path in folder.glob("**/*.db") if path.is_dir()] if before != log_id else []
    for path in tables:
        table = Rdict(str(path), Options(raw_mode=True))
        if OFFSET_KEY in table:
            del table[OFFSET_KEY]
        table.close()
    if tables:
        _log.info("the log began anew: %d tables keep their content", len(tables))
    note.write_text(log_id)
    return bool(tables)
