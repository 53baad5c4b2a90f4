package identity

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// docs/login.md is evidence: each test that it names exists, each test of this room that carries a standard's name is
// named there, and no requirement and no attacker is without one.
func TestTheDocsNameTestsThatExist(t *testing.T) {
	const page = "../../docs/login.md"
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	declared := map[string]string{}
	function := regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]+)\(`)
	for _, root := range []string{".", "../e2e"} {
		if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range function.FindAllSubmatch(source, -1) {
				declared[string(m[1])] = root
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	named := map[string]bool{}
	for _, name := range regexp.MustCompile(`\bTest[A-Za-z0-9_]+`).FindAllString(text, -1) {
		named[name] = true
		if declared[name] == "" {
			t.Errorf("%s names %s, which does not exist", page, name)
		}
	}
	standard := regexp.MustCompile(`^Test(ASVS|NIST|PSD2|RFC)_?[0-9R]`)
	for name, root := range declared {
		if root == "." && standard.MatchString(name) && !named[name] {
			t.Errorf("%s does not name %s", page, name)
		}
	}
	for _, header := range []string{"| requirement | what it asks | test |\n", "| attacker | what stops them | test |\n"} {
		if strings.Count(text, header) != 1 {
			t.Fatalf("there is not one table with the header %q", header)
		}
		_, table, _ := strings.Cut(text, header)
		table, _, _ = strings.Cut(table, "\n\n")
		rows := strings.Split(strings.TrimSpace(table), "\n")[1:]
		if len(rows) < 20 {
			t.Errorf("only %d rows under %q", len(rows), header)
		}
		for _, row := range rows {
			if cells := strings.Split(strings.Trim(row, "|"), "|"); len(cells) != 3 || !strings.Contains(cells[2], "`Test") {
				t.Errorf("no test is named in %s", row)
			}
		}
	}
	for _, drawing := range []string{"POST /v1/registrations", "POST /v1/logins", "device-pending", "POST /v1/payments", "login change-number"} {
		found := false
		for _, block := range strings.Split(text, "```mermaid")[1:] {
			block, _, _ = strings.Cut(block, "```")
			found = found || strings.Contains(block, drawing)
		}
		if !found {
			t.Errorf("no drawing shows %s", drawing)
		}
	}
}
