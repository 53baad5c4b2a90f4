-- +goose Up

-- One event of the trail. Rows are inserted and never changed. All columns but the last four make up
-- the leaf; sealed holds what is personal, commitment is what the leaf says of it, and mac is over
-- the leaf, so that a row that Strongroom did not write is not taken for one before it is sequenced.
CREATE TABLE event (
    id             {{.Text}} NOT NULL PRIMARY KEY,
    version        {{.Int}}  NOT NULL,
    made_at        {{.Int}}  NOT NULL,
    actor_kind     {{.Text}} NOT NULL,
    actor_id       {{.Text}} NOT NULL,
    device_id      {{.Text}} NOT NULL,
    session_id     {{.Text}} NOT NULL,
    action         {{.Text}} NOT NULL,
    resource       {{.Text}} NOT NULL,
    customer_id    {{.Text}} NOT NULL,
    outcome        {{.Text}} NOT NULL,
    reason         {{.Text}} NOT NULL,
    transaction_id {{.Text}} NOT NULL,
    request_id     {{.Text}} NOT NULL,
    sealed_under   {{.Text}} NOT NULL,
    commitment     {{.Blob}},
    sealed         {{.Blob}},
    mac_version    {{.Int}}  NOT NULL,
    mac            {{.Blob}} NOT NULL
) {{.Clustered}};

-- Events that wait for their place in the log. An event is put here by the transaction that inserts
-- it, and taken out by the one that gives it a leaf.
CREATE TABLE event_pending (
    event_id {{.Text}} NOT NULL PRIMARY KEY
) {{.Clustered}};

-- The place of each event in the log, from 0 without gaps.
CREATE TABLE event_leaf (
    idx      {{.Int}}  NOT NULL PRIMARY KEY,
    event_id {{.Text}} NOT NULL UNIQUE
) {{.Table}};

-- The Merkle tree as tiles of height 8 (C2SP tlog-tiles): up to 256 hashes of 32 bytes each. Only
-- the rightmost tile of a level ever changes, by growing.
CREATE TABLE log_tile (
    level  {{.Int}}  NOT NULL,
    n      {{.Int}}  NOT NULL,
    hashes {{.Blob}} NOT NULL,
    PRIMARY KEY (level, n)
) {{.Table}};

-- The log's size and root (base64), the number of checkpoints signed so far, and the process that
-- signed the last one. Sequencers compare and swap this row.
CREATE TABLE log_head (
    one    {{.Int}}  NOT NULL PRIMARY KEY CHECK (one = 1),
    size   {{.Int}}  NOT NULL,
    root   {{.Text}} NOT NULL,
    epoch  {{.Int}}  NOT NULL,
    holder {{.Text}} NOT NULL
) {{.Table}};

INSERT INTO log_head (one, size, root, epoch, holder)
VALUES (1, 0, '47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=', 0, '');

-- Every checkpoint that was signed: note is the signed note (C2SP tlog-checkpoint), epoch counts
-- them from 1 without gaps.
CREATE TABLE log_checkpoint (
    size    {{.Int}}  NOT NULL PRIMARY KEY,
    epoch   {{.Int}}  NOT NULL,
    root    {{.Text}} NOT NULL,
    note    {{.Text}} NOT NULL,
    made_at {{.Int}}  NOT NULL
) {{.Table}};
