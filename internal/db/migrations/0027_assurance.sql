-- +goose Up

-- What checks saw. body is the observation as JSON, without personal data; the event has its SHA-256.
CREATE TABLE evidence (
    id          {{.Text}} NOT NULL PRIMARY KEY,
    check_id    {{.Text}} NOT NULL,
    version     {{.Int}}  NOT NULL,
    observed_at {{.Int}}  NOT NULL,
    valid_until {{.Int}}  NOT NULL,
    took        {{.Int}}  NOT NULL,
    outcome     {{.Text}} NOT NULL,
    body        {{.Text}} NOT NULL,
    event_id    {{.Text}} NOT NULL
) {{.Clustered}};

CREATE INDEX evidence_check ON evidence (check_id, observed_at);

-- Each change of a claim's state, the newest being what it is now.
CREATE TABLE claim_state (
    claim_id {{.Text}} NOT NULL,
    since    {{.Int}}  NOT NULL,
    state    {{.Text}} NOT NULL,
    why      {{.Text}} NOT NULL,
    PRIMARY KEY (claim_id, since)
) {{.Clustered}};

-- A value that belongs to nobody, sealed as customers' values are: it has to open, and its plaintext must be
-- found nowhere.
CREATE TABLE canary (
    one         {{.Int}}  NOT NULL PRIMARY KEY CHECK (one = 1),
    customer_id {{.Text}} NOT NULL,
    sealed      {{.Blob}} NOT NULL
) {{.Table}};
