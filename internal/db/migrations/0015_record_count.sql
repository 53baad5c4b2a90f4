-- +goose Up

-- How many records a customer has in a collection, so that making one need not count them. It changes in the
-- transaction of each record that is made or deleted.
ALTER TABLE record_mark ADD COLUMN records {{.Int}} NOT NULL DEFAULT 0;

INSERT INTO record_mark (customer_id, collection, version, records)
SELECT customer_id, collection, 1, COUNT(*) FROM record WHERE 1 = 1 GROUP BY customer_id, collection
ON CONFLICT (customer_id, collection) DO UPDATE SET records = excluded.records;
