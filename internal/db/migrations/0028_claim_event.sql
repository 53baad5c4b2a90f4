-- +goose Up

-- The event of each change of a claim's state; empty for those that are older than this column.
ALTER TABLE claim_state ADD COLUMN event_id {{.Text}} NOT NULL DEFAULT '';

-- Evidence is read in the order of time when it is given to an auditor.
CREATE INDEX evidence_time ON evidence (observed_at, id);
