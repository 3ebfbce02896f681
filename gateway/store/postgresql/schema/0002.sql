-- Who is connected where, and who holds what. Nothing here has to survive anything, so nothing is logged: a crash of
-- the server empties both, and the nodes fill them again.

CREATE UNLOGGED TABLE presences (
    account text   COLLATE "C" NOT NULL,
    device  text   COLLATE "C" NOT NULL,
    node    text   COLLATE "C" NOT NULL,
    session text   COLLATE "C" NOT NULL,  -- empty: the device was signed out
    since   bigint NOT NULL,
    PRIMARY KEY (account, device)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);

CREATE UNLOGGED TABLE leases (
    name  text   COLLATE "C" PRIMARY KEY,
    owner text   COLLATE "C" NOT NULL,
    until bigint NOT NULL
) WITH (fillfactor = 50);
