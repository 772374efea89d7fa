"""One file a claim. Each starts its own servers, prints a table, and with `--json` ends in one line of JSON."""
