"""Commands that end with the process that started them, programs that know nothing of Taximeter included.

Linux only: elsewhere the command runs as it is. The signal is sent when the *thread* that started the command ends, so
start long-lived children from a thread that lives as long as they should.
"""

import os
import sys
from collections.abc import Sequence

# Runs without site-packages, so that it costs some 15 ms: asks for SIGKILL on the parent's end (1 is PR_SET_PDEATHSIG),
# makes sure that the parent has not ended before, and becomes the command.
_TETHER = """
import ctypes, os, sys
ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent ended before this process had started")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def tethered_command(command: Sequence[str]) -> list[str]:
    """The command, made to be killed by the kernel as soon as this process has ended, however it ended."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *command]
