-- +goose Up

-- What a session may do, how its customer was authenticated, and from where. A session from before this
-- migration has '' and may do what sessions could do then.
ALTER TABLE session ADD COLUMN scope {{.Text}} NOT NULL DEFAULT '';
ALTER TABLE session ADD COLUMN acr {{.Text}} NOT NULL DEFAULT '';
ALTER TABLE session ADD COLUMN origin {{.Blob}};  -- the address of the login, sealed under the customer's key

-- The token that was exchanged for this one. When its answer was lost it may be exchanged once more, as
-- long as none that it was exchanged for has been used.
ALTER TABLE refresh_token ADD COLUMN parent {{.Blob}};
CREATE INDEX refresh_token_by_parent ON refresh_token (parent);

-- Authorization codes (RFC 6749 section 4.1.2), 32 random bytes of which only the SHA-256 is kept.
CREATE TABLE oauth_code (
    hash        {{.Blob}} NOT NULL PRIMARY KEY,
    customer_id {{.Text}} NOT NULL,
    device_id   {{.Text}} NOT NULL,
    jkt         {{.Text}} NOT NULL,
    client      {{.Text}} NOT NULL,
    redirect    {{.Text}} NOT NULL,  -- '' without one
    challenge   {{.Text}} NOT NULL,  -- S256 of the verifier (RFC 7636)
    scope       {{.Text}} NOT NULL,
    expires_at  {{.Int}}  NOT NULL,
    session_id  {{.Text}},           -- what it was exchanged for
    stamp       {{.Blob}} NOT NULL   -- MAC over all but session_id, see stamp.go in internal/identity
) {{.Clustered}};

CREATE INDEX oauth_code_by_end ON oauth_code (expires_at);
CREATE INDEX oauth_code_by_customer ON oauth_code (customer_id);

-- Payments that a service asks a customer to authorise, each with its amount and payee (PSD2 RTS art. 5).
CREATE TABLE payment (
    id           {{.Text}} NOT NULL PRIMARY KEY,
    customer_id  {{.Text}} NOT NULL,
    service      {{.Text}} NOT NULL,
    terms        {{.Blob}} NOT NULL,  -- amount, currency, payee: sealed
    status       {{.Text}} NOT NULL,  -- asked, authorised, used, void
    jkt          {{.Text}} NOT NULL,  -- of the device that the code was sent for; '' before
    code_mac     {{.Blob}},
    key_version  {{.Int}}  NOT NULL,
    tries        {{.Int}}  NOT NULL,  -- left, over all codes
    code_expires {{.Int}}  NOT NULL,
    session_id   {{.Text}} NOT NULL,  -- that authorised; '' before
    decided_at   {{.Int}}  NOT NULL,
    expires_at   {{.Int}}  NOT NULL,
    stamp        {{.Blob}} NOT NULL   -- MAC over what decides, see stamp.go in internal/identity
) {{.Clustered}};

CREATE INDEX payment_by_end ON payment (expires_at);
CREATE INDEX payment_by_customer ON payment (customer_id);

-- Proofs of changes by sessions that may pay, where several servers share one database: what one of them has
-- accepted none accepts again (RFC 9449 section 11.1).
CREATE TABLE spent_proof (
    digest     {{.Blob}} NOT NULL PRIMARY KEY,
    expires_at {{.Int}}  NOT NULL
) {{.Clustered}};

CREATE INDEX spent_proof_by_end ON spent_proof (expires_at);
