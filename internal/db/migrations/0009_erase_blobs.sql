-- +goose Up

-- Customers who were erased: the event that says so, and what was deleted. It outlives them, so that a
-- receipt can be given again; nothing in it is personal.
CREATE TABLE erasure (
    customer_id {{.Text}} NOT NULL PRIMARY KEY,
    event_id    {{.Text}} NOT NULL,
    erased_at   {{.Int}}  NOT NULL,
    keys        {{.Int}}  NOT NULL,
    deleted     {{.Text}} NOT NULL  -- rows by kind, a JSON object
) {{.Clustered}};

-- The names that other systems gave to customers who were imported: a keyed hash for look-up, and the name
-- itself, sealed under the customer's key. Of an erased customer only the hash stays, so that importing
-- the same data once more does not bring them back.
CREATE TABLE external_ref (
    key_version {{.Int}}  NOT NULL,
    blind       {{.Blob}} NOT NULL,
    customer_id {{.Text}} NOT NULL,
    sealed      {{.Blob}},
    PRIMARY KEY (key_version, blind)
) {{.Clustered}};

CREATE INDEX external_ref_by_customer ON external_ref (customer_id);

-- A blob: a document of a customer that is too large for a record. What may be read here without a key:
-- whose it is, its collection and key, when it changed, and how many chunks it has. sealed holds the key of
-- its content, its length and its type.
CREATE TABLE blob (
    customer_id {{.Text}} NOT NULL,
    collection  {{.Text}} NOT NULL,
    key         {{.Text}} NOT NULL,
    content_id  {{.Text}} NOT NULL,
    sealed      {{.Blob}} NOT NULL,
    updated_at  {{.Int}}  NOT NULL,
    PRIMARY KEY (customer_id, collection, key)
) {{.Clustered}};

CREATE INDEX blob_by_age ON blob (collection, updated_at);

-- The contents of blobs, written chunk by chunk before the blob names them. State is uploading, live,
-- replaced or erased; what is neither live nor being uploaded is deleted in small steps.
CREATE TABLE blob_content (
    id          {{.Text}} NOT NULL PRIMARY KEY,
    customer_id {{.Text}} NOT NULL,
    state       {{.Text}} NOT NULL,
    changed_at  {{.Int}}  NOT NULL
) {{.Clustered}};

CREATE INDEX blob_content_by_state ON blob_content (state, changed_at);
CREATE INDEX blob_content_by_customer ON blob_content (customer_id);

CREATE TABLE blob_chunk (
    content_id {{.Text}} NOT NULL,
    n          {{.Int}}  NOT NULL,
    sealed     {{.Blob}} NOT NULL,
    PRIMARY KEY (content_id, n)
) {{.Table}};
