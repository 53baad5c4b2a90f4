-- +goose Up

-- Older versions of records, of the collections that keep some: each as it stood in record, sealed for
-- the same place.
CREATE TABLE record_version (
    customer_id    {{.Text}} NOT NULL,
    collection     {{.Text}} NOT NULL,
    key            {{.Text}} NOT NULL,
    version        {{.Int}}  NOT NULL,
    schema_version {{.Int}}  NOT NULL,
    sealed         {{.Blob}} NOT NULL,
    updated_at     {{.Int}}  NOT NULL,
    PRIMARY KEY (customer_id, collection, key, version)
) {{.Clustered}};

-- Answers to requests that carried an idempotency key, so that the same request gets the same answer.
-- name is a digest of the service and its key, print a keyed hash of what was asked; the answer is
-- sealed under the key of the customer that it is about, or of nobody's.
CREATE TABLE answer (
    name          {{.Blob}} NOT NULL PRIMARY KEY,
    print         {{.Blob}} NOT NULL,
    print_version {{.Int}}  NOT NULL,
    customer_id   {{.Text}} NOT NULL,
    sealed        {{.Blob}} NOT NULL,
    expires_at    {{.Int}}  NOT NULL
) {{.Clustered}};

CREATE INDEX answer_by_end ON answer (expires_at);
CREATE INDEX answer_by_customer ON answer (customer_id);

-- What tokens stand for. blind is a keyed hash of the token, key_version the version of the blind-index
-- key; sealed holds the token and the value. value_blind, a keyed hash of the value, is there when equal
-- values of a customer have one token for the purpose.
CREATE TABLE token (
    key_version {{.Int}}  NOT NULL,
    blind       {{.Blob}} NOT NULL,
    customer_id {{.Text}} NOT NULL,
    kind        {{.Text}} NOT NULL,
    purpose     {{.Text}} NOT NULL,
    value_blind {{.Blob}},
    sealed      {{.Blob}} NOT NULL,
    made_at     {{.Int}}  NOT NULL,
    PRIMARY KEY (key_version, blind)
) {{.Clustered}};

CREATE INDEX token_by_customer ON token (customer_id);
CREATE UNIQUE INDEX token_sole ON token (customer_id, kind, purpose, key_version, value_blind) WHERE value_blind IS NOT NULL;
