"""Reading and changing a ledger behind its back, by SQL."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ssm_metarl.recursive_self_improvement.ledger import FILE_NAME


def edit(folder: Path, *statements: str) -> None:
    with sqlite3.connect(folder / FILE_NAME) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def rows(folder: Path, query: str) -> list[tuple]:
    db = sqlite3.connect(folder / FILE_NAME)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()
