-- +goose Up

-- Versions of customers' data keys. stopped_at is when a version ceased to seal. reseal says whether
-- values wait that it sealed: 0 none, 1 some may, 2 some may and somebody else knows the version;
-- reseal_at is when to look for them.
ALTER TABLE data_key ADD COLUMN stopped_at {{.Int}};
ALTER TABLE data_key ADD COLUMN reseal {{.Int}} NOT NULL DEFAULT 0;
ALTER TABLE data_key ADD COLUMN reseal_at {{.Int}} NOT NULL DEFAULT 0;

CREATE INDEX data_key_reseal ON data_key (reseal, reseal_at, customer_id) WHERE reseal > 0;
