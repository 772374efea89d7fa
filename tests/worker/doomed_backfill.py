"""`shelfcast backfill`, killed and run again: python -m tests.worker.doomed_backfill SEED KILLS ARGUMENTS...

Each run but the last ends itself at a crash point, as `kill -9` would. Prints how the runs ended: minus the signal, or
the exit code. A program of its own, since it forks and must not have threads.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from collections.abc import Sequence

from feature_store.backfill_marks import BackfillMarks
from tests.chaos import seams
from worker.backfill import command


def run_in_child(arguments: Sequence[str], trap: seams.Trap) -> int:
    """Returns how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            seams.arm_store(trap)
            for name in ("begin", "end"):
                seams._wrap(BackfillMarks, name, trap, lambda *_: "mark")
            os.dup2(2, 1)  # standard output is for how the runs end
            command(list(arguments), standalone_mode=False)
        except BaseException as error:
            traceback.print_exception(error)
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    seed, kills, *arguments = sys.argv[1:]
    random_ = random.Random(int(seed))
    ends = []
    for _ in range(int(kills)):
        seam, most = random_.choice([("script", 6), ("script", 6), ("mark", 4)])
        point = seams.CrashPoint(seam, random_.choice(seams.MOMENTS), random_.randint(1, most))
        ends.append(run_in_child(arguments, seams.Trap(point, random_)))
    ends.append(run_in_child(arguments, seams.Trap(None, random_)))
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
