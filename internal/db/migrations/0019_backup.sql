-- +goose Up

-- Every run of a backup: what it stored and where. figures is JSON: rows, bytes, new bytes, and each copy with
-- its repository, medium, region and outcome. needs is JSON too: the versions of each key that the snapshot
-- needs to be read. pruned_at is when it was deleted from the repositories; NULL while it is there.
CREATE TABLE backup_run (
    id         {{.Text}} NOT NULL PRIMARY KEY,
    started_at {{.Int}}  NOT NULL,
    ended_at   {{.Int}}  NOT NULL,
    outcome    {{.Text}} NOT NULL,  -- kept, partial, failed
    reason     {{.Text}} NOT NULL,
    figures    {{.Text}} NOT NULL,
    class      {{.Text}} NOT NULL DEFAULT '',  -- daily, hourly, continuous, manual; keys when it has no data
    needs      {{.Text}} NOT NULL DEFAULT '{}',
    pruned_at  {{.Int}}
) {{.Clustered}};

-- What a restore into this database has done so far. A row without a name says that it goes on, and of what;
-- there is none otherwise. It is in no backup.
CREATE TABLE restoring (
    name   {{.Text}} NOT NULL PRIMARY KEY,  -- a table that is done
    detail {{.Text}} NOT NULL
) {{.Clustered}};

-- Every restore for practice. certificate is JSON: the figures, and the signed certificate (DSSE).
CREATE TABLE backup_drill (
    id          {{.Text}} NOT NULL PRIMARY KEY,
    started_at  {{.Int}}  NOT NULL,
    ended_at    {{.Int}}  NOT NULL,
    outcome     {{.Text}} NOT NULL,  -- passed, failed
    snapshot    {{.Text}} NOT NULL,
    rto         {{.Int}}  NOT NULL,  -- microseconds that the restore took until it could serve
    rpo         {{.Int}}  NOT NULL,  -- age of the snapshot when the drill began, microseconds
    certificate {{.Text}} NOT NULL
) {{.Clustered}};
