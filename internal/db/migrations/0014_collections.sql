-- +goose Up

-- The declarations of collections, every version of each. source says who manages it: default,
-- configuration or operator. mac authenticates the row and, through the MAC of the version before it, all
-- older ones, under the service key event-mac of version mac_version.
CREATE TABLE collection_version (
    name        {{.Text}} NOT NULL,
    version     {{.Int}}  NOT NULL,
    source      {{.Text}} NOT NULL,
    declaration {{.Text}} NOT NULL,
    made_by     {{.Text}} NOT NULL,
    made_at     {{.Int}}  NOT NULL,
    mac_version {{.Int}}  NOT NULL,
    mac         {{.Blob}} NOT NULL,
    PRIMARY KEY (name, version)
) {{.Clustered}};

-- Collections whose indexes are being brought in line with their newest declaration: how far that is, and
-- the fields that cannot be looked up before it is done, a JSON list.
CREATE TABLE collection_build (
    name           {{.Text}} NOT NULL PRIMARY KEY,
    version        {{.Int}}  NOT NULL,
    fields         {{.Text}} NOT NULL,
    after_customer {{.Text}} NOT NULL,
    after_key      {{.Text}} NOT NULL,
    done           {{.Int}}  NOT NULL,
    unreadable     {{.Int}}  NOT NULL
) {{.Clustered}};
