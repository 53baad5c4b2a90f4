// Package mobile is the SDK for apps in Kotlin and Swift: `gomobile bind -target=android strongroom/client/mobile`
// makes a library of it, and so does -target=ios. It is client and client/local together, in types that
// gomobile takes; a test sees to that. JSON stands for what has no such type.
//
// Every call blocks until it is done: make them off the main thread. Errors carry the server's problem in their
// message; Slug reads its name.
package mobile

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"errors"
	"path/filepath"
	"regexp"
	"strings"

	"strongroom/client"
	"strongroom/client/local"
)

// Settings say which server, and where on the device. NewSettings makes them.
type Settings struct {
	BaseURL     string // https://host[:port]
	Pins        string // one a line, as `strongroom pins` prints them
	PinKeys     string // one a line
	Authorities string // PEM; "" means the system's
	Folder      string // of the app's own, not backed up
}

// NewSettings returns empty settings.
func NewSettings() *Settings { return &Settings{} }

// KeyStore is the platform's keystore, implemented in Kotlin or Swift. Its contract is that of local.KeyStore.
type KeyStore interface {
	// PublicKey returns the P-256 key that signs as an uncompressed point of 65 bytes (SEC 1 section 2.3.3).
	PublicKey() ([]byte, error)
	// SignES256 signs the SHA-256 of the message, and returns the 64 bytes R and S.
	SignES256(message []byte) ([]byte, error)
	Seal(secret []byte) ([]byte, error)
	Open(sealed []byte) ([]byte, error)
	Destroy() error
}

// Listener hears what the app must act on.
type Listener interface {
	// Wiped is called when the server has shut this device out, and what it kept is gone.
	Wiped()
}

// App is the customer's app on this device.
type App struct {
	client *client.Client
	store  *local.Store
	queue  *local.Queue
}

// Open opens the app with the platform's keystore. The listener may be nil.
func Open(s *Settings, keys KeyStore, listener Listener) (*App, error) {
	if s == nil || keys == nil {
		return nil, errors.New("strongroom: settings and a keystore are needed")
	}
	point, err := keys.PublicKey()
	if err != nil {
		return nil, err
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, errors.New("strongroom: the keystore's key is no P-256 key")
	}
	return open(s, platform{keys, public}, listener)
}

// OpenWithPassphrase opens the app with keys in a file that the passphrase seals. Ten wrong passphrases in a
// row wipe it.
func OpenWithPassphrase(s *Settings, passphrase []byte, listener Listener) (*App, error) {
	if s == nil || s.Folder == "" {
		return nil, errors.New("strongroom: settings with a folder are needed")
	}
	keys, err := local.OpenKeyFile(local.KeyFileOptions{
		Path: filepath.Join(s.Folder, "device.key"), Passphrase: passphrase, Wiped: func() error { return local.Remove(s.Folder) },
	})
	if err != nil {
		return nil, err
	}
	return open(s, keys, listener)
}

func open(s *Settings, keys local.KeyStore, listener Listener) (*App, error) {
	o := client.Options{BaseURL: s.BaseURL, Pins: strings.Fields(s.Pins), PinKeys: strings.Fields(s.PinKeys), UserAgent: "strongroom-mobile"}
	if s.Authorities != "" {
		o.RootCAs = x509.NewCertPool()
		if !o.RootCAs.AppendCertsFromPEM([]byte(s.Authorities)) {
			return nil, errors.New("strongroom: Authorities holds no certificate")
		}
	}
	if listener != nil {
		o.Revoked = listener.Wiped
	}
	store, err := local.Open(s.Folder, keys)
	if err != nil {
		return nil, err
	}
	c, err := store.Client(o)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return &App{c, store, store.Queue(c)}, nil
}

// platform is a KeyStore of the platform's as package local takes it.
type platform struct {
	KeyStore
	public *ecdsa.PublicKey
}

func (p platform) Device() client.DeviceKey { return signer(p) }

type signer platform

func (s signer) Public() *ecdsa.PublicKey                 { return s.public }
func (s signer) SignES256(message []byte) ([]byte, error) { return s.KeyStore.SignES256(message) }

// Close closes the app; session and data stay.
func (a *App) Close() error {
	a.client.Close()
	return a.store.Close()
}

// Wipe forgets everything on this device.
func (a *App) Wipe() error { return a.store.Wipe() }

// UpdatePins fetches the server's newest pins; call it when the app starts.
func (a *App) UpdatePins() error {
	_, err := a.client.UpdatePins(context.Background())
	return err
}

// Registration awaits the code sent by SMS.
type Registration struct{ of *client.Registration }

// Register starts the registration of a mobile number.
func (a *App) Register(phone string) (*Registration, error) {
	r, err := a.client.Register(context.Background(), phone)
	if err != nil {
		return nil, err
	}
	return &Registration{r}, nil
}

// Complete makes the account.
func (r *Registration) Complete(code, privateCode, deviceName string) error {
	_, err := r.of.Complete(context.Background(), code, privateCode, deviceName)
	return err
}

