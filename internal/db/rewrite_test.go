package db

import (
	"strings"
	"testing"
)

func TestNumbered(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"SELECT 1", "SELECT 1"},
		{"SELECT $1", "SELECT ?1"},
		{"SELECT $2, $1, $12", "SELECT ?2, ?1, ?12"},
		{"a=$1", "a=?1"},
		{"($1,$2)", "(?1,?2)"},
		{"SELECT '$1', $1", "SELECT '$1', ?1"},
		{"SELECT 'it''s $1', $1", "SELECT 'it''s $1', ?1"},
		{`SELECT "a$1", "$1""$2", $1`, `SELECT "a$1", "$1""$2", ?1`},
		{"SELECT `$1`, [$2], $1", "SELECT `$1`, [$2], ?1"},
		{"SELECT $1 -- not $2\n, $2", "SELECT ?1 -- not $2\n, ?2"},
		{"SELECT $1 /* not $2 */, $2", "SELECT ?1 /* not $2 */, ?2"},
		{"SELECT a$1, $$ x $$, $1", "SELECT a$1, $$ x $$, ?1"},
		{"SELECT $name, 'open $1", "SELECT $name, 'open $1"},
		{"SELECT $1 -- the end $2", "SELECT ?1 -- the end $2"},
		{"SELECT $1 /* the end $2", "SELECT ?1 /* the end $2"},
		{"SELECT 3-$1, 3/$2", "SELECT 3-?1, 3/?2"},
		{"$", "$"},
		{"$1", "?1"},
		{"é$1 = 'é' || $1", "é$1 = 'é' || ?1"},
	} {
		if got := numbered(c.in); got != c.want {
			t.Errorf("numbered(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzNumbered(f *testing.F) {
	for _, s := range []string{"SELECT $2, $1", "'$1' -- $1\n$1", `"$1" [$1] $1 /* $1`, "a$1$2 '"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := numbered(s)
		if len(got) != len(s) {
			t.Fatalf("%q became %q", s, got)
		}
		for i := range len(s) {
			if got[i] != s[i] && (s[i] != '$' || got[i] != '?' || i+1 == len(s) || !digit(s[i+1])) {
				t.Fatalf("%q became %q", s, got)
			}
		}
		if !strings.ContainsAny(s, "'\"`[-/") && strings.Contains(" "+got, " $1") {
			t.Fatalf("%q became %q", s, got)
		}
	})
}
