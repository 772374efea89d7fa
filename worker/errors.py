"""What can go wrong in `worker`, as one tree: a leaf exists because some caller does something different about it.

ShelfcastError
├── SettingsError          a setting has a value that can't be: the process does not start
├── TopicError             a topic is missing or has the wrong shape: the process does not start
├── ModelError             the served model is not the one this worker was built for: the process does not start
├── TooManyRejectsError    most records can't be used: the worker stops before it has thrown a stream away
├── WatchdogError          the worker stands still with records to read: it ends, to be started anew
├── TableError             a table of past events can't be read: nothing is made of it
├── MendError              a dead letter can't be changed as asked for: it is not sent, others are
├── BacktestError          a backtest's recording, models or settings do not go together: it does not start
├── ForecastUnavailableError   Triton did not answer in time: a baseline takes its place
└── LocalStackError        a server of the local stack is missing, cannot start or died
"""


class ShelfcastError(Exception):
    """Root of all errors shelfcast raises on purpose; the message tells a person what to do."""


class SettingsError(ShelfcastError):
    """A setting has a value that can't be; names it and its environment variable."""


class TopicError(ShelfcastError):
    """A topic is missing, or has partitions or a configuration that can't work; names the remedy."""


class ModelError(ShelfcastError):
    """The served model's contract differs from this worker's; names both and the remedy."""


class TooManyRejectsError(ShelfcastError):
    """The share of rejected records passed its limit; names the reason seen most and the remedy."""


class WatchdogError(ShelfcastError):
    """There is lag, no outage is known, and positions stand still; names the partition and what to look at."""


class MendError(ShelfcastError):
    """A dead letter can't be changed in the way asked for; says which other way there is."""


class BacktestError(ShelfcastError):
    """What a backtest was asked for can't be; names the recording, model or setting and the remedy."""


class TableError(ShelfcastError):
    """A table can't be read, or has other columns or values than events need; names the place and the remedy."""


class ForecastUnavailableError(ShelfcastError):
    """Triton gave no forecast within the deadline."""


class LocalStackError(ShelfcastError):
    """A server of the local stack is not installed, did not start or died; quotes its log."""