// Login awaits the code sent by SMS.
type Login struct {
	of     *client.Login
	number string // of this device, which waits for approval
}

// Login starts a login.
func (a *App) Login(phone, privateCode string) (*Login, error) {
	l, err := a.client.Login(context.Background(), phone, privateCode)
	if err != nil {
		return nil, err
	}
	return &Login{of: l}, nil
}

// Complete ends the login. The slug "device-pending" means that another device must approve this one, which
// shows Number.
func (l *Login) Complete(code, deviceName string) error {
	_, err := l.of.Complete(context.Background(), code, deviceName)
	return l.pending(err)
}

// LoggedIn reports whether there is a session, without asking the server.
func (a *App) LoggedIn() (bool, error) {
	t, err := a.client.Tokens(context.Background())
	return !t.IsZero(), err
}

// Logout ends the session.
func (a *App) Logout() error { return a.client.Logout(context.Background()) }

// Devices returns the customer's devices as JSON: [{"device","name","status","added_at","last_seen_at","current"}].
func (a *App) Devices() (string, error) { return text(a.client.Devices(context.Background())) }

// ApproveDevice lets a pending device in. Number is what the customer reads on that device and types here.
func (a *App) ApproveDevice(device, number string) error {
	return a.client.ApproveDevice(context.Background(), device, number)
}

// RevokeDevice shuts a device out.
func (a *App) RevokeDevice(device string) error {
	return a.client.RevokeDevice(context.Background(), device)
}

// Record is a document of the customer.
type Record struct {
	Version int64
	ETag    string
	Fields  string // a JSON object
}

func record(r client.Record, err error) (*Record, error) {
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(r.Fields)
	return &Record{r.Version, r.ETag, string(text)}, err
}

// Get returns a record, masked.
func (a *App) Get(collection, key string) (*Record, error) {
	return record(a.client.Collection(collection).Get(context.Background(), key))
}

// Reveal returns a record whole, for a purpose.
func (a *App) Reveal(collection, key, purpose string) (*Record, error) {
	return record(a.client.Collection(collection).Reveal(context.Background(), key, purpose))
}

// NewKey returns an idempotency key, for Put and Delete.
func NewKey() string { return local.NewKey() }

// Put queues the writing of a record and keeps it until Flush has brought it to the server. Fields is a JSON
// object; etag is that of the record that the customer changed, or "" when there was none.
func (a *App) Put(once, collection, key, fields, etag string) error {
	if !json.Valid([]byte(fields)) {
		return errors.New("strongroom: the fields are no JSON")
	}
	return a.queue.Put(once, collection, key, json.RawMessage(fields), base(etag))
}

// Delete queues the deletion of the record with this ETag.
func (a *App) Delete(once, collection, key, etag string) error {
	return a.queue.Delete(once, collection, key, base(etag))
}

func base(etag string) local.Base {
	if etag == "" {
		return local.New()
	}
	return local.Version(etag)
}

// Flush sends what is queued and returns how many operations are done.
func (a *App) Flush() (int, error) { return a.queue.Flush(context.Background()) }

// Queued returns what is queued, as JSON: [{"id","once","delete","collection","key","fields","problem"}]. One
// with a problem waits for Resolve or Drop.
func (a *App) Queued() (string, error) {
	all, err := a.queue.List()
	if err != nil {
		return "", err
	}
	type view struct {
		ID         int64           `json:"id"`
		Once       string          `json:"once"`
		Delete     bool            `json:"delete"`
		Collection string          `json:"collection"`
		Key        string          `json:"key"`
		Fields     json.RawMessage `json:"fields,omitempty"`
		Problem    string          `json:"problem,omitempty"`
	}
	list := []view{}
	for _, o := range all {
		list = append(list, view{o.ID, o.Once, o.Delete, o.Collection, o.Key, o.Fields, string(o.Problem)})
	}
	text, err := json.Marshal(list)
	return string(text), err
}

// Resolve lets a refused operation wait again, on the record with this ETag.
func (a *App) Resolve(id int64, etag string) error { return a.queue.Resolve(id, base(etag)) }

// Drop forgets an operation, and those that follow it on the same record.
func (a *App) Drop(id int64) error { return a.queue.Drop(id) }

// Keep keeps data of the app's, encrypted.
func (a *App) Keep(bucket, key string, value []byte) error { return a.store.Put(bucket, key, value) }

// Kept returns what Keep kept.
func (a *App) Kept(bucket, key string) ([]byte, error) { return a.store.Get(bucket, key) }

// Forget forgets what Keep kept.
func (a *App) Forget(bucket, key string) error { return a.store.Delete(bucket, key) }

var slugForm = regexp.MustCompile(`strongroom: ([a-z0-9-]+) \([0-9]{3}\)`)

// Slug returns the name of the problem in an error's message, such as "login-failed", or "".
func Slug(message string) string {
	if m := slugForm.FindStringSubmatch(message); m != nil {
		return m[1]
	}
	return ""
}
