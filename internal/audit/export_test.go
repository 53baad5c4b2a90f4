package audit

// Statement returns the first page's query, for tests that ask a database how it would run it.
func (t *Trail) Statement(q Query) (query string, args []any) {
	query, _, args = t.statement(q, cursor{madeAt: maxTime + 1, from: q.From}, defaultPage+1)
	return query, args
}
