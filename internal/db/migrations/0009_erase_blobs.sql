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
