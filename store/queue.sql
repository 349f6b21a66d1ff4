-- The queue of a folder of pictures, as numbered migrations (see schema.sql). Clocks: `beat` counts seconds since the
-- machine was started, which no setting of the clock moves; `seen` and `finished` are seconds since 1970.

-- migration 1

CREATE TABLE note (
    key   TEXT PRIMARY KEY,                 -- 'shard', 'jobs': of all files so far, other shards' too
    value TEXT NOT NULL
) WITHOUT ROWID;

-- Programs at work on the queue.
CREATE TABLE worker (
    key   INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again
    host  TEXT NOT NULL,
    boot  TEXT NOT NULL,                    -- which start of the machine
    space TEXT NOT NULL,                    -- in which process numbers count
    pid   INTEGER NOT NULL,
    began INTEGER NOT NULL,                 -- when the process did, for a number that is used again
    beat  INTEGER NOT NULL,                 -- its last sign of life
    lease INTEGER NOT NULL,                 -- seconds that one is good for
    seen  INTEGER NOT NULL
);

CREATE TABLE job (
    n        INTEGER PRIMARY KEY,           -- its place in the files of jobs, from 1
    id       TEXT NOT NULL UNIQUE,
    asked    TEXT NOT NULL,                 -- hash of what the file says of it
    source   TEXT NOT NULL,                 -- FILE:LINE
    settings TEXT NOT NULL,                 -- all of the picture, as it will remember it
    partial  INTEGER NOT NULL,              -- adapters may fit in part
    batch    TEXT NOT NULL,                 -- jobs of the same are made together: model and size
    adapters TEXT NOT NULL,                 -- which, and how strong
    turn     INTEGER NOT NULL,              -- the place of the first with the same adapters
    fold     INTEGER,                       -- whether they are folded; NULL: nobody has chosen
    file     TEXT NOT NULL UNIQUE,          -- from the folder on
    state    INTEGER NOT NULL DEFAULT 0,    -- enum queue_state
    worker   INTEGER REFERENCES worker (key),
    attempts INTEGER NOT NULL DEFAULT 0,    -- times it was begun
    crashes  INTEGER NOT NULL DEFAULT 0,    -- of these, times the program ended meanwhile
    reason   TEXT,                          -- of a failure
    sha256   TEXT,                          -- of the picture's file
    bytes    INTEGER,
    seconds  REAL,
    finished INTEGER
);
CREATE INDEX job_next ON job (state, batch, turn, n);
CREATE INDEX job_set ON job (batch, adapters, turn);
