package keyring

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// The actions of a root key's move.
const (
	ActionRootMoveBegin   = "keyring.root-move.begin"
	ActionRootMoveOpen    = "keyring.root-move.open"
	ActionRootMoveConfirm = "keyring.root-move.confirm"
	ActionRootMoveAbort   = "keyring.root-move.abort"
	ActionRootMoveEnd     = "keyring.root-move.end"
)

// The phases of a root key's move.
const (
	MoveWrapping   = "wrapping"   // keys get their second wrap
	MoveOpen       = "open"       // either root opens everything
	MoveConfirming = "confirming" // the old root's wraps are dropped
	MoveAborting   = "aborting"   // the new root's wraps are dropped
	MoveConfirmed  = "confirmed"
	MoveAborted    = "aborted"
)

// RootMove is how far the move of the root key is.
type RootMove struct {
	Number   int64  // counts from 1
	From, To string // ids of the root keys
	Phase    string
	KEKs     int    // that there are
	Wrapped  int    // of those, by the new root
	FileKey  string // "" with PostgreSQL, else which roots wrap it: old, new or both
	Started  time.Time
	Ended    time.Time // zero while it goes on
}

func (m RootMove) open() bool { return m.Number != 0 && m.Ended.IsZero() }

// kept and dropped return the root whose wraps stay, and the one whose wraps go, once it is decided.
func (m RootMove) kept() (kept, dropped string) {
	if m.Phase == MoveAborting || m.Phase == MoveAborted {
		return m.From, m.To
	}
	return m.To, m.From
}

var (
	errNoMove    = problem.New(problem.NotFound, "no-root-move", "The root key is not being moved.")
	errMoveOpen  = problem.New(problem.Conflict, "root-move-under-way", "The root key is being moved to another one already: confirm or abort that first.")
	errSameRoot  = problem.New(problem.Conflict, "root-move-same", "Both settings name the same root key: name another one in second_root_key.")
	errNeedsBoth = problem.New(problem.Conflict, "root-move-needs-both",
		"While the root key moves a new key-encryption key is wrapped by both roots, and this server holds one: configure second_root_key, or confirm or abort the move.")
	errRootMoved = problem.New(problem.Conflict, "root-moved",
		"The root key has moved, and this server holds only the old one: configure the new one as root_key.")
)

// otherHolder is the second root, which comes and goes while the process runs.
type otherHolder struct{ Root }

// Second returns the second root key that this process holds, or nil.
func (k *Keyring) Second() Root {
	if h := k.second.Load(); h != nil {
		return h.Root
	}
	return nil
}

// CloseSecond closes the second root key, if there is one.
func (k *Keyring) CloseSecond() error {
	if h := k.second.Swap(nil); h != nil {
		return h.Close()
	}
	return nil
}

// rootNamed returns the root with the id that this process holds, or nil.
func (k *Keyring) rootNamed(name string) Root {
	if k.root.ID() == name {
		return k.root
	}
	if s := k.Second(); s != nil && s.ID() == name {
		return s
	}
	return nil
}

// wrapRoots returns the roots that a new KEK has to be wrapped by, as tx sees it.
func (k *Keyring) wrapRoots(ctx context.Context, tx *db.Tx) ([]Root, error) {
	m, err := selectMove(ctx, tx)
	if err != nil {
		return nil, err
	}
	switch {
	case m.Number == 0:
		return []Root{k.root}, nil
	case m.Phase == MoveWrapping || m.Phase == MoveOpen:
		from, to := k.rootNamed(m.From), k.rootNamed(m.To)
		if from == nil || to == nil {
			return nil, errNeedsBoth
		}
		return []Root{from, to}, nil
	}
	kept, dropped := m.kept()
	if root := k.rootNamed(kept); root != nil {
		return []Root{root}, nil
	}
	if k.root.ID() == dropped {
		return nil, errRootMoved
	}
	return []Root{k.root}, nil // the same key by another name
}

// wrapsSuffice reports whether the row is wrapped by exactly the roots that it has to be.
func (k *Keyring) wrapsSuffice(ctx context.Context, tx *db.Tx, row kekRow) (bool, error) {
	roots, err := k.wrapRoots(ctx, tx)
	if err != nil || len(roots) != len(row.wraps) {
		return false, err
	}
	for i, r := range roots {
		if row.wraps[i].rootID != r.ID() {
			return false, nil
		}
	}
	return true, nil
}

