-- +goose Up

-- Snapshots that are kept whatever the retention says, until they are released.
CREATE TABLE backup_hold (
    snapshot {{.Text}} NOT NULL PRIMARY KEY,
    reason   {{.Text}} NOT NULL,
    held_by  {{.Text}} NOT NULL,
    held_at  {{.Int}}  NOT NULL
) {{.Clustered}};

-- Who agreed to a deed that takes two. The deed uses them up.
CREATE TABLE backup_approval (
    deed        {{.Text}} NOT NULL,
    approver    {{.Text}} NOT NULL,
    approved_at {{.Int}}  NOT NULL,
    PRIMARY KEY (deed, approver)
) {{.Clustered}};

-- The retention in force, as text: a shorter one in the configuration takes two approvals.
CREATE TABLE backup_retention (
    one    {{.Int}}  NOT NULL PRIMARY KEY CHECK (one = 1),
    kept   {{.Text}} NOT NULL,
    set_at {{.Int}}  NOT NULL
) {{.Table}};
