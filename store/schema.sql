-- The repository's database, as numbered migrations. Each runs once, in one transaction, and then
-- PRAGMA user_version is its number. One that has been released is never edited; add another.
-- Paths are BLOBs: file names are bytes. Times are seconds since 1970, mtime is nanoseconds.

-- migration 1

-- Folders that `sync` looks through again.
CREATE TABLE folder (
    path  BLOB PRIMARY KEY,
    copy  INTEGER NOT NULL DEFAULT 0        -- what is found there is copied
) WITHOUT ROWID;

-- Files of our own. path is relative to the repository.
CREATE TABLE blob (
    path          TEXT PRIMARY KEY,
    sha256        TEXT NOT NULL,
    bytes         INTEGER NOT NULL,
    config_sha256 TEXT                      -- of adapter_config.json beside it
) WITHOUT ROWID;

CREATE TABLE adapter (
    key           INTEGER PRIMARY KEY,
    id            TEXT NOT NULL UNIQUE,     -- never changes
    name          TEXT NOT NULL UNIQUE,
    path          BLOB UNIQUE,              -- the file as found; of a copy: where it came from
    blob          TEXT REFERENCES blob (path),  -- our own copy, or NULL: used in place
    bytes         INTEGER NOT NULL,
    mtime         INTEGER NOT NULL,
    file_sha256   TEXT NOT NULL,            -- AutoV2 is its first 10 digits
    data_sha256   TEXT NOT NULL,            -- of the tensor data alone; AutoV3 is its first 12
    declared_hash TEXT,                     -- what the trainer wrote; shown, never trusted
    config_sha256 TEXT,                     -- of the PEFT config beside the file
    format        TEXT,                     -- the importer's name, NULL: none takes it
    style         TEXT,
    kinds         TEXT NOT NULL,            -- "lora locon"
    base          TEXT NOT NULL,            -- sd1 sd2 sdxl ... unknown, from tensors
    context       INTEGER,                  -- width of the text that cross-attention sees
    unusable      TEXT,                     -- why it cannot be rendered, NULL: it can
    rank_min      INTEGER,
    rank_max      INTEGER,
    sites         INTEGER NOT NULL,
    tensors       INTEGER NOT NULL,
    dtype         TEXT NOT NULL,
    norm          REAL,
    category      TEXT,
    class_word    TEXT,
    notes         TEXT,
    strength      REAL,                     -- used when none is asked for
    preview       BLOB,                     -- path of a picture beside the file
    missing       INTEGER,                  -- since when the file is gone
    added         INTEGER NOT NULL
);
CREATE INDEX adapter_file_sha256 ON adapter (file_sha256);
CREATE INDEX adapter_data_sha256 ON adapter (data_sha256);
CREATE INDEX adapter_blob ON adapter (blob);
CREATE INDEX adapter_base ON adapter (base, context);
CREATE INDEX adapter_added ON adapter (added);
CREATE INDEX adapter_bytes ON adapter (bytes);
CREATE INDEX adapter_rank ON adapter (rank_max);
CREATE INDEX adapter_missing ON adapter (missing) WHERE missing IS NOT NULL;

-- Large texts, apart so that lists are quick: the file's own metadata and what lay beside it.
CREATE TABLE metadata (
    adapter  INTEGER PRIMARY KEY REFERENCES adapter (key) ON DELETE CASCADE,
    file     TEXT,
    beside   TEXT
);

CREATE TABLE alias (
    name     TEXT NOT NULL,
    adapter  INTEGER NOT NULL REFERENCES adapter (key) ON DELETE CASCADE,
    PRIMARY KEY (name, adapter)
) WITHOUT ROWID;
CREATE INDEX alias_adapter ON alias (adapter);

CREATE TABLE tag (
    name     TEXT NOT NULL,
    adapter  INTEGER NOT NULL REFERENCES adapter (key) ON DELETE CASCADE,
    PRIMARY KEY (name, adapter)
) WITHOUT ROWID;
CREATE INDEX tag_adapter ON tag (adapter);

-- A row is a group of words that belong together in a prompt. source: user, file, beside; candidates
-- are only guessed from tag frequencies.
CREATE TABLE trigger_group (
    adapter    INTEGER NOT NULL REFERENCES adapter (key) ON DELETE CASCADE,
    position   INTEGER NOT NULL,
    words      TEXT NOT NULL,
    candidate  INTEGER NOT NULL DEFAULT 0,
    source     TEXT NOT NULL,
    PRIMARY KEY (adapter, position)
) WITHOUT ROWID;

CREATE TABLE model (
    name         TEXT PRIMARY KEY,
    path         BLOB NOT NULL UNIQUE,
    fingerprint  TEXT NOT NULL,
    context      INTEGER NOT NULL,
    added        INTEGER NOT NULL
) WITHOUT ROWID;

