"""What no candidate may touch, and what must hold before anything is done.

Place in the flow: stage 8, asked by `agent` before every step. The evaluator is the code whose
numbers decide: tasks, worlds, policies, adaptation, metrics, the gate. Its hash is written down
when a lineage begins; where it is another one, the lineage halts at once, for numbers of two
evaluators cannot be compared. A person may look, and acknowledge.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
EVALUATOR = (
    "action_space.py", "adaptation", "checkpoint.py", "compiled.py", "config.py", "core",
    "env_runner", "evaluation/episodes.py", "evaluation/score.py", "experience", "methods",
    "objectives",
    "recursive_self_improvement/agent.py", "recursive_self_improvement/config.py",
    "recursive_self_improvement/gate.py", "recursive_self_improvement/generation.py",
    "recursive_self_improvement/lineage.py", "recursive_self_improvement/metrics.py",
    "seeding.py", "settings.py", "tasks", "types.py",
)  # fmt: skip
"""Files and folders, under the package, that an evaluation's numbers depend on."""


def evaluator_hash(package: Path = PACKAGE) -> str:
    """Hash of the evaluator's source, 32 hexadecimal digits; a part that is missing changes it.

    Raises:
        OSError: A part cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in EVALUATOR:
        path = package / part
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            content = file.read_bytes() if file.is_file() else b"missing"
            digest.update(f"{file.relative_to(package).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def require_room(folder: Path, megabytes: float) -> None:
    """Raise OSError (no space left) unless the disk has so much room."""
    free = shutil.disk_usage(folder).free
    if free < megabytes * 1e6:
        raise OSError(
            errno.ENOSPC,
            f"expected {megabytes:g} MB of free disk, received {free / 1e6:.1f} MB",
            str(folder),
        )


def is_disk_trouble(error: OSError) -> bool:
    """Whether an error is of the disk: full, broken, or over its quota."""
    troubles = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
    words = ("disk is full", "disk i/o", "readonly", "unable to open")  # SQLite's
    return error.errno in troubles or any(w in str(error).lower() for w in words)
