-- +goose Up

-- Which version of the blind-index key made phone_index. Until now there was one.
ALTER TABLE account ADD COLUMN index_version {{.Int}} NOT NULL DEFAULT 1;
