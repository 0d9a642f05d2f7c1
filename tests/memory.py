"""Code that runs in a process of its own, with little memory beyond what its libraries take."""

import os
import subprocess
import sys
from pathlib import Path

from tests.imports import PROJECT

BOUNDED = """
import re, resource, sys
from pathlib import Path
import numpy as np
from maskdm.datasets.prepare import prepare
from tests.raw_data import settings
MARGIN = int(sys.argv[2]) << 20

def limit():
    # Private memory alone: files that are mapped are no memory that is used.
    used = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + MARGIN, used + MARGIN))
    try:
        np.ones(2 * MARGIN, np.uint8)
    except MemoryError:
        return
    sys.exit("the limit does not hold")

if __name__ == "__main__":
    exec(sys.argv[1])
"""


def bounded(code: str, folder: Path, megabytes: int) -> None:
    """Run `code` with so much memory beyond what it has before it calls `limit()`."""
    (folder / "bounded.py").write_text(BOUNDED)
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    environment["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # Arrow's own reserves 1 GB, which it may never use
    command = [sys.executable, "bounded.py", code, str(megabytes)]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
