-- Times are microseconds since 1970 (bigint): what the other stores keep, exact, and no time zone can touch them.
-- Texts that name something are COLLATE "C": their order, and with it every index, survives a change of the system's
-- locale data. `vestnik` is the first schema of the search path while this runs.

CREATE TABLE meta (
    one      int    PRIMARY KEY CHECK (one = 1),
    schema   int    NOT NULL,            -- how many migrations this database has seen
    epoch    text   NOT NULL,            -- the life of all logs here
    place    text   NOT NULL,            -- where that life is: another place is a copy, and gets a new epoch
    revision bigint NOT NULL DEFAULT 0,  -- grows with every change of agencies or revocations
    erased   bigint NOT NULL DEFAULT 0,  -- erasures whose rows' old versions wait for a VACUUM
    probed   bigint NOT NULL DEFAULT 0   -- written by ready()
) WITH (fillfactor = 10);

-- One row of a feed is locked by whoever writes anything of the feed.
CREATE TABLE feeds (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    oldest bigint NOT NULL DEFAULT 1,    -- lowest offset kept, head + 1 when none is
    head   bigint NOT NULL DEFAULT 0,    -- highest offset ever committed
    since  bigint,                       -- when the oldest kept event was recorded, NULL when none is
    name   text   COLLATE "C" NOT NULL UNIQUE
) WITH (fillfactor = 80);
CREATE INDEX feeds_since ON feeds (since) WHERE since IS NOT NULL;

CREATE SEQUENCE commits AS bigint;       -- gives seq; never the same number twice

CREATE TABLE events (
    feed     bigint   NOT NULL,
    "offset" bigint   NOT NULL,
    seq      bigint   NOT NULL,
    recorded bigint   NOT NULL,
    original bigint,                     -- the request, see originals
    time     bigint,                     -- time, type, status, digest and event are NULL when erased
    size     int      NOT NULL,          -- what it counts in the byte limit of a page
    item     int      NOT NULL,          -- which item of the request it was
    priority smallint NOT NULL,
    key      bytea    NOT NULL UNIQUE,
    thing    bytea,
    digest   bytea,
    type     text     COLLATE "C",
    status   text     COLLATE "C",
    event    bytea,
    PRIMARY KEY (feed, "offset")
);

CREATE TABLE unpublished (
    seq      bigint PRIMARY KEY,
    feed     bigint NOT NULL,
    "offset" bigint NOT NULL,
    recorded bigint NOT NULL
);

-- A signed request; its id is the seq of the first event stored from it.
CREATE TABLE originals (
    id         bigint PRIMARY KEY,
    verified   bigint NOT NULL,
    events     int    NOT NULL,          -- how many events of it are kept; the last one takes it along
    digest     bytea  NOT NULL,          -- SHA-256 of body
    agency     text   COLLATE "C" NOT NULL,
    key_id     text   COLLATE "C" NOT NULL,
    timestamp  bigint,                   -- from here on NULL once an event of it was erased
    webhook_id text   COLLATE "C",
    signature  text   COLLATE "C",
    body       bytea
) WITH (fillfactor = 95);

-- The latest event of each thing that has a sequence, which is also the one with the highest.
CREATE TABLE things (
    sequence bigint NOT NULL,
    seq      bigint NOT NULL,
    thing    bytea  PRIMARY KEY
) WITH (fillfactor = 80);

-- One row of an account is locked by whoever writes its devices and cursors.
CREATE TABLE accounts (
    acked   bigint NOT NULL DEFAULT 0,   -- highest offset of its own feed that any device of it acknowledged
    account text   COLLATE "C" PRIMARY KEY
) WITH (fillfactor = 80);

CREATE TABLE devices (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created   bigint NOT NULL,
    last_seen bigint NOT NULL,
    account   text   COLLATE "C" NOT NULL,
    device    text   COLLATE "C" NOT NULL,
    agent     text   COLLATE "C",
    UNIQUE (account, device)
) WITH (fillfactor = 80);

CREATE TABLE cursors (
    device   bigint NOT NULL,
    feed     bigint NOT NULL,
    "offset" bigint NOT NULL,
    epoch    text   COLLATE "C" NOT NULL,
    PRIMARY KEY (device, feed)
) WITH (fillfactor = 60);

-- What lies at or below upto, and above the row before, was first delivered at this time.
CREATE TABLE delivered (
    feed bigint NOT NULL,
    upto bigint NOT NULL,
    at   bigint NOT NULL,
    PRIMARY KEY (feed, upto)
);

CREATE TABLE seen (
    feed     bigint NOT NULL,
    "offset" bigint NOT NULL,
    at       bigint NOT NULL,
    PRIMARY KEY (feed, "offset")
);

CREATE TABLE agencies (
    code    text   COLLATE "C" PRIMARY KEY,
    types   text[] NOT NULL,
    created bigint NOT NULL
);

CREATE TABLE agency_keys (
    place    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- the order in which they were added
    agency   text   COLLATE "C" NOT NULL,
    id       text   COLLATE "C" NOT NULL,
    kind     text   COLLATE "C" NOT NULL,
    material bytea  NOT NULL,
    created  bigint NOT NULL,
    retired  bigint,
    UNIQUE (agency, id)
);

CREATE TABLE revocations (
    kind   text   COLLATE "C" NOT NULL,
    value  text   COLLATE "C" NOT NULL,
    before bigint NOT NULL,
    PRIMARY KEY (kind, value)
);

-- A share of a table with hundreds of millions of rows comes too late: a little often is vacuumed in minutes.
ALTER TABLE events    SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_analyze_scale_factor = 0.01,
                           autovacuum_vacuum_insert_scale_factor = 0.02);
ALTER TABLE originals SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_insert_scale_factor = 0.02);
ALTER TABLE things    SET (autovacuum_vacuum_scale_factor = 0.01);
ALTER TABLE delivered SET (autovacuum_vacuum_scale_factor = 0.01);
ALTER TABLE seen      SET (autovacuum_vacuum_scale_factor = 0.01);
ALTER TABLE feeds     SET (autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE accounts  SET (autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE devices   SET (autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE cursors   SET (autovacuum_vacuum_scale_factor = 0.02);
-- Every event passes through here within seconds: nearly all of it is dead at any time.
ALTER TABLE unpublished SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
                             autovacuum_vacuum_cost_delay = 0);
ALTER TABLE meta SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
