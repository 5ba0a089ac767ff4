"""
Owns the process: `p2pcache` and `python -m p2pcache`.

Knows nothing of commands.
Invariants: none.
Source: [project.scripts] in pyproject.toml.
"""

from __future__ import annotations

from p2pcache.cli.group import p2pcache


def main() -> None:
    """Run the command line; exits with its code."""
    p2pcache(prog_name="p2pcache")


if __name__ == "__main__":
    main()
