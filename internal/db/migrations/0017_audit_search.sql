-- +goose Up

-- What events are found by: one row for each event of the log, filled soon after it has its place. It
-- holds no value, only 64 bits of a hash of each; address, country and behalf are personal, so theirs is
-- keyed, and they are 0 once the customer is erased. 0 means that the event has none (an outcome of 0 is
-- granted, which nearly all events are). What is found is read from event and compared whole, so a row
-- here can hide an event from a search but make no search say what is not so.
CREATE TABLE event_search (
    idx         {{.Int}}  NOT NULL PRIMARY KEY,
    event_id    {{.Text}} NOT NULL,
    made_at     {{.Int}}  NOT NULL,
    actor       {{.Int}}  NOT NULL,
    customer    {{.Int}}  NOT NULL,
    device      {{.Int}}  NOT NULL,
    action      {{.Int}}  NOT NULL,
    room        {{.Int}}  NOT NULL,
    outcome     {{.Int}}  NOT NULL,
    resource    {{.Int}}  NOT NULL,
    transaction_ref {{.Int}} NOT NULL,
    request     {{.Int}}  NOT NULL,
    address     {{.Int}}  NOT NULL,
    country     {{.Int}}  NOT NULL,
    behalf      {{.Int}}  NOT NULL
) {{.Table}};

-- Each index is in the order of pages. The partial ones cost an event nothing that has no such value.
CREATE INDEX event_search_time        ON event_search (made_at, idx);
CREATE INDEX event_search_actor       ON event_search (actor, made_at, idx)           WHERE actor <> 0;
CREATE INDEX event_search_customer    ON event_search (customer, made_at, idx)        WHERE customer <> 0;
CREATE INDEX event_search_device      ON event_search (device, made_at, idx)          WHERE device <> 0;
CREATE INDEX event_search_action      ON event_search (action, made_at, idx)          WHERE action <> 0;
CREATE INDEX event_search_room        ON event_search (room, made_at, idx)            WHERE room <> 0;
CREATE INDEX event_search_outcome     ON event_search (outcome, made_at, idx)         WHERE outcome <> 0;
CREATE INDEX event_search_resource    ON event_search (resource, made_at, idx)        WHERE resource <> 0;
CREATE INDEX event_search_transaction ON event_search (transaction_ref, made_at, idx) WHERE transaction_ref <> 0;
CREATE INDEX event_search_request     ON event_search (request, made_at, idx)         WHERE request <> 0;
CREATE INDEX event_search_address     ON event_search (address, made_at, idx)         WHERE address <> 0;
CREATE INDEX event_search_country     ON event_search (country, made_at, idx)         WHERE country <> 0;
CREATE INDEX event_search_behalf      ON event_search (behalf, made_at, idx)          WHERE behalf <> 0;

-- How many events of the log have their row.
CREATE TABLE event_search_head (
    one  {{.Int}} NOT NULL PRIMARY KEY CHECK (one = 1),
    size {{.Int}} NOT NULL
) {{.Table}};

INSERT INTO event_search_head (one, size) VALUES (1, 0);

-- Customers who were erased, so that their late events get no personal terms.
CREATE TABLE event_search_erased (
    customer {{.Int}} NOT NULL PRIMARY KEY
) {{.Table}};

-- Searches by name. The query is sealed.
CREATE TABLE saved_search (
    name    {{.Text}} NOT NULL PRIMARY KEY,
    sealed  {{.Blob}} NOT NULL,
    made_by {{.Text}} NOT NULL,
    made_at {{.Int}}  NOT NULL
) {{.Clustered}};

-- What each server's clock was ahead of the database's when it looked last, in microseconds; looked_at
-- is the database's time.
CREATE TABLE server_clock (
    holder    {{.Text}} NOT NULL PRIMARY KEY,
    ahead     {{.Int}}  NOT NULL,
    looked_at {{.Int}}  NOT NULL
) {{.Clustered}};
