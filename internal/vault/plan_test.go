package vault_test

import (
	"strings"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// TestPlans: on the embedded database, what is asked for each record or each row of an index never walks
// through a whole collection.
func TestPlans(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	for query, want := range map[string]string{
		`SELECT sole FROM record_index WHERE customer_id = $1 AND collection || '' = $2 AND key = $3`: "record_index_by_record (customer_id=?)",
		`DELETE FROM record_index WHERE customer_id = $1 AND collection || '' = $2 AND key = $3`:      "record_index_by_record (customer_id=?)",
		`SELECT DISTINCT customer_id, collection, key FROM record_index
			WHERE customer_id >= $1 AND (customer_id, collection, key) > ($1, $2, $3)
			ORDER BY customer_id, collection, key LIMIT 10`: "record_index_by_record (customer_id>?)",
		`SELECT customer_id, key, sealed FROM record WHERE (customer_id, collection, key) > ($1, $2, $3) AND collection || '' = $2
			ORDER BY customer_id, collection, key LIMIT 10`: "PRIMARY KEY ((customer_id,collection,key)>(?,?,?))",
		`SELECT 1 FROM external_ref n WHERE n.customer_id = $1 AND n.key_version + 0 = $2 AND $3 = ''`:                                             "external_ref_by_customer (customer_id=?)",
		`SELECT 1 FROM record_index n WHERE n.customer_id = $1 AND n.collection || '' = $2 AND n.key = $3 AND n.field = 'f' AND n.key_version = 1`: "record_index_by_record (customer_id=?)",
	} {
		err := d.View(t.Context(), func(tx *db.Tx) error {
			rows, err := tx.Query(t.Context(), "EXPLAIN QUERY PLAN "+query, "a", "b", "c")
			if err != nil {
				return err
			}
			defer rows.Close()
			var plan strings.Builder
			for rows.Next() {
				var a, b, c any
				var step string
				if err := rows.Scan(&a, &b, &c, &step); err != nil {
					return err
				}
				plan.WriteString(step + "\n")
			}
			if !strings.Contains(plan.String(), want) || strings.Contains(plan.String(), "TEMP B-TREE") {
				t.Errorf("%s\n%s", query, plan.String())
			}
			return rows.Err()
		})
		if err != nil {
			t.Error(query, err)
		}
	}
}
