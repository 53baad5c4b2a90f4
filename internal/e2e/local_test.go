package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"context"

	"strongroom/client"
	"strongroom/client/local"
)

// handset is an app on a device that keeps what it must in a local store.
type handset struct {
	*client.Client
	dir     string
	store   *local.Store
	queue   *local.Queue
	offline atomic.Bool
	gone    atomic.Bool
}

var errOffline = errors.New("there is no network")

// openHandset opens the app of a folder, as after a restart of the telephone.
func openHandset(t *testing.T, s *server, dir string) *handset {
	t.Helper()
	h := &handset{dir: dir}
	keys, err := local.OpenKeyFile(local.KeyFileOptions{Path: filepath.Join(dir, "device.key"), Passphrase: []byte("ada's passphrase")})
	if err != nil {
		t.Fatal(err)
	}
	if h.store, err = local.Open(dir, keys); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.store.Close() })
	var pins struct {
		Pins []string `json:"pins"`
		Keys []string `json:"pin_keys"`
	}
	if err := json.Unmarshal([]byte(must(t, "pins", "--data", s.data).stdout), &pins); err != nil {
		t.Fatal(err)
	}
	h.Client, err = h.store.Client(client.Options{
		BaseURL: s.urls.App, Pins: pins.Pins, PinKeys: pins.Keys, RootCAs: s.authority(), Retries: -1,
		Revoked: func() { h.gone.Store(true) },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if h.offline.Load() {
				return nil, errOffline
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.queue = h.store.Queue(h.Client)
	return h
}

// cut takes the handset off the network.
func (h *handset) cut() {
	h.offline.Store(true)
	h.Close()
}

// codeAfter returns the code in the next message to the number, and when it was sent.
func codeAfter(t *testing.T, s *server, number, after string) (code, at string) {
	t.Helper()
	eventually(t, "a text message", func() error {
		res, err := s.client().Post(s.urls.App+"/dev/inbox/search", "application/json", strings.NewReader(fmt.Sprintf(`{"to":%q}`, number)))
		if err != nil {
			return err
		}
		defer res.Body.Close()
		var box struct {
			Messages []struct {
				Text   string `json:"text"`
				SentAt string `json:"sent_at"`
			} `json:"messages"`
		}
		if err := json.NewDecoder(res.Body).Decode(&box); err != nil || res.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d: %v", res.StatusCode, err)
		}
		for _, m := range box.Messages { // customers are told of more than codes
			if code, at = sixDigits.FindString(m.Text), m.SentAt; code != "" && at > after {
				return nil
			}
		}
		return errors.New("nothing yet")
	})
	return code, at
}

// TestLocalStore: an app works offline, comes back, meets a conflict, gets new pins, and is wiped when
// another device shuts it out.
func TestLocalStore(t *testing.T) {
	s := start(t, "dev", filepath.Join(t.TempDir(), "d"))
	ctx := t.Context()
	const number, private = "+447700900555", "lighthouse harbour 41"
	try := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	dir := filepath.Join(t.TempDir(), "phone")
	phone := openHandset(t, s, dir)
	registration, err := phone.Register(ctx, number)
	try("register", err)
	code, at := codeAfter(t, s, number, "")
	registered, err := registration.Complete(ctx, code, private, "phone")
	try("complete the registration", err)
	login, err := phone.Login(ctx, number, private)
	try("login", err)
	code, at = codeAfter(t, s, number, at)
	_, err = login.Complete(ctx, code, "phone")
	try("complete the login", err)

	set, err := phone.UpdatePins(ctx)
	try("update the pins", err)
	if len(set.Pins) != 2 || set.Pins[0] != s.urls.Pins[0] || !set.ExpiresAt.After(time.Now().Add(24*time.Hour)) {
		t.Errorf("pin set %+v", set)
	}

	// Offline: three changes of one record, and one of another that somebody else will have made by then.
	fields := func(family string) map[string]any { return map[string]any{"given_name": "Ada", "family_name": family} }
	other, err := phone.Collection("profile").Put(ctx, "shared", fields("Shared"))
	try("put", err)
	phone.cut()
	once := local.NewKey()
	try("queue", phone.queue.Put(once, "profile", "main", fields("Byron"), local.New()))
	try("queue the same again", phone.queue.Put(once, "profile", "main", fields("Byron"), local.New()))
	try("queue", phone.queue.Put(local.NewKey(), "profile", "shared", fields("Mine"), local.Version(other.ETag)))
	try("queue", phone.queue.Put(local.NewKey(), "profile", "main", fields("King"), local.New()))
	try("queue", phone.queue.Put(local.NewKey(), "profile", "main", fields("Lovelace-Plaintext"), local.New()))
	if n, err := phone.queue.Flush(ctx); n != 0 || !errors.Is(err, errOffline) {
		t.Fatalf("offline: %d done, %v", n, err)
	}
	for name, b := range files(t, dir) {
		for _, secret := range []string{"Lovelace-Plaintext", "family_name", number, "srt_", "sat_"} {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("%s holds %q in the clear", name, secret)
			}
		}
	}

	// The telephone restarts, and the network is back; meanwhile the shared record was changed elsewhere.
	try("close", phone.store.Close())
	phone = openHandset(t, s, dir)
	_, err = phone.Collection("profile").Put(ctx, "shared", fields("Theirs"), client.IfMatch(other.ETag))
	try("the other change", err)
	n, err := phone.queue.Flush(ctx)
	try("flush", err)
	left, err := phone.queue.List()
	try("list", err)
	if n != 3 || len(left) != 1 || left[0].Problem != client.ErrVersionMismatch || left[0].Key != "shared" {
		t.Fatalf("%d done, left %+v", n, left)
	}
	main, err := phone.Collection("profile").Reveal(ctx, "main", "show-to-customer")
	if err != nil || main.Version != 3 || main.Fields["family_name"] != "Lovelace-Plaintext" {
		t.Fatalf("%v %v", main, err)
	}
	seen, err := phone.Collection("profile").Get(ctx, "shared")
	try("get", err)
	try("resolve", phone.queue.Resolve(left[0].ID, local.Version(seen.ETag)))
	if n, err := phone.queue.Flush(ctx); n != 1 || err != nil {
		t.Fatalf("resolved: %d done, %v", n, err)
	}

	// An answer that was lost: the operation was done, and is not taken for a conflict.
	now, err := phone.Collection("profile").Get(ctx, "main")
	try("get", err)
	try("queue", phone.queue.Put(local.NewKey(), "profile", "main", fields("Once"), local.Version(now.ETag)))
	phone.cut()
	if _, err := phone.queue.Flush(ctx); !errors.Is(err, errOffline) {
		t.Fatal(err)
	}
	phone.offline.Store(false)
	_, err = phone.Collection("profile").Put(ctx, "main", fields("Once"), client.IfMatch(now.ETag)) // what the lost request did
	try("put", err)
	if n, err := phone.queue.Flush(ctx); n != 1 || err != nil {
		t.Fatalf("lost answer: %d done, %v", n, err)
	}

	// A second device shuts the first one out.
	tablet := openHandset(t, s, filepath.Join(t.TempDir(), "tablet"))
	enter := func() error {
		login, err := tablet.Login(ctx, number, private)
		try("login", err)
		code, at = codeAfter(t, s, number, at)
		_, err = login.Complete(ctx, code, "tablet")
		return err
	}
	var pending *client.Problem
	if err := enter(); !errors.As(err, &pending) || pending.Slug != client.ErrDevicePending {
		t.Fatal(err)
	}
	try("approve", phone.ApproveDevice(ctx, pending.Text("device"), pending.Text("number")))
	try("login", enter())
	try("queue", phone.queue.Put(local.NewKey(), "profile", "main", fields("Too late"), local.New()))
	try("revoke", tablet.RevokeDevice(ctx, registered.Device))
	if _, err := phone.queue.Flush(ctx); !errors.Is(err, client.ErrThisDeviceRevoked) {
		t.Fatalf("a device that was shut out: %v", err)
	}
	if !phone.gone.Load() {
		t.Error("the app was not told")
	}
	if _, err := phone.store.Get("x", "y"); !errors.Is(err, local.ErrWiped) {
		t.Errorf("the store of a device that was shut out: %v", err)
	}
	for name, b := range files(t, dir) {
		if len(b) > 0 {
			t.Errorf("%s is left with %d bytes", name, len(b))
		}
	}
}

// files returns the bytes of all files in a folder.
func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		t.Fatal("no files: ", err)
	}
	all := map[string][]byte{}
	for _, e := range entries {
		if all[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return all
}
