"""The tables, and how those of an older version are upgraded."""

from __future__ import annotations

import sqlite3

SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, status TEXT NOT NULL, created REAL NOT NULL,
    recipe TEXT NOT NULL, data TEXT NOT NULL, cancel_requested INTEGER NOT NULL DEFAULT 0,
    owner TEXT NOT NULL DEFAULT '', place REAL NOT NULL DEFAULT 0, begun INTEGER NOT NULL DEFAULT 0,
    urgent INTEGER NOT NULL DEFAULT 0, runs_on TEXT NOT NULL DEFAULT 'any', notes TEXT NOT NULL DEFAULT '',
    tags TEXT NOT NULL DEFAULT '[]', deleted REAL
);
CREATE TABLE stages (
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, position INTEGER NOT NULL, name TEXT NOT NULL,
    status TEXT NOT NULL, options TEXT NOT NULL, started REAL, finished REAL, seconds REAL,
    reused INTEGER NOT NULL DEFAULT 0, error TEXT, metrics TEXT NOT NULL DEFAULT '{}',
    artifacts TEXT NOT NULL DEFAULT '[]', device TEXT, attempts INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run, position), UNIQUE (run, name)
);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE INDEX runs_by_status ON runs(status);
CREATE INDEX runs_by_owner ON runs(owner, begun);
CREATE INDEX stages_by_status ON stages(status);
"""
# Statements that upgrade a database from the version before.
CHANGES = {
    2: """
ALTER TABLE runs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN place REAL NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN begun INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN urgent INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN runs_on TEXT NOT NULL DEFAULT 'any';
ALTER TABLE runs ADD COLUMN notes TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN tags TEXT NOT NULL DEFAULT '[]';
ALTER TABLE runs ADD COLUMN deleted REAL;
ALTER TABLE stages ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE INDEX runs_by_owner ON runs(owner, begun);
UPDATE runs SET place = rowid;
""",
}


def version_of(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def bring_up(db: sqlite3.Connection, version: int) -> int:
    """Create the tables, or change those of an older version one version at a time."""
    steps = [SCHEMA] if version == 0 else [CHANGES[to] for to in range(version + 1, SCHEMA_VERSION + 1)]
    for statement in ";".join(steps).split(";"):
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return SCHEMA_VERSION
