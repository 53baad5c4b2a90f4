package app

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"

	"strongroom/internal/assurance/report"
	"strongroom/internal/audit"
	"strongroom/internal/backup"
	"strongroom/internal/config"
	"strongroom/internal/db"
	"strongroom/internal/identity"
	"strongroom/internal/keyring"
	"strongroom/internal/once"
	"strongroom/internal/vault"
)

// What a command may ask of the move of the root key.
const (
	MoveStatus  = "status"
	MoveBegin   = "begin"
	MoveConfirm = "confirm"
	MoveAbort   = "abort"
)

// RootOperator is what the command line may ask about the root key.
type RootOperator interface {
	// MoveRoot does one step of the move of the root key, MoveStatus and so on, and says how far it is.
	// To begin, second says where the new root key is; what is secret in it is a reference.
	MoveRoot(ctx context.Context, do string, second config.RootKey) (keyring.RootMove, error)
}

// MakeSecondRoot makes the local root key or age identity that second_root_key names, with its
// passphrase, unless it is there or at a key-management service.
func MakeSecondRoot(c config.Config) error { return makeRoot("second_root_key", c.SecondRootKey) }

func (o operator) MoveRoot(ctx context.Context, do string, second config.RootKey) (keyring.RootMove, error) {
	ring := o.house.Ring
	switch do {
	case MoveStatus:
		return ring.RootMove(ctx)
	case MoveConfirm:
		return ring.ConfirmRootMove(ctx, o.by)
	case MoveAbort:
		return ring.AbortRootMove(ctx, o.by)
	case MoveBegin:
		if second.IsZero() {
			return ring.BeginRootMove(ctx, o.by, nil)
		}
		root, err := openRoot(ctx, "second_root_key", second)
		if err != nil {
			return keyring.RootMove{}, err
		}
		return ring.BeginRootMove(ctx, o.by, root)
	}
	return keyring.RootMove{}, fmt.Errorf("this server does not know how to %q a move: it is of another version than the command", do)
}

type moveRequest struct {
	Do     string         `json:"do"`
	Second config.RootKey `json:"second"`
}

func (c *control) rootMove(w http.ResponseWriter, r *http.Request) {
	var ask moveRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 16<<10)).Decode(&ask); err != nil {
		c.answer(w, r, nil, err)
		return
	}
	move, err := c.by(r).MoveRoot(r.Context(), ask.Do, ask.Second)
	c.answer(w, r, move, err)
}

func (d *dialled) MoveRoot(ctx context.Context, do string, second config.RootKey) (m keyring.RootMove, err error) {
	err = d.call(ctx, "/root-move", moveRequest{do, second}, &m, nil)
	return m, err
}

// AcceptStates opens an installation without a server, taking the states of its keys as they are.
func AcceptStates(ctx context.Context, c config.Config, log *slog.Logger) error {
	if remote, err := dial(ctx, c.Data); err == nil {
		_ = remote.Close()
		return fmt.Errorf("a server runs on %s: stop it first, or look at its log: it refuses states that changed under it", c.Data)
	}
	by := commandActor(os.Getuid())
	h, err := openHouseWith(ctx, c, by, log, func(h *House) { h.accept = true })
	if err != nil {
		return err
	}
	return operator{h, by, true}.Close()
}

// keyNeeded asks every room that keeps what a service key made.
func keyNeeded(ctx context.Context, tx *db.Tx, name string, version uint32) (string, error) {
	for _, ask := range []func(context.Context, *db.Tx, string, uint32) (string, error){
		backup.Needed, audit.KeyNeeded, identity.KeyNeeded, once.KeyNeeded, report.KeyNeeded, vault.KeyNeeded,
	} {
		if by, err := ask(ctx, tx, name, version); err != nil || by != "" {
			return by, err
		}
	}
	return "", nil
}

func (o operator) CompromiseService(ctx context.Context, name string, version uint32) error {
	defer o.house.Jobs.Wake(keyring.JobRotation)
	return o.house.Ring.CompromiseService(ctx, o.by, name, version)
}

func (o operator) DestroyService(ctx context.Context, name string, version uint32) error {
	return o.house.Ring.DestroyService(ctx, o.by, name, version)
}

func (d *dialled) CompromiseService(ctx context.Context, name string, version uint32) error {
	_, err := d.ask(ctx, doCompromise, name, version)
	return err
}

func (d *dialled) DestroyService(ctx context.Context, name string, version uint32) error {
	_, err := d.ask(ctx, doDestroy, name, version)
	return err
}