// BeginRootMove has every KEK, and the embedded database's file key, wrapped by the root key to as well.
// From then on either root opens everything, until ConfirmRootMove or AbortRootMove. It goes on with a
// move between the same two that was cut off. The keyring keeps to, and closes it when it does not need
// it; nil means the second root key that this process was opened with.
//
// It fails with the problem "root-move-under-way" when the root moves elsewhere, with "root-move-same"
// when to is the root in use, and with "keys-unavailable" when one of the two does not answer.
func (k *Keyring) BeginRootMove(ctx context.Context, by actor.Actor, to Root) (RootMove, error) {
	switch held := k.Second(); {
	case to == nil && held == nil:
		return RootMove{}, problem.New(problem.Invalid, "root-move-where", "There is no second root key: name it in second_root_key.")
	case to == nil:
		to = held
	case held != nil && held.ID() == to.ID():
		_ = to.Close() // an equal one stays in use
		to = held
	}
	if to.ID() == k.root.ID() {
		return RootMove{}, errSameRoot
	}
	// The new root shows that it works before anything depends on it.
	if err := tryRoot(ctx, to); err != nil {
		return RootMove{}, fmt.Errorf("the second root key: %w", err)
	}
	var m RootMove
	err := k.db.Update(ctx, func(tx *db.Tx) (err error) {
		if m, err = selectMove(ctx, tx); err != nil {
			return err
		}
		if m.open() {
			if !m.between(k.root, to) {
				return errMoveOpen
			}
			if m.Phase != MoveWrapping && m.Phase != MoveOpen {
				return problem.New(problem.Conflict, "root-move-ending", "The move is being ended: run that to its end first (%s).", m.Phase)
			}
			return nil
		}
		m = RootMove{Number: m.Number + 1, From: k.root.ID(), To: to.ID(), Phase: MoveWrapping, Started: k.clock.Now()}
		if err := insertMove(ctx, tx, m); err != nil {
			return err
		}
		return k.event(ctx, tx, by, "", ActionRootMoveBegin, moveResource(m))
	})
	if err != nil {
		return RootMove{}, err
	}
	k.second.Store(&otherHolder{to})
	if m.Phase == MoveOpen {
		return k.RootMove(ctx)
	}
	if err := k.wrapForMove(ctx, m); err != nil {
		return RootMove{}, err
	}
	if err := k.wrapFileKey(ctx, m); err != nil {
		return RootMove{}, err
	}
	err = k.db.Update(ctx, func(tx *db.Tx) error {
		rows, err := selectKEKs(ctx, tx)
		if err != nil {
			return err
		}
		if lacking(rows, m.To) >= 0 {
			return errMoved // a KEK was made between the look and now; begin again finds it
		}
		if err := advanceMove(ctx, tx, m.Number, MoveWrapping, MoveOpen); err != nil {
			return err
		}
		return k.event(ctx, tx, by, "", ActionRootMoveOpen, moveResource(m))
	})
	if err != nil {
		return RootMove{}, moveFailure(err)
	}
	k.log.InfoContext(ctx, "the root key moves: either root opens everything until the move is confirmed", "from", m.From, "to", m.To)
	return k.RootMove(ctx)
}

func moveFailure(err error) error {
	if errors.Is(err, errMoved) {
		return keysUnavailable(fmt.Errorf("the keys changed under the move: run it again: %w", err))
	}
	return err
}

func moveResource(m RootMove) string { return "root key " + m.From + " to " + m.To }

// between reports whether the move is between the two roots, in either direction.
func (m RootMove) between(a, b Root) bool {
	return m.From == a.ID() && m.To == b.ID() || m.From == b.ID() && m.To == a.ID()
}

func tryRoot(ctx context.Context, r Root) error {
	probe, purpose := newMaterial(), contextOf("probe", "", "", 0)
	wrapped, err := r.Wrap(ctx, probe, purpose)
	if err != nil {
		return err
	}
	back, err := r.Unwrap(ctx, wrapped, purpose)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(probe, back) != 1 {
		return ErrUnwrap
	}
	return nil
}

// lacking returns the place of a KEK that the root does not wrap, or -1.
func lacking(rows []kekRow, root string) int {
	return slices.IndexFunc(rows, func(r kekRow) bool { return r.state != destroyed && r.wrapOf(root) == nil })
}

func (r kekRow) wrapOf(root string) []byte {
	for _, w := range r.wraps {
		if w.rootID == root {
			return w.wrapped
		}
	}
	return nil
}

