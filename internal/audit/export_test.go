package audit

import "context"

// IndexMany is Index with larger transactions.
func (t *Trail) IndexMany(ctx context.Context) (int, error) { return t.indexSome(ctx, 2048) }

// Statement returns the first page's query, for tests that ask a database how it would run it.
func (t *Trail) Statement(q Query) (query string, args []any) {
	query, _, args = t.statement(q, cursor{madeAt: maxTime + 1, from: q.From}, defaultPage+1)
	return query, args
}
