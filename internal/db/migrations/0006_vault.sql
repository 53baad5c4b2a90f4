-- +goose Up

-- One sealed document of a customer. What may be read here without a key: whose it is, its
-- collection and key, how often it changed, when, and its length. indexed is a digest of the record's
-- rows in record_index, so that a change that leaves them alone need not look at them. updated_day
-- counts days since 1970: an index on the exact time would have to be changed with every update.
CREATE TABLE record (
    customer_id    {{.Text}} NOT NULL,
    collection     {{.Text}} NOT NULL,
    key            {{.Text}} NOT NULL,
    version        {{.Int}}  NOT NULL,
    schema_version {{.Int}}  NOT NULL,
    sealed         {{.Blob}} NOT NULL,
    indexed        {{.Blob}} NOT NULL,
    made_at        {{.Int}}  NOT NULL,
    updated_at     {{.Int}}  NOT NULL,
    updated_day    {{.Int}}  NOT NULL,
    PRIMARY KEY (customer_id, collection, key)
) {{.Clustered}};

-- Retention asks for the oldest records of a collection.
CREATE INDEX record_by_age ON record (collection, updated_day);

-- The lowest version that a record made from now on may get, per customer and collection. It is
-- raised by every deletion, so that a version, and the ETag made of it, never comes back when a
-- record is made again under an old key.
CREATE TABLE record_mark (
    customer_id {{.Text}} NOT NULL,
    collection  {{.Text}} NOT NULL,
    version     {{.Int}}  NOT NULL,
    PRIMARY KEY (customer_id, collection)
) {{.Clustered}};

-- Blind indexes: a keyed hash of an indexed field, for exact look-up. key_version names the version
-- of the blind-index key, so that two versions can stand side by side while the key is rotated.
CREATE TABLE record_index (
    collection  {{.Text}} NOT NULL,
    field       {{.Text}} NOT NULL,
    key_version {{.Int}}  NOT NULL,
    blind       {{.Blob}} NOT NULL,
    customer_id {{.Text}} NOT NULL,
    key         {{.Text}} NOT NULL,
    sole        {{.Int}}  NOT NULL,
    PRIMARY KEY (collection, field, key_version, blind, customer_id, key)
) {{.Clustered}};

CREATE INDEX record_index_by_record ON record_index (customer_id, collection, key);

-- Fields declared unique: the database decides, also between two writers at the same instant.
CREATE UNIQUE INDEX record_index_sole ON record_index (collection, field, key_version, blind) WHERE sole = 1;
