package app

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"strongroom/internal/keyring"
)

// KeyOperator is what the command line may ask about the life of keys.
type KeyOperator interface {
	// Rotate begins a rotation of a key: "kek", a service key, or all "customers".
	Rotate(ctx context.Context, key string) (keyring.Rotation, error)
	// CompromiseKEK marks a version as known to somebody else, and begins what follows from it.
	CompromiseKEK(ctx context.Context, version uint32) (keyring.Rotation, error)
	// DestroyKEK destroys a version that nothing needs.
	DestroyKEK(ctx context.Context, version uint32) error
	// CompromiseService and DestroyService are the same for a version of a service key.
	CompromiseService(ctx context.Context, name string, version uint32) error
	DestroyService(ctx context.Context, name string, version uint32) error
	// Rotation returns the rotation that goes on, or the latest.
	Rotation(ctx context.Context) (keyring.Rotation, error)
	// PauseRotation pauses or resumes it.
	PauseRotation(ctx context.Context, paused bool) (keyring.Rotation, error)
	// AwaitRotation follows the rotation until it ends or is paused. A running server does the work;
	// without one it is done here, and when watch is false AwaitRotation has nothing to do but that.
	AwaitRotation(ctx context.Context, watch bool, progress func(keyring.Rotation)) (keyring.Rotation, error)
}

func (o operator) Rotate(ctx context.Context, key string) (keyring.Rotation, error) {
	if key == keyring.AllCustomers {
		r, err := o.house.Ring.RotateCustomers(ctx, o.by)
		o.house.Jobs.Wake(keyring.JobReseal)
		return r, err
	}
	r, err := o.house.Ring.Rotate(ctx, o.by, key)
	o.house.Jobs.Wake(keyring.JobRotation)
	return r, err
}

func (o operator) CompromiseKEK(ctx context.Context, version uint32) (keyring.Rotation, error) {
	r, err := o.house.Ring.CompromiseKEK(ctx, o.by, version)
	o.house.Jobs.Wake(keyring.JobRotation)
	return r, err
}

func (o operator) DestroyKEK(ctx context.Context, version uint32) error {
	return o.house.Ring.DestroyKEK(ctx, o.by, version)
}

func (o operator) Rotation(ctx context.Context) (keyring.Rotation, error) {
	return o.house.Ring.Rotation(ctx)
}

func (o operator) PauseRotation(ctx context.Context, paused bool) (keyring.Rotation, error) {
	if paused {
		return o.house.Ring.PauseRotation(ctx, o.by)
	}
	r, err := o.house.Ring.ResumeRotation(ctx, o.by)
	o.house.Jobs.Wake(keyring.JobRotation)
	o.house.Jobs.Wake(keyring.JobReseal)
	return r, err
}

// AwaitRotation is for a house without a server: nobody else runs its jobs.
func (o operator) AwaitRotation(ctx context.Context, _ bool, progress func(keyring.Rotation)) (keyring.Rotation, error) {
	for _, job := range o.house.Ring.Jobs() {
		o.house.Jobs.Add(job)
	}
	o.house.Jobs.Add(o.house.Trail.Job()) // the old signing key signs for the new one
	o.house.Jobs.Start(ctx)
	o.house.Jobs.Wake(keyring.JobRotation)
	o.house.Jobs.Wake(keyring.JobReseal)
	r, err := await(ctx, o, progress)
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if stopped := o.house.Jobs.Stop(ending); err == nil {
		err = stopped
	}
	return r, err
}

// watchEvery is how often a command looks at a rotation.
const watchEvery = 200 * time.Millisecond

func await(ctx context.Context, o KeyOperator, progress func(keyring.Rotation)) (keyring.Rotation, error) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		r, err := o.Rotation(ctx)
		if err != nil {
			return r, err
		}
		progress(r)
		if !r.Ended.IsZero() || r.Paused && r.Phase != keyring.PhasePublished {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return r, nil // stopped by hand; the rotation goes on, or will when the server starts
		case <-tick.C:
		}
	}
}

// What a command may ask of the rotation.
const (
	doStatus     = "status"
	doRotate     = "rotate"
	doPause      = "pause"
	doResume     = "resume"
	doCompromise = "compromise"
	doDestroy    = "destroy"
)

type rotationRequest struct {
	Do      string `json:"do"`
	Key     string `json:"key,omitempty"`
	Version uint32 `json:"version,omitempty"`
}

func (c *control) rotation(w http.ResponseWriter, r *http.Request) {
	var ask rotationRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 4096)).Decode(&ask); err != nil {
		c.answer(w, r, nil, err)
		return
	}
	ctx, o := r.Context(), c.by(r)
	var rotation keyring.Rotation
	var err error
	service := ask.Key != ""
	switch ask.Do {
	case doStatus:
		rotation, err = o.Rotation(ctx)
	case doRotate:
		rotation, err = o.Rotate(ctx, ask.Key)
	case doPause, doResume:
		rotation, err = o.PauseRotation(ctx, ask.Do == doPause)
	case doCompromise:
		if service {
			err = o.CompromiseService(ctx, ask.Key, ask.Version)
			break
		}
		rotation, err = o.CompromiseKEK(ctx, ask.Version)
	case doDestroy:
		if service {
			err = o.DestroyService(ctx, ask.Key, ask.Version)
			break
		}
		err = o.DestroyKEK(ctx, ask.Version)
	default:
		err = fmt.Errorf("this server does not know how to %q a key: it is of another version than the command", ask.Do)
	}
	c.answer(w, r, rotation, err)
}

func (d *dialled) ask(ctx context.Context, do, key string, version uint32) (r keyring.Rotation, err error) {
	err = d.call(ctx, "/rotation", rotationRequest{do, key, version}, &r, nil)
	return r, err
}

func (d *dialled) Rotate(ctx context.Context, key string) (keyring.Rotation, error) {
	return d.ask(ctx, doRotate, key, 0)
}

func (d *dialled) CompromiseKEK(ctx context.Context, version uint32) (keyring.Rotation, error) {
	return d.ask(ctx, doCompromise, "", version)
}

func (d *dialled) DestroyKEK(ctx context.Context, version uint32) error {
	_, err := d.ask(ctx, doDestroy, "", version)
	return err
}

func (d *dialled) Rotation(ctx context.Context) (keyring.Rotation, error) {
	return d.ask(ctx, doStatus, "", 0)
}

func (d *dialled) PauseRotation(ctx context.Context, paused bool) (keyring.Rotation, error) {
	if paused {
		return d.ask(ctx, doPause, "", 0)
	}
	return d.ask(ctx, doResume, "", 0)
}

func (d *dialled) AwaitRotation(ctx context.Context, watch bool, progress func(keyring.Rotation)) (keyring.Rotation, error) {
	if !watch {
		return d.Rotation(ctx)
	}
	return await(ctx, d, progress)
}
