-- +goose Up

-- What is wrong, or was: one row for each kind and subject. opened_at is when it was noticed, seen_at
-- when it was noticed last, cleared_at when it was right again; a finding that comes back opens anew.
CREATE TABLE finding (
    kind       {{.Text}} NOT NULL,
    subject    {{.Text}} NOT NULL,
    detail     {{.Text}} NOT NULL,
    opened_at  {{.Int}}  NOT NULL,
    seen_at    {{.Int}}  NOT NULL,
    times      {{.Int}}  NOT NULL,
    cleared_at {{.Int}},
    PRIMARY KEY (kind, subject)
) {{.Clustered}};
