-- +goose Up

-- Counts the changes of KEKs and service keys: a process that holds the keys of an older count reads
-- them again.
CREATE TABLE key_generation (
    one {{.Int}} NOT NULL PRIMARY KEY CHECK (one = 1),
    n   {{.Int}} NOT NULL
) {{.Table}};

INSERT INTO key_generation (one, n) VALUES (1, 0);

-- What the KEK that was active before says of this one: a digest of it, sealed. A KEK that somebody
-- else put here has none that opens. The oldest that is left needs none.
ALTER TABLE kek ADD COLUMN vouch {{.Blob}};

-- A rotation: from the publishing of a new version until everything that older versions sealed is
-- sealed by it. cursor_customer and cursor_version say how far it is, so that it goes on where it
-- stopped, whatever stopped it; worked is the time that took, in microseconds.
CREATE TABLE rotation (
    id              {{.Text}} NOT NULL PRIMARY KEY,
    key_name        {{.Text}} NOT NULL,
    version         {{.Int}}  NOT NULL,
    reason          {{.Text}} NOT NULL,  -- asked, scheduled, compromised
    phase           {{.Text}} NOT NULL,  -- published, resealing, done
    paused          {{.Int}}  NOT NULL,
    total           {{.Int}}  NOT NULL,
    done            {{.Int}}  NOT NULL,
    failed          {{.Int}}  NOT NULL,
    worked          {{.Int}}  NOT NULL,
    cursor_customer {{.Text}} NOT NULL,
    cursor_version  {{.Int}}  NOT NULL,
    started_at      {{.Int}}  NOT NULL,
    due_at          {{.Int}}  NOT NULL,  -- when the new version may become active
    ended_at        {{.Int}}
) {{.Clustered}};

-- One rotation of a key at a time.
CREATE UNIQUE INDEX rotation_open ON rotation (key_name) WHERE ended_at IS NULL;
