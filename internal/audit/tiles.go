package audit

import (
	"compress/gzip"
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// ActionTiles is recorded for every bundle of entries that is given, and for every refusal to give
// anything of the log over HTTP.
const ActionTiles = "audit.tiles.read"

var (
	errNoTile       = problem.New(problem.NotFound, "tile-not-found", "The log has no such tile.")
	errNoCheckpoint = problem.New(problem.NotFound, "checkpoint-not-found", "The log has no checkpoint yet.")
)

// TilesPath is where Tiles stands: the prefix of the log, in the words of C2SP tlog-tiles, with a slash.
const TilesPath = "/audit/"

// Tiles serves the log as C2SP tlog-tiles at TilesPath: its checkpoint, its tiles, and its entries, whose
// bytes hold nothing personal; and, at /audit/checkpoints, the history of its checkpoints.
//
// permit says whether the caller may; its refusals are recorded. Hashes say nothing about anybody and
// leave no event; each bundle of entries leaves one, which is durable before the answer. What is served
// is not checked here: a client checks every tile against the checkpoint, which is signed.
//
// report writes a failure as an answer.
func (t *Trail) Tiles(permit func(*http.Request) *problem.Problem, report func(http.ResponseWriter, *http.Request, error)) http.Handler {
	s := &tileServer{t, permit, report}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+TilesPath+"checkpoint", s.checkpoint)
	mux.HandleFunc("GET "+TilesPath+"checkpoints", s.checkpoints)
	mux.HandleFunc("GET "+TilesPath+"tile/{path...}", s.tile)
	return mux
}

type tileServer struct {
	trail  *Trail
	permit func(*http.Request) *problem.Problem
	report func(http.ResponseWriter, *http.Request, error)
}

// The headers of what never changes and of what does. Only the caller may keep it: others have to show
// that they may read it.
const (
	cacheForEver = "private, max-age=31536000, immutable"
	cacheBriefly = "private, max-age=1"
)

// may reports whether the request may go on, and answers it otherwise.
func (s *tileServer) may(w http.ResponseWriter, r *http.Request) bool {
	p := s.permit(r)
	if p == nil {
		return true
	}
	s.report(w, r, s.trail.Deny(r.Context(), actor.From(r.Context()), Event{Action: ActionTiles, Resource: "log"}, p))
	return false
}

