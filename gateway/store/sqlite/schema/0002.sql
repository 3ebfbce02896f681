-- Who is connected where, and who holds what. Nothing here has to survive anything.

CREATE TABLE presences (
    account TEXT NOT NULL,
    device  TEXT NOT NULL,
    node    TEXT NOT NULL,
    session TEXT NOT NULL,            -- empty: the device was signed out
    since   INTEGER NOT NULL,
    PRIMARY KEY (account, device)
) WITHOUT ROWID;

CREATE TABLE leases (
    name  TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    until INTEGER NOT NULL
) WITHOUT ROWID;
