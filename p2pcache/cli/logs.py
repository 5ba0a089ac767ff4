"""
Owns the lines of the daemon's log: text or JSON, on standard error.

Knows nothing of who logs.
Invariants: a record is one line, however it was made, but for tracebacks in text; nothing that
looks like a token leaves.
Source: design.md §7 (tokens) and §8 (--log-format).
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

# The last guard, not the first: nobody is to log one. Tokens of hubs, headers, signed addresses.
_SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{8,}|(?<=Bearer )\S+|(?<=[?&])(?:X-Amz-|Signature|Policy|Key-Pair)[^\s&\"']*"
)


class TextLines(logging.Formatter):
    """2026-01-31T12:00:00.000Z INFO p2pcache.engine.swarm: message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback follows on lines of its own."""
        line = f"{_time_of(record)} {record.levelname} {record.name}: {_message_of(record)}"
        if record.exc_info:
            line += "\n" + hide_secrets(self.formatException(record.exc_info))
        return line


class JsonLines(logging.Formatter):
    """One object per line: time, level, logger, message, and traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry = {
            "time": _time_of(record),
            "level": record.levelname,
            "logger": record.name,
            "message": hide_secrets(record.getMessage()),
        }
        if record.exc_info:
            entry["traceback"] = hide_secrets(self.formatException(record.exc_info))
        return json.dumps(entry)


def hide_secrets(text: str) -> str:
    """Return the text with stars where a token or a signature stands."""
    return _SECRET.sub("***", text)


def start_logging(log_format: str) -> None:
    """Send INFO and above to standard error, in place of what was set before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # It tells of every packet that it cannot read; a LAN has many that are not meant for us.
    logging.getLogger("zeroconf").setLevel(logging.WARNING)


def _message_of(record: logging.LogRecord) -> str:
    text = hide_secrets(record.getMessage())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _time_of(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
