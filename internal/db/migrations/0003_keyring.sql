-- +goose Up

-- Key-encryption keys. State is active, retired, compromised or destroyed; the newest version that is
-- not destroyed is active, and it alone wraps.
CREATE TABLE kek (
    version   {{.Int}}  NOT NULL PRIMARY KEY,
    algorithm {{.Text}} NOT NULL,
    state     {{.Text}} NOT NULL,
    made_at   {{.Int}}  NOT NULL
) {{.Table}};

-- A key-encryption key as a root key wraps it. While the root moves from one provider to another a
-- version has two rows; a destroyed version has none.
CREATE TABLE kek_wrap (
    kek_version {{.Int}}  NOT NULL,
    root_id     {{.Text}} NOT NULL,
    wrapped     {{.Blob}} NOT NULL,
    made_at     {{.Int}}  NOT NULL,
    PRIMARY KEY (kek_version, root_id)
) {{.Clustered}};

-- Keys of Strongroom's own: pepper, tokens, blind indexes, the trail. Wrapped is NULL once destroyed.
CREATE TABLE service_key (
    name        {{.Text}} NOT NULL,
    version     {{.Int}}  NOT NULL,
    kek_version {{.Int}}  NOT NULL,
    algorithm   {{.Text}} NOT NULL,
    state       {{.Text}} NOT NULL,
    wrapped     {{.Blob}},
    made_at     {{.Int}}  NOT NULL,
    PRIMARY KEY (name, version)
) {{.Clustered}};

-- The customers' data keys, and nothing else: this table is backed up apart from the data, so that
-- erasing a customer reaches every backup of the data. Wrapped is NULL once a version is destroyed.
CREATE TABLE data_key (
    customer_id {{.Text}} NOT NULL,
    version     {{.Int}}  NOT NULL,
    kek_version {{.Int}}  NOT NULL,
    state       {{.Text}} NOT NULL,
    wrapped     {{.Blob}},
    made_at     {{.Int}}  NOT NULL,
    PRIMARY KEY (customer_id, version)
) {{.Clustered}};

-- Customers whose data keys were destroyed. It outlives them, and wins over data_key should an old
-- backup bring a key back. The MAC, under a service key, keeps the database's administrator from
-- declaring erased what was altered.
CREATE TABLE data_key_tombstone (
    customer_id {{.Text}} NOT NULL PRIMARY KEY,
    erased_at   {{.Int}}  NOT NULL,
    mac         {{.Blob}} NOT NULL
) {{.Clustered}};
