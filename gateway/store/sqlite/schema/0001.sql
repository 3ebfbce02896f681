-- Times are integer microseconds since 1970, so that they pass through JSON exactly.

CREATE TABLE meta (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    schema   INTEGER NOT NULL,            -- how many migrations this file has seen
    epoch    TEXT    NOT NULL,            -- the life of all logs here; a restore gives a new one
    revision INTEGER NOT NULL DEFAULT 0,  -- grows with every change of agencies or revocations
    probed   INTEGER NOT NULL DEFAULT 0,  -- written by ready(),
    room     BLOB                         -- and this when the disk was full
);

-- The lowest offset kept is floor + 1; the head is the offset of the last event, or floor when there is none: to append
-- changes nothing here.
CREATE TABLE feeds (
    id    INTEGER PRIMARY KEY,
    name  TEXT    NOT NULL UNIQUE,
    floor INTEGER NOT NULL DEFAULT 0,     -- highest offset that retention removed
    acked INTEGER NOT NULL DEFAULT 0,     -- highest offset that any device of the account acknowledged
    since INTEGER                         -- when the oldest kept event was recorded, NULL when none is
);
CREATE INDEX feeds_since ON feeds (since) WHERE since IS NOT NULL;

-- In the order of commit: what is new lies together, and is what is read most. (By feed, each append would change a page
-- of content for each feed; measured, that costs more than the reads gain.)
-- AUTOINCREMENT: no seq is given twice, even after all events were deleted.
-- The event stands last: rows are read up to the column that is wanted, and it may reach over many pages.
CREATE TABLE events (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    feed     INTEGER NOT NULL,
    offset   INTEGER NOT NULL,
    recorded INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    size     INTEGER NOT NULL,            -- what it counts in the byte limit of a page
    item     INTEGER NOT NULL,            -- which item of the request it was
    original INTEGER,                     -- the request, see originals
    key      BLOB    NOT NULL UNIQUE,
    thing    BLOB,
    type     TEXT,                        -- from here on NULL when erased
    status   TEXT,
    time     INTEGER,
    digest   BLOB,
    event    TEXT,
    UNIQUE (feed, offset)
);

CREATE TABLE unpublished (seq INTEGER PRIMARY KEY);

-- A signed request; its id is the seq of the first event stored from it.
CREATE TABLE originals (
    id         INTEGER PRIMARY KEY,
    events     INTEGER NOT NULL,          -- how many events of it are kept; the last one takes it along
    agency     TEXT    NOT NULL,
    key_id     TEXT    NOT NULL,
    verified   INTEGER NOT NULL,
    digest     BLOB    NOT NULL,          -- SHA-256 of body
    webhook_id TEXT,                      -- from here on NULL once an event of it was erased
    timestamp  INTEGER,
    signature  TEXT,
    body       BLOB
);

-- The latest event of each thing that has a sequence, which is also the one with the highest.
CREATE TABLE things (
    thing    BLOB    PRIMARY KEY,
    sequence INTEGER NOT NULL,
    seq      INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE devices (
    id        INTEGER PRIMARY KEY,
    account   TEXT    NOT NULL,
    device    TEXT    NOT NULL,
    agent     TEXT,
    created   INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    UNIQUE (account, device)
);

CREATE TABLE cursors (
    device INTEGER NOT NULL,
    feed   INTEGER NOT NULL,
    epoch  TEXT    NOT NULL,
    offset INTEGER NOT NULL,
    PRIMARY KEY (device, feed)
) WITHOUT ROWID;

-- What lies at or below upto, and above the row before, was first delivered at this time.
CREATE TABLE delivered (
    feed INTEGER NOT NULL,
    upto INTEGER NOT NULL,
    at   INTEGER NOT NULL,
    PRIMARY KEY (feed, upto)
) WITHOUT ROWID;

CREATE TABLE seen (
    feed   INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    PRIMARY KEY (feed, offset)
) WITHOUT ROWID;

CREATE TABLE agencies (
    code    TEXT    PRIMARY KEY,
    types   TEXT    NOT NULL,             -- JSON array
    created INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE agency_keys (
    place    INTEGER PRIMARY KEY,         -- the order in which they were added
    agency   TEXT    NOT NULL,
    id       TEXT    NOT NULL,
    kind     TEXT    NOT NULL,
    material BLOB    NOT NULL,
    created  INTEGER NOT NULL,
    retired  INTEGER,
    UNIQUE (agency, id)
);

CREATE TABLE revocations (
    kind   TEXT    NOT NULL,
    value  TEXT    NOT NULL,
    before INTEGER NOT NULL,
    PRIMARY KEY (kind, value)
) WITHOUT ROWID;
