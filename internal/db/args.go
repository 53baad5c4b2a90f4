package db

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"strongroom/internal/problem"
)

var errBadText = problem.New(problem.Unprocessable, "invalid-text",
	"Text must be valid UTF-8 and must not hold the NUL character.")

// checked brings the arguments of a statement into the five forms that both engines take alike:
// nil, int64, float64, string and []byte. A bool becomes 0 or 1, a nil slice becomes NULL, and a
// named type becomes what it is made of. PostgreSQL refuses NUL and broken UTF-8 in text, so they
// are refused on both.
func checked(args []any) ([]any, error) {
	out := args
	for i, a := range args {
		v, same, err := value(a)
		if err != nil {
			var p *problem.Problem
			if errors.As(err, &p) {
				return nil, p
			}
			return nil, fmt.Errorf("argument $%d: %w", i+1, err)
		}
		if same {
			continue
		}
		if &out[0] == &args[0] {
			out = append([]any(nil), args...) // args belongs to the caller
		}
		out[i] = v
	}
	return out, nil
}

// value returns a in one of the five forms; same is true when it already was.
func value(a any) (v any, same bool, err error) {
	switch a := a.(type) {
	case nil, int64, float64:
		return a, true, nil
	case string:
		if !goodText(a) {
			return nil, false, errBadText
		}
		return a, true, nil
	case []byte:
		if a == nil {
			return nil, false, nil
		}
		return a, true, nil
	case int:
		return int64(a), false, nil
	case bool:
		if a {
			return int64(1), false, nil
		}
		return int64(0), false, nil
	case time.Time:
		return nil, false, errors.New("times are kept as integer microseconds: pass clock.Micros(t)")
	case driver.Valuer:
		if rv := reflect.ValueOf(a); rv.Kind() == reflect.Pointer && rv.IsNil() {
			return nil, false, nil
		}
		w, err := a.Value()
		if err != nil {
			return nil, false, err
		}
		v, _, err = value(w)
		return v, false, err
	}
	switch r := reflect.ValueOf(a); r.Kind() {
	case reflect.String:
		v, _, err = value(r.String())
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Int:
		v = r.Int()
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		if r.Uint() > 1<<63-1 {
			return nil, false, errors.New("the number does not fit into 63 bits")
		}
		v = int64(r.Uint())
	case reflect.Float32:
		v = r.Float()
	case reflect.Float64:
		v = r.Float()
	case reflect.Bool:
		v, _, err = value(r.Bool())
	case reflect.Pointer:
		if !r.IsNil() {
			v, _, err = value(r.Elem().Interface())
		}
	case reflect.Slice:
		if r.Type().Elem().Kind() != reflect.Uint8 {
			return nil, false, fmt.Errorf("a %T cannot be stored", a)
		}
		if !r.IsNil() {
			v = r.Bytes()
		}
	default:
		return nil, false, fmt.Errorf("a %T cannot be stored", a)
	}
	return v, false, err
}

func goodText(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// refused stands in for the arguments of a query that must not run, because a *sql.Row can carry
// an error only when the driver returns it.
type refused struct{ err error }

// Value returns the reason, which database/sql and pgx hand back when the row is scanned.
func (r refused) Value() (driver.Value, error) { return nil, r.err }