// wrapForMove gives every KEK that has none a wrap by the new root, each in a transaction of its own: a
// crash loses none.
func (k *Keyring) wrapForMove(ctx context.Context, m RootMove) error {
	to := k.rootNamed(m.To)
	for {
		var rows []kekRow
		err := k.db.View(ctx, func(tx *db.Tx) (err error) {
			rows, err = selectKEKs(ctx, tx)
			return err
		})
		if err != nil {
			return err
		}
		i := lacking(rows, m.To)
		if i < 0 {
			return nil
		}
		wrapped, err := k.wrapAgain(ctx, rows[i], to)
		if err != nil {
			return err
		}
		version := rows[i].version
		err = k.db.Update(ctx, func(tx *db.Tx) error {
			now, err := selectMove(ctx, tx)
			if err != nil {
				return err
			}
			if now.Number != m.Number || now.Phase != MoveWrapping {
				return errMoveOpen
			}
			rows, err := selectKEKs(ctx, tx)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(rows, func(r kekRow) bool { return r.version == version && r.state != destroyed }) {
				return nil // destroyed in the meantime
			}
			return insertWrap(ctx, tx, version, kekWrap{m.To, wrapped}, clock.Micros(k.clock.Now()))
		})
		if err != nil {
			return err
		}
	}
}

// wrapAgain has the root wrap a KEK that another one wraps, and open it again to be sure.
func (k *Keyring) wrapAgain(ctx context.Context, row kekRow, to Root) ([]byte, error) {
	material, err := k.unwrapKEK(ctx, row)
	if err != nil {
		return nil, err
	}
	defer clear(material)
	if err := k.sameKEK(row.version, material); err != nil {
		return nil, err
	}
	wrapped, err := to.Wrap(ctx, material, k.kekContext(row.version))
	if err != nil {
		return nil, fmt.Errorf("wrap KEK %d by the second root key: %w", row.version, err)
	}
	return wrapped, k.opensWith(ctx, to, row.version, wrapped)
}

// sameKEK holds material against the KEK that this process works with.
func (k *Keyring) sameKEK(version uint32, material []byte) error {
	got, err := holdKEK(version, material)
	if err != nil {
		return err
	}
	held := k.keys.Load().held[version]
	if held.key == nil {
		return keysUnavailable(fmt.Errorf("KEK %d is not held here yet", version))
	}
	if subtle.ConstantTimeCompare(got.digest, held.digest) != 1 {
		return fmt.Errorf("%w: what the root key opens is not KEK %d: bring the table kek_wrap back from a backup", ErrDamaged, version)
	}
	return nil
}

func (k *Keyring) opensWith(ctx context.Context, root Root, version uint32, wrapped []byte) error {
	material, err := root.Unwrap(ctx, wrapped, k.kekContext(version))
	if err != nil {
		return fmt.Errorf("KEK %d with root key %s: %w", version, root.ID(), err)
	}
	defer clear(material)
	return k.sameKEK(version, material)
}

func (k *Keyring) wrapFileKey(ctx context.Context, m RootMove) error {
	if k.manifest == "" {
		return nil
	}
	return addFileKeyWrap(ctx, k.rootNamed(m.From), k.rootNamed(m.To), k.manifest, k.db.Environment())
}

// ConfirmRootMove drops what the old root key wraps, for good. It fails with the problem
// "root-move-refused" when the new one cannot open every key right now, and with "no-root-move" when no
// move is open. After a crash it goes on where it was.
func (k *Keyring) ConfirmRootMove(ctx context.Context, by actor.Actor) (RootMove, error) {
	return k.endRootMove(ctx, by, MoveConfirming, MoveConfirmed, ActionRootMoveConfirm)
}

// AbortRootMove drops what the new root key wraps. It fails with the problem "root-move-refused" when the
// old one cannot open every key right now, and with "no-root-move" when no move is open.
func (k *Keyring) AbortRootMove(ctx context.Context, by actor.Actor) (RootMove, error) {
	return k.endRootMove(ctx, by, MoveAborting, MoveAborted, ActionRootMoveAbort)
}

