"""
Owns the reference pages that are made from code: cli, config, errors, metrics.

Knows nothing of prose elsewhere; `python -m docs.generate` writes the pages, and a test compares.
Invariants: equal code gives equal text; a metric without an explanation here is an error.
Source: p2pcache.cli.group, p2pcache.config, p2pcache.errors, p2pcache/daemon/metrics.py.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from p2pcache import errors
from p2pcache.cli.command import EXIT_CODES, Command
from p2pcache.cli.group import p2pcache
from p2pcache.config import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
METRICS_MODULE = ROOT / "p2pcache" / "daemon" / "metrics.py"
_NOTE = "<!-- Made by `python -m docs.generate`; change the code, not this page. -->"

# What no code says: what a label's values mean, and what to do with the number.
METRIC_NOTES: dict[str, str] = {
    "p2pcache_bytes_total": "`upstream` in: chunks from the hub. `peer` in and out: chunks from "
    "and to other daemons. `disk` out: bodies that the gateway sent. Chunks count when they "
    "were stored, so bytes of a run that broke off are not in it.",
    "p2pcache_chunks_rejected_total": "`source` is `peer`; `reason` is `wrong bytes` (the sender "
    "is banned) or `damaged copy` (the sender noticed by itself). Anything above 0 deserves a "
    "look at `p2pcache status`.",
    "p2pcache_downloads": "`state` is one of `queued`, `resolving`, `downloading`, `verifying`, "
    "`done`, `failed`, `cancelled`; finished jobs are counted as long as they can be asked about.",
    "p2pcache_store_bytes": "`kind` is `blobs` (whole files), `partial` (what files that are "
    "being filled take on the disk, reserved room included) or `adopted` (those of the whole files "
    "whose bytes lie in a file of somebody else, and take no room of the store's).",
    "p2pcache_evictions_total": "`kind` is `snapshot`, `blob`, `partial` or `file`: the steps of "
    "`gc`, of `rm`, and of making room. One that rises with every pull says that the quota is too "
    "small for what is used.",
    "p2pcache_evicted_bytes_total": "What the disk has back once no program has those files open.",
    "p2pcache_store_blobs": "Distinct contents; the same file in two repositories counts once.",
    "p2pcache_checked_bytes_total": "By `p2pcache check` and by the weekly look in the background; "
    "not what is hashed again because a file changed.",
    "p2pcache_damaged_chunks_total": "Whoever found them: a check, or a reader whose file had "
    "changed. Anything above 0 is a disk to look at; `p2pcache check` says which files.",
    "p2pcache_peers": "`state` is `up` or `banned`; peers that do not answer are in neither.",
    "p2pcache_exchanges_total": "About 30 a second at most, however many peers there are, and one "
    "for each when a pull begins.",
    "p2pcache_extra_bytes_total": "Chunks that were asked for twice, and what came of runs that "
    "were given up; at most 2 % of what is fetched, but for peers that break off.",
    "p2pcache_upstream_pauses_total": "Answers of 429, and of 503 with `Retry-After`; several to "
    "requests that were sent together count once. One that rises all day says that the site needs "
    "a token, or fewer machines that ask for names; `p2pcache status` shows how long a pause is.",
    "p2pcache_token_checks_total": "`answer` is `yes`, `no` or `unanswered`. Gated and private "
    "files cost one for each request; many `unanswered` mean refused callers.",
    "p2pcache_grace_answers_total": "Only with `--offline-grace`; each one is in the log too.",
    "p2pcache_residency_seconds": "One observation for each answer of `residency` that neither "
    "waits nor asks every peer; the goal is 99 % below 0.01.",
    "p2pcache_gateway_requests_total": "`dialect` is `hf` or `ms`; `code` is the HTTP status that "
    "was sent. A body that was broken off counts with the status that it began with.",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of metrics, as the code declares it."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]


def table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sentences(text: str) -> str:
    """Return prose with one sentence per line; paragraphs stay apart."""
    paragraphs = (" ".join(p.split()) for p in inspect.cleandoc(text).split("\n\n"))
    return "\n\n".join(p.replace(". ", ".\n") for p in paragraphs)


# --- cli ---


def commands() -> list[tuple[str, Command]]:
    """Return the commands in the order of --help."""
    found = [(name, p2pcache.commands[name]) for name in p2pcache.list_commands(_context())]
    return [(name, command) for name, command in found if isinstance(command, Command)]


def _context() -> click.Context:
    return click.Context(p2pcache, info_name="p2pcache")


def make_cli() -> str:
    """Return reference/cli.md."""
    parts = [
        _NOTE,
        "# Command line",
        "Every command says all this with `--help`.\n"
        "Options that set up a daemon have an environment variable each; see [config](config.md).",
        table(
            ("command", "what it does"), [(f"[`{n}`](#{n})", _first_line(c)) for n, c in commands()]
        ),
        "## Exit codes",
        table(("code", "meaning"), [(str(code), text) for code, text in EXIT_CODES.items()]),
        "Which error has which code: [errors](errors.md).",
    ]
    parts += [_describe_command(name, command) for name, command in commands()]
    return "\n\n".join(parts) + "\n"


def _first_line(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").splitlines()[0]


def _describe_command(name: str, command: Command) -> str:
    arguments = [_show_argument(p) for p in command.params if isinstance(p, click.Argument)]
    options = [p for p in command.params if isinstance(p, click.Option)]
    examples = inspect.cleandoc(command.examples)
    return "\n\n".join(
        [
            f"## {name}",
            "```text\n" + " ".join(["p2pcache", name, "[OPTIONS]", *arguments]) + "\n```",
            _sentences(command.help or ""),
            table(("option", "meaning"), [_describe_option(option) for option in options]),
            f"```sh\n{examples}\n```",
            "Exit codes: " + ", ".join(str(code) for code in command.exit_codes) + ".",
        ]
    )


def _show_argument(argument: click.Argument) -> str:
    name = argument.metavar or (argument.name or "").upper()
    return name if argument.required else f"[{name}]"


def _describe_option(option: click.Option) -> tuple[str, str]:
    names = ", ".join(f"`{text}`" for text in (*option.opts, *option.secondary_opts))
    metavar = f" `{option.metavar}`" if option.metavar else ""
    help_text = option.help or ""
    if option.show_envvar and option.envvar:
        variables = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar)
        help_text += " [env var: " + ", ".join(variables) + "]"
    if option.multiple and "Repeatable" not in help_text:
        help_text += " Repeatable."
    return names + metavar, help_text


# --- config ---


def make_config() -> str:
    """Return reference/config.md."""
    rows = [
        (
            f"`{s.name}`" if s.in_file else f"`{s.name}` (not in the file)",
            f"`{s.flag}`" + (f" `{s.metavar}`" if s.metavar else ""),
            f"`{s.environment}`",
            s.default_text,
            s.help,
            s.reason,
        )
        for s in SETTINGS
    ]
    head = ("key", "flag of `up`", "environment", "default", "meaning", "why it is so")
    return (
        "\n\n".join(
            [
                _NOTE,
                "# Configuration",
                "A daemon reads its settings once, when `p2pcache up` starts.\n"
                "A flag wins over its environment variable, which wins over the TOML file of "
                "`--config`, which wins over the default.\n"
                "An empty environment variable counts as not set.\n"
                "`HF_ENDPOINT` is never read: in the environment of workers it names the daemon.",
                table(head, rows),
                "A file of settings:",
                '```toml\nstore = "/data/p2pcache"\npeer = ["10.0.0.7:7278", "10.0.0.8:7278"]\n'
                'discover = ["none"]\ntrust_peers = true\n```',
                "A relative `store` in the file is relative to the file.\n"
                "A key that is none of the above is an error (exit code 3), and so is every value "
                "that cannot work.",
                "The command line also reads two of them to find a daemon: `P2PCACHE_LOCAL` and "
                "`P2PCACHE_STORE`.\n"
                "`P2PCACHE_TOKEN`, else `HF_TOKEN` (for `ms:` references "
                "`MODELSCOPE_API_TOKEN`), is the caller's own token for `pull`, `pin` and `exec`; "
                "a daemon has none.",
            ]
        )
        + "\n"
    )


# --- errors ---


def error_classes() -> list[type[errors.P2PCacheError]]:
    """Return the error tree, parents before children."""

    def walk(cls: type[errors.P2PCacheError]) -> Iterator[type[errors.P2PCacheError]]:
        yield cls
        for child in cls.__subclasses__():
            if child.__module__ == errors.__name__:
                yield from walk(child)

    return list(walk(errors.P2PCacheError))


def make_errors() -> str:
    """Return reference/errors.md."""
    rows = []
    for cls in error_classes():
        depth = len(cls.__mro__) - len(errors.P2PCacheError.__mro__)
        rows.append(
            (
                "&nbsp;&nbsp;" * depth + f"`{cls.__name__}`",
                f"`{cls.__name__.removesuffix('Error')}`",
                str(cls.exit_code),
                str(cls.http_status),
                "yes" if cls.retryable else "no",
                cls.__doc__ or "",
            )
        )
    return (
        "\n\n".join(
            [
                _NOTE,
                "# Errors",
                "An error says in its type who is to blame, and in one sentence what to do next.\n"
                "A process ends with its exit code.\n"
                'An HTTP answer has its status and the JSON body `{"error", "message"}`; '
                "`error` is the code below, and the header `X-Error-Code` repeats it.",
                table(
                    ("class", "code", "exit code", "HTTP status", "asking again helps", "meaning"),
                    rows,
                ),
                "The Hugging Face gateway answers in the hub's own words instead; "
                "see [hub-dialect](hub-dialect.md).\n"
                "`InternalError` (500) is a fault of ours; the daemon's log has the traceback.",
                "Commands end with these codes:",
                table(("exit code", "meaning"), [(str(c), text) for c, text in EXIT_CODES.items()]),
            ]
        )
        + "\n"
    )


# --- metrics ---


def metrics() -> list[Metric]:
    """Return the families that the code declares, in the order in which they are shown."""
    found = []
    for node in ast.walk(ast.parse(METRICS_MODULE.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or len(node.args) < 3:
            continue
        head = [a.value for a in node.args[:3] if isinstance(a, ast.Constant)]
        name, kind, text = ([str(v) for v in head] + ["", "", ""])[:3]
        if name.startswith("p2pcache_") and kind in ("counter", "gauge", "histogram"):
            found.append((node.lineno, Metric(name, kind, text, _labels_of(node.args[3:]))))
    return [metric for _, metric in sorted(found, key=lambda item: item[0])]


def _labels_of(arguments: Sequence[ast.expr]) -> tuple[str, ...]:
    """Return the label names: the first parts of the pairs that make a key."""
    names: dict[str, None] = {}
    for argument in arguments:
        for node in ast.walk(argument):
            if isinstance(node, ast.Tuple) and len(node.elts) == 2:
                first = node.elts[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    names[first.value] = None
    return tuple(names)


def make_metrics() -> str:
    """Return reference/metrics.md."""
    rows = []
    for metric in metrics():
        if metric.name not in METRIC_NOTES:
            raise KeyError(f"{metric.name} has no explanation; add one to docs/generate.py")
        shown = f"`{metric.name}`"
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
        rows.append((shown, metric.kind, labels, f"{metric.help} {METRIC_NOTES[metric.name]}"))
    return (
        "\n\n".join(
            [
                _NOTE,
                "# Metrics",
                "`GET /metrics` at the local endpoint, in the Prometheus text format.\n"
                "Label values come from fixed sets, never from a request, so that their number is "
                "bounded.\n"
                "A labelled counter appears with its first event, and starts anew with the daemon.",
                table(("metric", "kind", "labels", "meaning"), rows),
            ]
        )
        + "\n"
    )


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": make_cli,
    "config.md": make_config,
    "errors.md": make_errors,
    "metrics.md": make_metrics,
}


def main() -> None:
    """Write every page."""
    for name, make in PAGES.items():
        (REFERENCE / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
