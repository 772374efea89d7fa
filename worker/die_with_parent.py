"""`python -I -S die_with_parent.py PARENT COMMAND...` becomes COMMAND, which is killed when process PARENT ends.

A program of its own instead of a `preexec_fn`: Python code between fork and exec may deadlock in a process
that has threads, and those that start servers have many (Kafka and gRPC clients, torch).

The kernel kills when the *thread* that started this process ends: it must be one that lives as long as PARENT.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        # SIGKILL, not SIGTERM: a Triton told to end politely leaves a model stuck in `execute` behind.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above, so the kernel has nothing left to tell us
        sys.exit("the process that started this one is gone")
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):  # what is ignored stays so after exec
        signal.signal(ignored_by_python, signal.SIG_DFL)
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()
