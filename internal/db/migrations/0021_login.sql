-- +goose Up

-- Messages that a provider has accepted and not yet reported as delivered, for as long as their codes are
-- good: one that was lost is sent again by another provider. Sealed under the outbox key.
CREATE TABLE sms_sent (
    id         {{.Text}} NOT NULL PRIMARY KEY,
    sealed     {{.Blob}} NOT NULL,
    expires_at {{.Int}}  NOT NULL
) {{.Clustered}};

CREATE INDEX sms_sent_by_end ON sms_sent (expires_at);

-- When a customer's private code was changed last: a login that began with the code before it is over.
CREATE TABLE code_change (
    customer_id {{.Text}} NOT NULL PRIMARY KEY,
    changed_at  {{.Int}}  NOT NULL
) {{.Clustered}};

-- Customers who have forgotten their private code and may choose another from ready_at to expires_at, on
-- the device from which they asked.
CREATE TABLE code_reset (
    customer_id {{.Text}} NOT NULL PRIMARY KEY,
    device_id   {{.Text}} NOT NULL,
    made_at     {{.Int}}  NOT NULL,
    ready_at    {{.Int}}  NOT NULL,
    expires_at  {{.Int}}  NOT NULL,
    stamp       {{.Blob}} NOT NULL
) {{.Clustered}};

CREATE INDEX code_reset_by_end ON code_reset (expires_at);
