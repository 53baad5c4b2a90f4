-- +goose Up

-- Second steps beside the code by SMS. What is sealed is the secret of a TOTP generator, the public key
-- of a passkey, or, while it is pending, what its enrolment waits for.
CREATE TABLE factor (
    id           {{.Text}} NOT NULL PRIMARY KEY,
    customer_id  {{.Text}} NOT NULL,
    kind         {{.Text}} NOT NULL,  -- totp, passkey
    status       {{.Text}} NOT NULL,  -- pending, active
    step         {{.Int}}  NOT NULL,  -- the newest time step of a TOTP generator that was used
    made_at      {{.Int}}  NOT NULL,
    used_at      {{.Int}}  NOT NULL,
    sealed       {{.Blob}} NOT NULL,  -- under the customer's key
    stamp        {{.Blob}} NOT NULL
) {{.Clustered}};

CREATE INDEX factor_by_customer ON factor (customer_id);

-- What a customer, or the look-up of SIM swaps, has decided about codes by SMS. No row: they are sent.
CREATE TABLE sms_rule (
    customer_id  {{.Text}} NOT NULL PRIMARY KEY,
    off          {{.Int}}  NOT NULL,  -- 1: the customer wants none
    held_until   {{.Int}}  NOT NULL,  -- none are sent before
    stamp        {{.Blob}} NOT NULL
) {{.Clustered}};

-- What is known of a device beyond its key.
CREATE TABLE device_trust (
    device_id    {{.Text}} NOT NULL PRIMARY KEY,
    customer_id  {{.Text}} NOT NULL,
    attestation  {{.Text}} NOT NULL,  -- "", or what vouched for the key: android-tee, android-strongbox, apple
    expires_at   {{.Int}}  NOT NULL,  -- when it can be approved no more
    tries        {{.Int}}  NOT NULL,  -- of its number, left
    number       {{.Blob}} NOT NULL,  -- that it shows, sealed under the customer's key
    stamp        {{.Blob}} NOT NULL
) {{.Clustered}};

CREATE INDEX device_trust_by_customer ON device_trust (customer_id);

-- Members of staff who have seen the identity of somebody who lost all factors. Two of them open.
CREATE TABLE vouch (
    subject      {{.Text}} NOT NULL,  -- what is to be done
    operator     {{.Text}} NOT NULL,
    customer_id  {{.Text}} NOT NULL,
    expires_at   {{.Int}}  NOT NULL,
    stamp        {{.Blob}} NOT NULL,
    PRIMARY KEY (subject, operator)
) {{.Clustered}};

CREATE INDEX vouch_by_end ON vouch (expires_at);
CREATE INDEX vouch_by_customer ON vouch (customer_id);

-- A change of number that waits out its day. One for each customer.
CREATE TABLE number_change (
    customer_id  {{.Text}} NOT NULL PRIMARY KEY,
    id           {{.Text}} NOT NULL,
    due_at       {{.Int}}  NOT NULL,
    phone_index  {{.Blob}} NOT NULL,  -- of the new number
    phone        {{.Blob}} NOT NULL,  -- the new number, sealed under the customer's key
    cancel_hash  {{.Blob}} NOT NULL,  -- of the code that cancels
    stamp        {{.Blob}} NOT NULL
) {{.Clustered}};

CREATE INDEX number_change_by_turn ON number_change (due_at);
CREATE INDEX number_change_by_cancel ON number_change (cancel_hash);

-- What a customer is told on their devices: nothing personal beyond its being theirs.
CREATE TABLE notice (
    id           {{.Text}} NOT NULL PRIMARY KEY,
    customer_id  {{.Text}} NOT NULL,
    kind         {{.Text}} NOT NULL,
    device_id    {{.Text}} NOT NULL,  -- that it is about, or ""
    made_at      {{.Int}}  NOT NULL
) {{.Clustered}};

CREATE INDEX notice_by_customer ON notice (customer_id, id);
CREATE INDEX notice_by_age ON notice (made_at);
