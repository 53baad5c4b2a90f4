-- +goose Up
CREATE TABLE lease (
    name       {{.Text}} NOT NULL PRIMARY KEY,
    holder     {{.Text}} NOT NULL,
    epoch      {{.Int}}  NOT NULL,
    expires_at {{.Int}}  NOT NULL
) {{.Clustered}};

CREATE TABLE job_run (
    id         {{.Text}} NOT NULL PRIMARY KEY,
    name       {{.Text}} NOT NULL,
    holder     {{.Text}} NOT NULL,
    outcome    {{.Text}} NOT NULL,
    detail     {{.Text}} NOT NULL,
    started_at {{.Int}}  NOT NULL,
    ended_at   {{.Int}},
    estimate   {{.Int}},
    next_at    {{.Int}}
) {{.Clustered}};

CREATE INDEX job_run_by_name ON job_run (name, started_at);
