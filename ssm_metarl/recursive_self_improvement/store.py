"""Weights on disk, each under the hash of its content.

Place in the flow: stage 8, beside the `ledger`, whose rows name weights by their hash. A file is
written whole, synced, renamed, and its folder synced, before any row speaks of it: after a kill or
a power cut there may be a file too many, never one too few, and never half a file under its name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

SUFFIX = ".safetensors"


class WeightStore:
    """Weights by content.

    Args:
        folder: Made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            folder.mkdir(parents=True)
            sync_folder(folder.parent)

    def put(self, content: bytes) -> str:
        """Keep some weights; returns their name. A full disk (OSError) leaves what was there."""
        name = name_of(content)
        path = self.path(name)
        if path.is_file() and name_of(path.read_bytes()) == name:
            sync_folder(self.folder)  # a kill may have come between its rename and this
            return name
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(self.folder)
        finally:
            temporary.unlink(missing_ok=True)
        return name

    def get(self, name: str) -> bytes:
        """The weights of that name.

        Raises:
            FileNotFoundError: There are none.
            ValueError: The file holds something else: it is damaged.
        """
        path = self.path(name)
        content = path.read_bytes()
        if name_of(content) != name:
            raise ValueError(f"{path}: expected weights with the hash {name}, received others")
        return content

    def path(self, name: str) -> Path:
        """Where weights of that name are, or would be; ValueError where it is no such name."""
        if len(name) != 32 or not set(name) <= set("0123456789abcdef"):
            raise ValueError(f"weights: expected 32 hexadecimal digits, received {name!r}")
        return self.folder / f"{name}{SUFFIX}"

    def prune(self, keep: Collection[str]) -> None:
        """Delete all weights but those named, and what an interrupted write left behind."""
        for path in self.folder.iterdir():
            if path.name.removesuffix(SUFFIX) not in keep:
                path.unlink(missing_ok=True)


def name_of(content: bytes) -> str:
    """The name of weights: BLAKE2b of their bytes, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
