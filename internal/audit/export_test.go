package audit

import (
	"context"
	"time"
)

// Hurry shortens how often a silent feed gives a sign of life, and how long a reader has for a page.
func (f *Feed) Hurry(beat, write time.Duration) { f.beat, f.write = beat, write }

// IndexMany is Index with larger transactions.
func (t *Trail) IndexMany(ctx context.Context) (int, error) { return t.indexSome(ctx, 2048) }

// Statement returns the first page's query, for tests that ask a database how it would run it.
func (t *Trail) Statement(q Query) (query string, args []any) {
	query, _, args = t.statement(q, cursor{madeAt: maxTime + 1, from: q.From}, defaultPage+1)
	return query, args
}