func (k *Keyring) endRootMove(ctx context.Context, by actor.Actor, ending, ended, action string) (RootMove, error) {
	if err := k.Reload(ctx); err != nil {
		return RootMove{}, err
	}
	var m RootMove
	var rows []kekRow
	err := k.db.View(ctx, func(tx *db.Tx) (err error) {
		if m, err = selectMove(ctx, tx); err != nil {
			return err
		}
		rows, err = selectKEKs(ctx, tx)
		return err
	})
	switch {
	case err != nil:
		return RootMove{}, err
	case !m.open():
		return RootMove{}, errNoMove
	case m.Phase == ending: // a crash left the manifest and the end
	case m.Phase == MoveOpen, m.Phase == MoveWrapping && ending == MoveAborting:
	case m.Phase == MoveWrapping:
		return RootMove{}, problem.New(problem.Conflict, "root-move-unfinished", "The new root key does not wrap everything yet: run move-root --begin again to go on.")
	default:
		return RootMove{}, problem.New(problem.Conflict, "root-move-ending", "The move is %s already: run that to its end.", m.Phase)
	}
	was := m.Phase
	m.Phase = ending
	keep, dropped := m.kept()
	root, err := k.opensEverything(ctx, keep, rows)
	if err != nil {
		return RootMove{}, err
	}
	if was != ending {
		err := k.db.Update(ctx, func(tx *db.Tx) error {
			now, err := selectKEKs(ctx, tx)
			if err != nil {
				return err
			}
			// Every KEK that there is now was tried.
			if len(now) != len(rows) || lacking(now, keep) >= 0 {
				return errMoved
			}
			if err := advanceMove(ctx, tx, m.Number, was, ending); err != nil {
				return err
			}
			if err := deleteOtherWraps(ctx, tx, keep); err != nil {
				return err
			}
			return k.event(ctx, tx, by, "", action, moveResource(m))
		})
		if err != nil {
			return RootMove{}, moveFailure(err)
		}
	}
	if k.manifest != "" {
		if err := keepFileKeyWrap(ctx, root, k.manifest, k.db.Environment()); err != nil {
			return RootMove{}, err
		}
	}
	err = k.db.Update(ctx, func(tx *db.Tx) error {
		if err := endMove(ctx, tx, m.Number, ending, ended, clock.Micros(k.clock.Now())); err != nil {
			return err
		}
		m.Phase = ended
		return k.event(ctx, tx, by, "", ActionRootMoveEnd, moveResource(m)+", "+ended)
	})
	if err != nil {
		return RootMove{}, moveFailure(err)
	}
	k.log.InfoContext(ctx, "the move of the root key has ended", "outcome", ended, "root", keep, "dropped", dropped)
	return k.RootMove(ctx)
}

// opensEverything has the root open every KEK and the file key, now.
func (k *Keyring) opensEverything(ctx context.Context, name string, rows []kekRow) (Root, error) {
	refused := func(err error) error {
		return problem.New(problem.Conflict, "root-move-refused",
			"The root key %s does not open every key right now, so nothing was dropped: %v.", name, err).Because(err)
	}
	root := k.rootNamed(name)
	if root == nil {
		return nil, refused(errors.New("this server does not hold it; configure it as root_key or second_root_key"))
	}
	for _, row := range rows {
		if row.state == destroyed {
			continue
		}
		wrapped := row.wrapOf(name)
		if wrapped == nil {
			return nil, refused(fmt.Errorf("it does not wrap KEK %d", row.version))
		}
		if err := k.opensWith(ctx, root, row.version, wrapped); err != nil {
			return nil, refused(err)
		}
	}
	if k.manifest != "" {
		key, err := OpenFileKey(ctx, root, k.manifest, k.db.Environment())
		if err != nil {
			return nil, refused(err)
		}
		key.Key.Wipe()
	}
	return root, nil
}

// RootMove returns the move that goes on, or else the latest. It fails with the problem "no-root-move"
// when there was none.
func (k *Keyring) RootMove(ctx context.Context) (m RootMove, err error) {
	err = k.db.View(ctx, func(tx *db.Tx) error {
		if m, err = selectMove(ctx, tx); err != nil {
			return err
		}
		if m.Number == 0 {
			return errNoMove
		}
		rows, err := selectKEKs(ctx, tx)
		for _, r := range rows {
			if r.state == destroyed {
				continue
			}
			m.KEKs++
			if r.wrapOf(m.To) != nil {
				m.Wrapped++
			}
		}
		return err
	})
	if err != nil || k.manifest == "" {
		return m, err
	}
	m.FileKey, err = fileKeyWraps(k.manifest, m.From, m.To)
	return m, err
}
