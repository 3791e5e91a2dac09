"""A dedupe index that already holds many identities: built once, kept under .cache/bench, and copied for each run."""

import hashlib
import os
import shutil
from pathlib import Path

from taximeter_streams.meter import dedupe
from taximeter_streams.meter.dedupe import Counted, RocksIndex, log_mark
from taximeter_streams.meter.kernel import load_kernel
from tests.benchmarks.progress import note

CACHE = Path(__file__).parents[2] / ".cache" / "bench"
_CHUNK = 100_000


def preloaded_index(identities: int) -> Path:
    """The folder of an index that holds that many random identities of another log."""
    written_by = hashlib.sha256(Path(dedupe.__file__).read_bytes()).hexdigest()[:12]
    folder = CACHE / f"index-{written_by}-{identities}"
    if folder.exists():
        return folder
    note(f"building an index of {identities:,} identities in {folder} (once)")
    for outdated in CACHE.glob("index-*"):
        if not outdated.name.startswith(f"index-{written_by}"):
            shutil.rmtree(outdated)
    building = folder.with_suffix(".building")
    shutil.rmtree(building, ignore_errors=True)
    index, mark = RocksIndex(building, load_kernel(CACHE)), log_mark("elsewhere", 0)
    for first in range(0, identities, _CHUNK):
        random = os.urandom(16 * _CHUNK)
        counted = (
            (random[at * 16 : at * 16 + 16], Counted(bytes(16), mark, first + at))
            for at in range(min(_CHUNK, identities - first))
        )
        index.mark("elsewhere/0", first, counted)
    index.wait_until_filtered()
    # A merge that is broken off here would be done by every worker that is measured.
    index.wait_until_merged()
    index.close()
    building.rename(folder)
    return folder


def copy_index(source: Path, target: Path) -> None:
    """A copy to write to. RocksDB never changes a table once written, so those are linked."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix == ".sst":
            os.link(file, target / file.name)
        else:
            shutil.copy2(file, target / file.name)
