"""
Owns the tests of the log's lines.

Knows nothing of the daemon.
Invariants: the root logger of the test run is left alone; what sets it runs in another process.
Source: design.md §7 (tokens).
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from p2pcache.cli.logs import JsonLines, TextLines, hide_secrets


def make_record(message: str, *, is_failure: bool = False) -> logging.LogRecord:
    """Return a record of one moment, with a traceback if asked for."""
    failure = None
    if is_failure:
        try:
            raise ValueError("hf_abcdefgh12345")
        except ValueError:
            failure = sys.exc_info()
    record = logging.LogRecord("p2pcache.x", logging.INFO, "x.py", 1, message, ("a",), failure)
    record.created = 1_767_225_600.25
    return record


def test_text_line_of_record_is_one_line() -> None:
    """A peer cannot write a second line, or to the terminal."""
    line = TextLines().format(make_record("peer %s\nERROR fake\x1b[2J"))
    assert line == ("2026-01-01T00:00:00.250Z INFO p2pcache.x: peer a\\nERROR fake\\x1b[2J")


def test_json_line_of_record_has_fields() -> None:
    """One object; the message is not escaped twice."""
    assert json.loads(JsonLines().format(make_record("peer %s\n"))) == {
        "time": "2026-01-01T00:00:00.250Z",
        "level": "INFO",
        "logger": "p2pcache.x",
        "message": "peer a\n",
    }


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines()])
def test_line_of_failure_has_traceback_without_token(formatter: logging.Formatter) -> None:
    """A traceback can quote what was passed around."""
    line = formatter.format(make_record("failed %s", is_failure=True))
    assert "ValueError: ***" in line
    assert "hf_" not in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("token hf_abcdefghijkl, next", "token ***, next"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("GET /x?a=1&X-Amz-Signature=abc&b=2", "GET /x?a=1&***&b=2"),
        ("an hf_ prefix and a bearer", "an hf_ prefix and a bearer"),
    ],
)
def test_hide_secrets_of_text_stars_tokens_alone(text: str, expected: str) -> None:
    """Tokens and signatures go, the rest stays."""
    assert hide_secrets(text) == expected


def test_start_logging_sends_information_to_standard_error() -> None:
    """INFO is shown, DEBUG is not, standard output stays clean."""
    script = (
        "import logging\n"
        "from p2pcache.cli.logs import start_logging\n"
        "start_logging('json')\n"
        "logging.getLogger('p2pcache').info('shown')\n"
        "logging.getLogger('p2pcache').debug('hidden')\n"
        "logging.getLogger('zeroconf').info('hidden')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout == ""
    assert [json.loads(line)["message"] for line in result.stderr.splitlines()] == ["shown"]
