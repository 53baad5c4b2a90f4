-- +goose Up

-- How far each sink has been sent the trail: next is the place in the log of the first event that it has
-- not confirmed.
CREATE TABLE audit_sink (
    name     {{.Text}} NOT NULL PRIMARY KEY,
    next     {{.Int}}  NOT NULL,
    moved_at {{.Int}}  NOT NULL
) {{.Clustered}};
