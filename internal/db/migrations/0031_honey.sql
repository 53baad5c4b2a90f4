-- +goose Up

-- The customer whom the checks of logins attack, who is nobody. sealed is what its owner would know, under
-- its own data key; held_until is until when one check has it for itself.
CREATE TABLE honey (
    one         {{.Int}}  NOT NULL PRIMARY KEY CHECK (one = 1),
    customer_id {{.Text}} NOT NULL,
    sealed      {{.Blob}} NOT NULL,
    held_until  {{.Int}}  NOT NULL
) {{.Table}};

-- Where a check that takes its samples one after the other goes on.
CREATE TABLE check_cursor (
    check_id {{.Text}} NOT NULL PRIMARY KEY,
    position {{.Text}} NOT NULL
) {{.Clustered}};