func (s *tileServer) checkpoint(w http.ResponseWriter, r *http.Request) {
	if !s.may(w, r) {
		return
	}
	var signed string
	err := s.trail.db.View(r.Context(), func(tx *db.Tx) error {
		h, err := selectHead(r.Context(), tx)
		if errors.Is(err, sql.ErrNoRows) || err == nil && h.note == "" {
			return errNoCheckpoint
		}
		if err == nil {
			signed, err = withCosignatures(r.Context(), tx, h.size, h.note)
		}
		return err
	})
	if err != nil {
		s.report(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", cacheBriefly)
	_, _ = w.Write([]byte(signed)) // the caller has gone
}

func (s *tileServer) tile(w http.ResponseWriter, r *http.Request) {
	if !s.may(w, r) {
		return
	}
	level, n, width, ok := parseTilePath(r.PathValue("path"))
	if !ok {
		s.report(w, r, errNoTile)
		return
	}
	ctx := r.Context()
	var body []byte
	err := s.trail.db.View(ctx, func(tx *db.Tx) (err error) {
		h, err := selectHead(ctx, tx)
		if errors.Is(err, sql.ErrNoRows) {
			return errNoTile
		}
		if err != nil {
			return err
		}
		// The log has, at a level, a hash for every complete subtree of that height.
		if n*tileWidth+int64(width) > h.size>>(tileHeight*max(level, 0)) {
			return errNoTile
		}
		if level < 0 {
			body, err = selectEntries(ctx, tx, n*tileWidth, n*tileWidth+int64(width))
			return err
		}
		hashes, err := selectTile(ctx, tx, level, n)
		if err == nil && len(hashes) < width*tlog.HashSize {
			err = errTampered
		}
		if err == nil {
			body = hashes[:width*tlog.HashSize]
		}
		return err
	})
	if err == nil && level < 0 {
		// The event first: what left without one would leave no trace.
		err = s.trail.alone(ctx, actor.From(ctx), Event{Action: ActionTiles, Outcome: Granted,
			Resource: "entries " + strconv.FormatInt(n*tileWidth, 10) + " to " + strconv.FormatInt(n*tileWidth+int64(width)-1, 10)})
		if err != nil {
			err = unrecorded(err, nil)
		}
	}
	if err != nil {
		s.report(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", cacheForEver)
	if level < 0 {
		w.Header().Set("Vary", "Accept-Encoding")
		if acceptsGzip(r.Header.Get("Accept-Encoding")) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write(body)
			_ = z.Close()
			return
		}
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

// acceptsGzip reports whether gzip stands in an Accept-Encoding header without a weight of zero.
func acceptsGzip(header string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, weight, _ := strings.Cut(part, ";")
		if !strings.EqualFold(strings.TrimSpace(name), "gzip") {
			continue
		}
		q, err := strconv.ParseFloat(strings.TrimPrefix(strings.ReplaceAll(weight, " ", ""), "q="), 64)
		return weight == "" || err == nil && q > 0
	}
	return false
}

// maxTileIndex keeps the arithmetic of places within 63 bits.
const maxTileIndex = 1<<48 - 1

// parseTilePath takes what follows tile/ apart: <L>/<N>[.p/<W>] or entries/<N>[.p/<W>], whose level is
// -1. It takes no form but the one that the standard gives each tile.
func parseTilePath(path string) (level int, n int64, width int, ok bool) {
	first, rest, _ := strings.Cut(path, "/")
	if first == "entries" {
		level = -1
	} else if level, ok = decimal(first, 0, tileLevels-1); !ok {
		return 0, 0, 0, false
	}
	number, partial, isPartial := strings.Cut(rest, ".p/")
	width = tileWidth
	if isPartial {
		if width, ok = decimal(partial, 1, tileWidth-1); !ok {
			return 0, 0, 0, false
		}
	}
	parts := strings.Split(number, "/")
	for i, p := range parts {
		if i < len(parts)-1 {
			var has bool
			if p, has = strings.CutPrefix(p, "x"); !has {
				return 0, 0, 0, false
			}
		}
		v, err := strconv.ParseUint(p, 10, 16)
		if len(p) != 3 || err != nil || p[0] == '+' || i == 0 && len(parts) > 1 && v == 0 {
			return 0, 0, 0, false
		}
		if n = n*1000 + int64(v); n > maxTileIndex {
			return 0, 0, 0, false
		}
	}
	return level, n, width, true
}

// decimal reads a number without leading zeroes.
func decimal(s string, low, high int) (int, bool) {
	v, err := strconv.Atoi(s)
	return v, err == nil && v >= low && v <= high && strconv.Itoa(v) == s
}

// selectEntries returns the leaves from lo to hi-1 as an entry bundle: each behind its length in two bytes.
// It fails with errTampered when one is missing.
func selectEntries(ctx context.Context, tx *db.Tx, lo, hi int64) ([]byte, error) {
	events, err := queryPlaced(ctx, tx, make([]placed, 0, hi-lo), `
		SELECT `+boundedText("l.event_id")+`, l.idx, `+leafColumns+`
		FROM event_leaf l JOIN event e ON e.id = l.event_id
		WHERE l.idx >= $1 AND l.idx < $2 ORDER BY l.idx LIMIT $3`, lo, hi, hi-lo)
	if err != nil {
		return nil, err
	}
	if int64(len(events)) != hi-lo {
		return nil, errTampered
	}
	var bundle []byte
	for i := range events {
		if events[i].index != lo+int64(i) {
			return nil, errTampered
		}
		at := len(bundle)
		bundle = events[i].appendLeaf(append(bundle, 0, 0))
		size := len(bundle) - at - 2
		if size > 1<<16-1 {
			return nil, errTampered // no leaf that Record makes is so long
		}
		binary.BigEndian.PutUint16(bundle[at:], uint16(size))
	}
	return bundle, nil
}

// Checkpoint is one of the checkpoints that were signed.
type Checkpoint struct {
	Number     int64     `json:"number"` // from 1
	Size       int64     `json:"size"`   // of the log, in events
	Root       string    `json:"root"`   // in base64
	Time       time.Time `json:"time"`   // when it was signed, by the clock of the server
	Key        string    `json:"key"`    // the hash of the key that signed it, in hex, as its verifier key has it
	Witnesses  []string  `json:"witnesses,omitempty"`
	Checkpoint string    `json:"checkpoint"` // the signed note
}

// ActionCheckpoints is recorded for every look at the history of checkpoints.
const ActionCheckpoints = "audit.checkpoints.list"

// maxCheckpoints bounds what Checkpoints returns.
const maxCheckpoints = 1000

// Checkpoints returns the checkpoints of sizes below the one given, the newest first, at most limit (1 to
// 1000); below 0 means from the newest. Only the system may ask.
func (t *Trail) Checkpoints(ctx context.Context, by actor.Actor, below int64, limit int) ([]Checkpoint, error) {
	e := Event{Action: ActionCheckpoints, Resource: "log", Outcome: Granted}
	if p := mayInspect(by); p != nil {
		return nil, t.Deny(ctx, by, e, p)
	}
	if limit < 1 || limit > maxCheckpoints {
		return nil, t.Deny(ctx, by, e, problem.New(problem.Invalid, "invalid-limit", "Ask for 1 to %d checkpoints.", maxCheckpoints))
	}
	list, err := t.listCheckpoints(ctx, below, limit)
	if err != nil {
		e.Outcome, e.Reason = classify(err)
	}
	if failed := t.alone(ctx, by, e); failed != nil {
		return nil, unrecorded(failed, err)
	}
	return list, err
}

func (t *Trail) listCheckpoints(ctx context.Context, below int64, limit int) (list []Checkpoint, err error) {
	if below < 0 {
		below = 1<<63 - 1
	}
	err = t.db.View(ctx, func(tx *db.Tx) error {
		list = nil
		rows, err := tx.Query(ctx, `
			SELECT size, epoch, `+boundedText("root")+`, `+boundedNote("note")+`, made_at
			FROM log_checkpoint WHERE size < $1 ORDER BY size DESC LIMIT $2`, below, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var c Checkpoint
			var at int64
			if err := rows.Scan(&c.Size, &c.Number, &c.Root, &c.Checkpoint, &at); err != nil {
				return err
			}
			c.Root, c.Time = shown(c.Root), clock.FromMicros(min(max(0, at), maxTime))
			if _, hash, err := signerOf(c.Checkpoint, t.keys.CheckpointVerifiers()); err == nil {
				c.Key = hexHash(hash)
			}
			list = append(list, c)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
		for i := range list {
			c := &list[i]
			if c.Checkpoint, err = withCosignatures(ctx, tx, c.Size, c.Checkpoint); err != nil {
				return err
			}
			if c.Witnesses, err = selectCosigners(ctx, tx, c.Size); err != nil {
				return err
			}
		}
		return nil
	})
	return list, err
}

// checkpoints answers with the history: an array of at most 1000 of those below ?below=SIZE.
func (s *tileServer) checkpoints(w http.ResponseWriter, r *http.Request) {
	if !s.may(w, r) {
		return
	}
	below, limit := int64(-1), 100
	for name, set := range map[string]func(int64) bool{
		"below": func(v int64) bool { below = v; return v >= 0 },
		"limit": func(v int64) bool { limit = int(min(v, maxCheckpoints+1)); return v >= 1 && v <= maxCheckpoints },
	} {
		text := r.URL.Query().Get(name)
		if text == "" {
			continue
		}
		v, err := strconv.ParseInt(text, 10, 64)
		if err != nil || !set(v) {
			s.report(w, r, problem.New(problem.Invalid, "invalid-"+name, "Give below a size of the log, and limit a number from 1 to %d.", maxCheckpoints))
			return
		}
	}
	list, err := s.trail.listCheckpoints(r.Context(), below, limit)
	if err == nil && list == nil {
		list = []Checkpoint{}
	}
	var body []byte
	if err == nil {
		body, err = json.Marshal(list)
	}
	if err != nil {
		s.report(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", cacheBriefly)
	_, _ = w.Write(body)
}
