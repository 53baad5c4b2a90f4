package passcode

import (
	"strings"
	"time"
)

// Birth is the weakness of a code with the customer's birth date in it.
const Birth Weakness = "birth-date"

// JudgeBirth returns Birth when the code holds the birth date, given as 2006-01-02, in whatever order and
// with two digits of the year or four. An empty or unreadable date is not known.
func JudgeBirth(code []byte, born string) Weakness {
	day, err := time.Parse(time.DateOnly, born)
	if err != nil {
		return ""
	}
	s := strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' {
			return c
		}
		return -1
	}, plain(string(Normal(code))))
	for _, layout := range []string{"02012006", "01022006", "20060102", "20060201", "020106", "010206", "060102", "060201"} {
		if strings.Contains(s, day.Format(layout)) {
			return Birth
		}
	}
	return ""
}
