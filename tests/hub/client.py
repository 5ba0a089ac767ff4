"""
Owns running the real hub client in a process of its own, with a home of its own.

Knows nothing of which hub it talks to: the endpoint is an argument.
Invariants: only PATH of this process reaches the client; nothing is cached between homes.
Source: the client's public environment variables (HF_ENDPOINT, HF_HOME, HF_TOKEN, …).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLIENT_TIMEOUT_S = 40.0
PRELUDE = """
import hashlib, json, os, sys
from pathlib import Path
import huggingface_hub
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download

def digests(root):
    files = [path for path in sorted(Path(root).rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files}

def name_error(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "no error"

"""
EPILOGUE = "\nprint('RESULT ' + json.dumps(result))\n"


@dataclass(frozen=True)
class ClientOutcome:
    """How the client ended. `result` is what the script left in its variable of that name."""

    exit_code: int
    result: Any
    stdout: str
    stderr: str


@dataclass(frozen=True)
class RealClient:
    """The installed huggingface_hub, pointed at an endpoint."""

    endpoint: str
    home: Path
    token: str | None = None
    xet: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """Return the whole environment of the client's process."""
        chosen = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "HOME": str(self.home),
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        if not self.xet:
            chosen["HF_HUB_DISABLE_XET"] = "1"
        if self.token is not None:
            chosen["HF_TOKEN"] = self.token
        return chosen

    async def start(self, *command: str) -> asyncio.subprocess.Process:
        """Start a command in the client's environment."""
        self.home.mkdir(parents=True, exist_ok=True)
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *command, env=self.environment, cwd=self.home, stdout=pipe, stderr=pipe
        )

    async def run_command(self, *command: str) -> ClientOutcome:
        """Run a command (`hf`, …) to its end."""
        child = await self.start(*command)
        try:
            async with asyncio.timeout(CLIENT_TIMEOUT_S):
                stdout, stderr = await child.communicate()
        except BaseException:
            child.kill()
            await child.communicate()
            raise
        assert child.returncode is not None
        text = stdout.decode()
        marked = [line for line in text.splitlines() if line.startswith("RESULT ")]
        result = json.loads(marked[-1].removeprefix("RESULT ")) if marked else None
        return ClientOutcome(child.returncode, result, text, stderr.decode())

    async def run(self, script: str) -> Any:
        """
        Run a script that assigns `result` (JSON-like) and return it.

        Raises:
            AssertionError: The script failed; the message is its stderr.
        """
        text = PRELUDE + textwrap.dedent(script) + EPILOGUE
        outcome = await self.run_command(sys.executable, "-c", text)
        assert outcome.exit_code == 0, outcome.stderr
        return outcome.result
