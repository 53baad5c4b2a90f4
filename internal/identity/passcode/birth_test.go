package passcode

import "testing"

func TestJudgeBirth(t *testing.T) {
	const born = "1984-03-29"
	for _, row := range []struct {
		code, born string
		want       Weakness
	}{
		{"29031984", born, Birth}, {"x03291984y", born, Birth}, {"19840329", born, Birth}, {"5290384", born, Birth}, {"84-03-29!", born, Birth},
		{"my cat is 84.29.03", born, Birth}, {"73920485", born, ""}, {"1984 was a book", born, ""}, {"29031984", "", ""}, {"29031984", "soon", ""},
	} {
		if got := JudgeBirth([]byte(row.code), row.born); got != row.want {
			t.Errorf("%s: %q, want %q", row.code, got, row.want)
		}
	}
	if Birth.Explain() == "" {
		t.Error("nobody learns what to do")
	}
}
