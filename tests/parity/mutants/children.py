"""A process for tests of askings, `python -m tests.parity.mutants.children FILE`: ends as the file says, or starts a child and hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

FOREVER = 600.0


def main() -> int:
    """The file's first word is an exit code, `killed`, or `hangs`; then the child's process id is put beside it."""
    file = Path(sys.argv[1])
    word = file.read_text()
    print(f"said {word}\x1b[31m", file=sys.stderr)
    if word == "killed":
        os.abort()
    if word != "hangs":
        return int(word)
    # as workers are started: in a session of its own, which no signal to this process's group reaches
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER})"], start_new_session=True)
    file.with_name("child").write_text(str(child.pid))
    os.rename(file.with_name("child"), file.with_name("pid"))
    time.sleep(FOREVER)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
