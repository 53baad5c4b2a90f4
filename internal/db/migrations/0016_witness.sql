-- +goose Up

-- The cosignatures of witnesses (C2SP tlog-cosignature): line is the note's signature line, which
-- stands for itself. witness is the name of the witness.
CREATE TABLE log_cosignature (
    size    {{.Int}}  NOT NULL,
    witness {{.Text}} NOT NULL,
    line    {{.Text}} NOT NULL,
    made_at {{.Int}}  NOT NULL,
    PRIMARY KEY (size, witness)
) {{.Table}};
