-- +goose Up

-- Every run of a backup: what it stored and where. figures is JSON: rows, bytes, new bytes, and each copy with
-- its repository, medium, region and outcome.
CREATE TABLE backup_run (
    id         {{.Text}} NOT NULL PRIMARY KEY,
    started_at {{.Int}}  NOT NULL,
    ended_at   {{.Int}}  NOT NULL,
    outcome    {{.Text}} NOT NULL,  -- kept, partial, failed
    reason     {{.Text}} NOT NULL,
    figures    {{.Text}} NOT NULL
) {{.Clustered}};
