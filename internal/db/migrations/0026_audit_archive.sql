-- +goose Up

-- The ranges of the log whose events were moved to the archive: those with the places from first to past-1,
-- as the object called name. hash is the object's SHA-256, first_id to last_id and oldest to newest are what
-- its events lie between, announced are the checkpoint keys that its events announce, and removed_at is when
-- the object was deleted, 0 before. mac is over all of that: a range is not archived because a row says so.
CREATE TABLE audit_archive (
    first       {{.Int}}  NOT NULL PRIMARY KEY,
    past        {{.Int}}  NOT NULL,
    name        {{.Text}} NOT NULL,
    hash        {{.Blob}} NOT NULL,
    bytes       {{.Int}}  NOT NULL,
    first_id    {{.Text}} NOT NULL,
    last_id     {{.Text}} NOT NULL,
    oldest      {{.Int}}  NOT NULL,
    newest      {{.Int}}  NOT NULL,
    announced   {{.Text}} NOT NULL,
    key_version {{.Int}}  NOT NULL,
    archived_at {{.Int}}  NOT NULL,
    removed_at  {{.Int}}  NOT NULL,
    mac_version {{.Int}}  NOT NULL,
    mac         {{.Blob}} NOT NULL
) {{.Table}};

-- The versions of keys under which personal parts in the archive are sealed, so that none of them is
-- destroyed too early: a customer's, or the trail's own when customer_id is empty. past is the end of the
-- last range that needs it.
CREATE TABLE audit_archive_key (
    customer_id {{.Text}} NOT NULL,
    version     {{.Int}}  NOT NULL,
    past        {{.Int}}  NOT NULL,
    PRIMARY KEY (customer_id, version)
) {{.Clustered}};
