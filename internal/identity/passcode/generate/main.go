// Generate makes leaked.txt, the list of private codes that were found most often in leaks of passwords,
// from passwords.json of the npm package @zxcvbn-ts/language-common (MIT), which has some 49,000 in the
// order of how often they were found:
//
//	npm pack @zxcvbn-ts/language-common@4.1.3 && tar xzf zxcvbn-ts-language-common-4.1.3.tgz
//	go run ./internal/identity/passcode/generate package/src/passwords.json > internal/identity/passcode/leaked.txt
//
// What is shorter than the shortest code that a deployment may allow, or longer than the longest, is left
// out. The list is in the form in which codes are judged, sorted by bytes, so that it is searched where it
// lies in the program.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"strongroom/internal/identity/passcode"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: generate passwords.json")
		os.Exit(2)
	}
	if err := generate(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func generate(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var all []string
	if err := json.Unmarshal(raw, &all); err != nil {
		return err
	}
	var out []string
	for _, word := range all {
		word = passcode.Folded([]byte(word))
		if n := utf8.RuneCountInString(word); n >= passcode.LeastLength && n <= passcode.MaxLength && !strings.Contains(word, "\n") {
			out = append(out, word)
		}
	}
	slices.Sort(out)
	w := bufio.NewWriter(os.Stdout)
	for _, word := range slices.Compact(out) {
		fmt.Fprintln(w, word)
	}
	return w.Flush()
}
