package audit

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// maxSaved bounds the saved searches.
const maxSaved = 200

// Saved is a search by name. All who may search share them.
type Saved struct {
	Name   string    `json:"name"`
	Query  Query     `json:"query"`
	MadeBy string    `json:"made_by"`
	MadeAt time.Time `json:"made_at"`
}

var (
	savedNotFound = problem.New(problem.NotFound, "search-not-found", "There is no saved search of this name.")
	savedDamaged  = problem.New(problem.Internal, "search-damaged", "The saved search cannot be opened. Delete it and save it again.")
)

// Save keeps a query under a name, a slug; one that is there is replaced. A query with an address is
// refused, because an address is personal and a saved search belongs to nobody who could be erased.
func (s *Search) Save(ctx context.Context, by actor.Actor, purpose, name string, q Query) error {
	e := Event{Action: ActionSearchSave, Resource: savedResource(name)}
	p := s.may(by, purpose, "", false)
	if p == nil {
		p = q.check()
	}
	if p == nil && !isSavedName(name) {
		p = problem.New(problem.Unprocessable, "invalid-search", "A name is at most 64 of a-z, 0-9 and single hyphens.")
	}
	if p == nil && q.Address != "" {
		p = problem.New(problem.Unprocessable, "invalid-search", "An address is personal and is not saved. Give it when you search.")
	}
	if p != nil {
		return s.trail.Deny(ctx, by, e, p)
	}
	text, err := json.Marshal(q)
	if err != nil {
		return err
	}
	return s.trail.Do(ctx, by, e, func(tx *db.Tx, e *Event) error {
		var others int64
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM saved_search WHERE name <> $1`, name).Scan(&others); err != nil {
			return err
		}
		if others >= maxSaved {
			return problem.New(problem.Conflict, "too-many-searches", "There are %d saved searches already. Delete one.", maxSaved)
		}
		_, err := tx.Exec(ctx, `
			INSERT INTO saved_search (name, sealed, made_by, made_at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed, made_by = excluded.made_by, made_at = excluded.made_at`,
			name, s.trail.keys.Service(sealingKey).Seal(savedPlace(name), text), clean(by.ID, maxField), clock.Micros(s.trail.clock.Now()))
		return err
	})
}

// RunSaved is Run for a saved search. It fails with the problem "search-not-found".
func (s *Search) RunSaved(ctx context.Context, by actor.Actor, name string, a Ask) (Page, error) {
	e := Event{Action: ActionSearch, Resource: savedResource(name)}
	// Who may not search learns no names. What the query allows is decided once it is known.
	if p := s.may(by, a.Purpose, "", a.Reveal); p != nil {
		return Page{}, s.trail.Deny(ctx, by, e, p)
	}
	var q Query
	err := s.trail.db.View(ctx, func(tx *db.Tx) error {
		var sealed []byte
		err := tx.QueryRow(ctx, `SELECT sealed FROM saved_search WHERE name = $1`, name).Scan(&sealed)
		if errors.Is(err, sql.ErrNoRows) {
			return savedNotFound
		}
		if err != nil {
			return err
		}
		q, err = s.openSaved(name, sealed)
		return err
	})
	if p := problem.Of(err); p != nil {
		return Page{}, s.trail.Deny(ctx, by, e, p)
	}
	if err != nil {
		return Page{}, err
	}
	return s.run(ctx, by, q, a, name)
}

func (s *Search) openSaved(name string, sealed []byte) (q Query, err error) {
	text, err := s.trail.keys.Service(sealingKey).Open(savedPlace(name), sealed)
	if err != nil {
		return q, savedDamaged.Because(err)
	}
	if err := json.Unmarshal(text, &q); err != nil {
		return q, savedDamaged.Because(err)
	}
	return q, nil
}

// List returns the saved searches by name.
func (s *Search) List(ctx context.Context, by actor.Actor, purpose string) (list []Saved, err error) {
	e := Event{Action: ActionSearchList, Resource: "saved searches"}
	if p := s.may(by, purpose, "", false); p != nil {
		return nil, s.trail.Deny(ctx, by, e, p)
	}
	err = s.trail.Do(ctx, by, e, func(tx *db.Tx, e *Event) error {
		list = []Saved{}
		rows, err := tx.Query(ctx, `SELECT name, sealed, made_by, made_at FROM saved_search ORDER BY name`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var one Saved
			var sealed []byte
			var at int64
			if err := rows.Scan(&one.Name, &sealed, &one.MadeBy, &at); err != nil {
				return err
			}
			if one.Query, err = s.openSaved(one.Name, sealed); err != nil {
				return err
			}
			one.MadeAt = clock.FromMicros(at)
			list = append(list, one)
		}
		return rows.Err()
	})
	return list, err
}

// Delete forgets a saved search. It fails with the problem "search-not-found".
func (s *Search) Delete(ctx context.Context, by actor.Actor, purpose, name string) error {
	e := Event{Action: ActionSearchDelete, Resource: savedResource(name)}
	if p := s.may(by, purpose, "", false); p != nil {
		return s.trail.Deny(ctx, by, e, p)
	}
	return s.trail.Do(ctx, by, e, func(tx *db.Tx, e *Event) error {
		n, err := tx.Exec(ctx, `DELETE FROM saved_search WHERE name = $1`, name)
		if err == nil && n == 0 {
			return savedNotFound
		}
		return err
	})
}

func isSavedName(name string) bool { return checkPurpose(name) == nil }

func savedResource(name string) string {
	if !isSavedName(name) {
		return "saved search"
	}
	return "saved search " + name
}

func savedPlace(name string) seal.Place {
	return seal.Place{Room: "audit", Table: "saved_search", Record: name}
}
