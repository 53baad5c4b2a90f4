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
