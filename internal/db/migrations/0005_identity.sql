-- +goose Up

-- Who can log in. What may be read here without a key: that somebody registered, and when.
CREATE TABLE account (
    customer_id    {{.Text}} NOT NULL PRIMARY KEY,
    phone_index    {{.Blob}} NOT NULL,  -- keyed hash of the E.164 number, for look-up
    phone          {{.Blob}} NOT NULL,  -- the number, sealed under the customer's key
    code_hash      {{.Blob}} NOT NULL,  -- bcrypt over the keyed hash of the private code
    pepper_version {{.Int}}  NOT NULL,  -- of the key of that keyed hash
    made_at        {{.Int}}  NOT NULL,
    stamp          {{.Blob}} NOT NULL   -- MAC over what decides, see stamp.go in internal/identity
) {{.Clustered}};

-- One number has one account, also between two registrations at the same instant.
CREATE UNIQUE INDEX account_by_phone ON account (phone_index);

-- The devices of customers, known by the thumbprint of the key that each holds. A revoked device
-- stays, so that its key is never accepted again.
CREATE TABLE device (
    id           {{.Text}} NOT NULL PRIMARY KEY,
    customer_id  {{.Text}} NOT NULL,
    jkt          {{.Text}} NOT NULL,
    name         {{.Blob}} NOT NULL,  -- sealed under the customer's key
    status       {{.Text}} NOT NULL,  -- pending, authorised, revoked
    added_at     {{.Int}}  NOT NULL,
    decided_at   {{.Int}},            -- when it was authorised or revoked
    last_seen_at {{.Int}}  NOT NULL,
    stamp        {{.Blob}} NOT NULL
) {{.Clustered}};

CREATE UNIQUE INDEX device_by_key ON device (customer_id, jkt);

CREATE TABLE session (
    id              {{.Text}} NOT NULL PRIMARY KEY,
    customer_id     {{.Text}} NOT NULL,
    device_id       {{.Text}} NOT NULL,
    jkt             {{.Text}} NOT NULL,
    made_at         {{.Int}}  NOT NULL,
    used_at         {{.Int}}  NOT NULL,  -- to the minute
    idle_expires_at {{.Int}}  NOT NULL,
    expires_at      {{.Int}}  NOT NULL,
    revoked_at      {{.Int}},
    stamp           {{.Blob}} NOT NULL
) {{.Clustered}};

CREATE INDEX session_by_device ON session (device_id);
CREATE INDEX session_by_customer ON session (customer_id);
CREATE INDEX session_by_end ON session (expires_at);

-- Tokens are 32 random bytes; only their SHA-256 is kept.
CREATE TABLE access_token (
    hash       {{.Blob}} NOT NULL PRIMARY KEY,
    session_id {{.Text}} NOT NULL,
    expires_at {{.Int}}  NOT NULL
) {{.Clustered}};

CREATE INDEX access_token_by_end ON access_token (expires_at);

-- A used refresh token stays until its session is over: seeing it again means that it was stolen.
CREATE TABLE refresh_token (
    hash       {{.Blob}} NOT NULL PRIMARY KEY,
    session_id {{.Text}} NOT NULL,
    expires_at {{.Int}}  NOT NULL,
    used_at    {{.Int}}
) {{.Clustered}};

CREATE INDEX refresh_token_by_end ON refresh_token (expires_at);

-- A registration or a login that waits for its one-time code. Whether the number was known and the
-- private code right stands in the sealed part alone, and every row looks like every other.
CREATE TABLE challenge (
    id           {{.Text}} NOT NULL PRIMARY KEY,
    purpose      {{.Text}} NOT NULL,
    jkt          {{.Text}} NOT NULL,
    slot         {{.Blob}} NOT NULL,  -- of all rows with one slot, only the newest is good
    superseded   {{.Int}}  NOT NULL,
    code_mac     {{.Blob}} NOT NULL,
    key_version  {{.Int}}  NOT NULL,
    tries        {{.Int}}  NOT NULL,  -- left
    expires_at   {{.Int}}  NOT NULL,
    sealed       {{.Blob}} NOT NULL
) {{.Clustered}};

CREATE INDEX challenge_by_slot ON challenge (slot);
CREATE INDEX challenge_by_end ON challenge (expires_at);

-- Failed logins per lane: an account from an unknown device, or from one of its own. Lanes are keyed
-- hashes, and numbers without an account have them too.
CREATE TABLE throttle (
    lane          {{.Blob}} NOT NULL PRIMARY KEY,
    failures      {{.Int}}  NOT NULL,  -- since the last block
    total         {{.Int}}  NOT NULL,  -- in a row
    level         {{.Int}}  NOT NULL,  -- how often it was blocked in a row
    blocked_until {{.Int}}  NOT NULL,
    updated_at    {{.Int}}  NOT NULL
) {{.Clustered}};

CREATE INDEX throttle_by_age ON throttle (updated_at);

-- Sliding counters, per keyed hash of what is counted.
CREATE TABLE quota (
    counted    {{.Blob}} NOT NULL PRIMARY KEY,
    since      {{.Int}}  NOT NULL,  -- start of the window
    count      {{.Int}}  NOT NULL,
    previous   {{.Int}}  NOT NULL,  -- count of the window before
    refused    {{.Int}}  NOT NULL,  -- in this window
    expires_at {{.Int}}  NOT NULL
) {{.Clustered}};

CREATE INDEX quota_by_end ON quota (expires_at);

-- Text messages that wait for the gateway, and the blanks that are written in their stead when none
-- is due. Sealed under the outbox key, all of one length.
CREATE TABLE sms_outbox (
    id            {{.Text}} NOT NULL PRIMARY KEY,
    sealed        {{.Blob}} NOT NULL,
    attempts      {{.Int}}  NOT NULL,
    next_at       {{.Int}}  NOT NULL,
    expires_at    {{.Int}}  NOT NULL
) {{.Clustered}};

CREATE INDEX sms_outbox_by_turn ON sms_outbox (next_at);
