"""
Owns which files of a snapshot a pull brings: patterns, and the same weights in a second format.

Knows nothing of what is here.
Invariants: nothing is left out unless the same weights stay, whole, as safetensors; a pattern that
asks for a file wins; what was left out is told.
Source: docs/decisions/0021-downloads.md; the layouts of repositories on the hub.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from p2pcache.core.snapshot import FileEntry, Snapshot
from p2pcache.errors import InputError

SAFETENSORS = ".safetensors"
# Formats that hold tensors under the same name as the safetensors beside them.
_SIBLINGS = (".bin", ".pt", ".pth", ".ckpt")
# Whole models of other frameworks, and conversions, which lie beside the safetensors.
_WHOLE = re.compile(
    r"tf_model.*\.h5|flax_model.*\.msgpack|diffusion_flax_model.*\.msgpack|rust_model\.ot"
    r"|consolidated.*\.pth|.*\.gguf|.*\.onnx|.*\.onnx_data|.*\.tflite",
    re.ASCII,
)
# Folders below a model's own that hold it again, in the format that they are named for.
_FOLDERS = frozenset({"original", "metal", "onnx", "openvino", "coreml", "tflite", "gguf"})
_WEIGHTS = (
    *_SIBLINGS, SAFETENSORS, ".h5", ".msgpack", ".ot", ".gguf", ".onnx", ".onnx_data", ".tflite",
    ".mlmodel",
)  # fmt: skip
# What can hold the same weights again; safetensors do only below one of the folders.
_OTHERS = tuple(suffix for suffix in _WEIGHTS if suffix != SAFETENSORS)
_SHARD = re.compile(r"(.+?)-(\d{1,6})-of-(\d{1,6})", re.ASCII)
# The names under which a folder's own model is saved.
_MODEL_STEMS = ("model", "diffusion_pytorch_model")
# Halved precision, and then some: below that it is not the same model, whatever its name is.
_SAME_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to bring, and those that hold the same weights once more; both in path order."""

    chosen: tuple[FileEntry, ...]
    left_out: tuple[FileEntry, ...] = ()

    @property
    def left_out_bytes(self) -> int:
        """Return what was spared, each content once."""
        kept = {entry.digest for entry in self.chosen}
        spared = {e.digest: e.size_bytes for e in self.left_out if e.digest not in kept}
        return sum(spared.values())


def plan_selection(
    snapshot: Snapshot, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Selection:
    """
    Choose the files of a snapshot.

    With an include pattern exactly what matches is chosen. Without one, everything is but what
    holds the same weights as the safetensors that are chosen.
    """
    files = snapshot.select(include, exclude) if include or exclude else snapshot.files
    if include:
        return Selection(tuple(files))
    spared = find_duplicates(files)
    if not spared:
        return Selection(tuple(files))
    return Selection(
        tuple(entry for entry in files if entry.path not in spared),
        tuple(entry for entry in files if entry.path in spared),
    )


def get_selection(
    snapshot: Snapshot, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Selection:
    """
    Choose the files of a snapshot, at least one of those that it has.

    Raises:
        InputError: No file matches the patterns.
    """
    selection = plan_selection(snapshot, include, exclude)
    if not selection.chosen and snapshot.files:
        raise InputError(
            f"No file of {snapshot.id.repo} matches these patterns; it has {len(snapshot.files)} "
            f"files, for example {snapshot.files[0].path!r}."
        )
    return selection


def select_default(files: Sequence[FileEntry]) -> tuple[FileEntry, ...]:
    """Return the files that a pull without patterns brings: what "resident" is measured by."""
    spared = find_duplicates(files)
    return tuple(files) if not spared else tuple(e for e in files if e.path not in spared)


def may_repeat(paths: Iterable[str]) -> bool:
    """
    Return whether any of some files could hold the same weights as others, by their names alone:
    in most models none; who asks whether one is here does not wait for the rest.
    """
    return any(path.endswith(_OTHERS) or "/" in path for path in paths)


def find_duplicates(files: Iterable[FileEntry]) -> frozenset[str]:
    """Return the paths of files that hold the same weights as whole safetensors among them."""
    entries = list(files)
    if not may_repeat([entry.path for entry in entries]):
        return frozenset()
    folders: dict[str, list[FileEntry]] = defaultdict(list)
    for entry in entries:
        folders[entry.path.rpartition("/")[0]].append(entry)
    whole = {folder: sizes for folder in folders if (sizes := _find_whole(folders[folder]))}
    if not whole:
        return frozenset()
    found: set[str] = set()
    for folder, inside in folders.items():
        found |= _find_in(inside, whole.get(folder, {}))
        parent, _, name = folder.rpartition("/")
        if name in _FOLDERS and _model_bytes(whole.get(parent, {})):
            found |= {entry.path for entry in inside if entry.path.endswith(_WEIGHTS)}
    return frozenset(found)


def _find_in(entries: list[FileEntry], whole: dict[str, int]) -> set[str]:
    """Return the duplicates in a folder that has some whole safetensors."""
    found: set[str] = set()
    if not whole:
        return found
    if _model_bytes(whole):
        others = [e.path for e in entries if e.path.endswith(_OTHERS)]
        found |= {path for path in others if _WHOLE.fullmatch(path.rpartition("/")[2])}
    groups: dict[str, list[FileEntry]] = defaultdict(list)
    for entry in entries:
        if not entry.path.endswith(_SIBLINGS):
            continue
        stem, suffix = _split(entry.path)
        if suffix:
            groups[_stem_of(stem)].append(entry)
    for stem, group in groups.items():
        twin = "model" + stem.removeprefix("pytorch_model") if _is_torch(stem) else stem
        size_bytes = sum(entry.size_bytes for entry in group)
        if twin in whole and whole[twin] >= _SAME_SHARE * size_bytes:
            found |= {entry.path for entry in group}
    return found


def _find_whole(entries: list[FileEntry]) -> dict[str, int]:
    """Return the bytes of every set of safetensors in a folder of which no shard is missing."""
    shards: dict[str, set[int]] = defaultdict(set)
    counts: dict[str, int] = {}
    sizes: dict[str, int] = defaultdict(int)
    for entry in entries:
        if not entry.path.endswith(SAFETENSORS):
            continue
        name, suffix = _split(entry.path)
        if not suffix:
            continue
        match = _SHARD.fullmatch(name)
        stem = name if match is None else match[1]
        shards[stem].add(1 if match is None else int(match[2]))
        counts[stem] = 1 if match is None else int(match[3])
        sizes[stem] += entry.size_bytes
    return {stem: sizes[stem] for stem, seen in shards.items() if len(seen) >= counts[stem]}


def _model_bytes(whole: dict[str, int]) -> int:
    return sum(whole.get(stem, 0) for stem in _MODEL_STEMS)


def _split(path: str) -> tuple[str, str]:
    """Return a file's name without its last suffix, and the suffix with its dot."""
    stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return (stem, dot + suffix) if stem else (suffix, "")


def _stem_of(stem: str) -> str:
    match = _SHARD.fullmatch(stem)
    return stem if match is None else match[1]


def _is_torch(stem: str) -> bool:
    return stem == "pytorch_model" or stem.startswith("pytorch_model.")