-- rowid is adapter.key; kept in step by store/row.c.
CREATE VIRTUAL TABLE words USING fts5 (
    name, tags, triggers, notes, other, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3'
);

-- migration 2

-- What comparing adapters by their weights needs, by the hash of the tensors: so a changed file has
-- another row, and one that is no longer used does no harm. store/geometry.c says what values are.
CREATE TABLE sketch (
    data_sha256  TEXT PRIMARY KEY,
    norm         REAL NOT NULL,             -- Frobenius, over all sites
    left_out     INTEGER NOT NULL,          -- deltas that are no matrices
    sketch       BLOB NOT NULL              -- SKETCH_SIZE floats
) WITHOUT ROWID;

-- migration 3

-- How much of what an adapter draws with a model is fine detail (compose/profile.h), by the hashes of both.
CREATE TABLE profile (
    data_sha256  TEXT NOT NULL,
    model        TEXT NOT NULL,             -- its fingerprint
    high         REAL NOT NULL,
    PRIMARY KEY (data_sha256, model)
) WITHOUT ROWID;

-- migration 4

-- What an adapter answers to texts with a model (retrieve/response.h), by the hashes of both.
CREATE TABLE response (
    data_sha256  TEXT NOT NULL,
    model        TEXT NOT NULL,             -- its fingerprint
    plain        REAL,                      -- NULL: it leaves the cross attentions alone
    vectors      BLOB NOT NULL,             -- RESPONSE_ROWS * width floats
    PRIMARY KEY (data_sha256, model)
) WITHOUT ROWID;

-- migration 5

-- Where an encoder of weights puts an adapter, by the hash of its tensors (store/vectors.c).
CREATE TABLE embedding (
    id           INTEGER PRIMARY KEY,       -- what an index knows it by
    data_sha256  TEXT NOT NULL,
    encoder      TEXT NOT NULL,             -- a hash that names it
    strength     REAL,
    vector       BLOB,                      -- floats; NULL, as strength: looked at, but it has none
    UNIQUE (data_sha256, encoder),
    CHECK ((vector IS NULL) = (strength IS NULL))
);

-- What tells whether an index of an encoder's vectors is of their present state. generation is drawn
-- anew at each change instead of counted, so that no other database, or this one brought back from a
-- copy, comes to the same number with other vectors.
CREATE TABLE embedding_state (
    encoder     TEXT PRIMARY KEY,
    generation  INTEGER NOT NULL,
    vectors     INTEGER NOT NULL
) WITHOUT ROWID;

-- No OR IGNORE and no ON CONFLICT inside: those of the statement that fires the trigger would prevail.
CREATE TRIGGER embedding_insert AFTER INSERT ON embedding BEGIN
    INSERT INTO embedding_state SELECT new.encoder, 0, 0
        WHERE NOT EXISTS (SELECT 1 FROM embedding_state WHERE encoder = new.encoder);
    UPDATE embedding_state SET generation = random(), vectors = vectors + (new.vector IS NOT NULL)
        WHERE encoder = new.encoder;
END;
CREATE TRIGGER embedding_delete AFTER DELETE ON embedding BEGIN
    UPDATE embedding_state SET generation = random(), vectors = vectors - (old.vector IS NOT NULL)
        WHERE encoder = old.encoder;
END;
CREATE TRIGGER embedding_update AFTER UPDATE OF strength, vector ON embedding BEGIN
    UPDATE embedding_state SET generation = random(),
        vectors = vectors - (old.vector IS NOT NULL) + (new.vector IS NOT NULL)
        WHERE encoder = new.encoder;
END;

-- What the texts of a model are like (retrieve/response.h: what responder_keep gives).
CREATE TABLE neutral (
    model  TEXT PRIMARY KEY,                -- its fingerprint
    told   BLOB NOT NULL
);

-- What was learnt from the words of its own adapters (retrieve/learn.h), and the encoder that this is.
CREATE TABLE learnt (
    model  TEXT PRIMARY KEY,                -- its fingerprint
    name   TEXT NOT NULL,
    told   BLOB NOT NULL
);

-- Encoders (or models, for answers to texts) that have looked at all adapters that they could.
CREATE TABLE looked (
    who  TEXT PRIMARY KEY
) WITHOUT ROWID;
CREATE TRIGGER adapter_comes AFTER INSERT ON adapter BEGIN
    DELETE FROM looked;
END;
CREATE TRIGGER adapter_changes AFTER UPDATE OF data_sha256, missing, unusable, context ON adapter BEGIN
    DELETE FROM looked;
END;

-- Answers are told otherwise than by migration 4.
DELETE FROM response;
