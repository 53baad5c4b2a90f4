-- +goose Up

-- The move of the root key from one provider to another. Phase is wrapping (every key gets a wrap by the
-- new root beside the old one), open (both roots open everything), confirming or aborting (the wraps of
-- one are dropped; only the database's manifest may still hold one), confirmed or aborted. One at a time.
CREATE TABLE root_move (
    number     {{.Int}}  NOT NULL PRIMARY KEY,  -- counts from 1: no clock says which is the latest
    from_id    {{.Text}} NOT NULL,
    to_id      {{.Text}} NOT NULL,
    phase      {{.Text}} NOT NULL,
    started_at {{.Int}}  NOT NULL,
    ended_at   {{.Int}}
) {{.Table}};

-- What the active KEK says of the states of all KEKs and service keys at this generation: a digest of
-- them, sealed. A state that somebody else wrote does not agree with it.
ALTER TABLE key_generation ADD COLUMN roster {{.Blob}};

-- How often a key version that seals may have sealed, at most: processes reserve uses in blocks.
CREATE TABLE key_use (
    name     {{.Text}} NOT NULL,
    version  {{.Int}}  NOT NULL,
    reserved {{.Int}}  NOT NULL,
    PRIMARY KEY (name, version)
) {{.Clustered}};

-- The public part of a signing key whose private part is destroyed: what it signed still verifies.
ALTER TABLE service_key ADD COLUMN verifier {{.Text}};
