"""`python -m worker`: the same as the command `shelfcast`."""

from worker.cli import main

main()
