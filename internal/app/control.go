package app

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/finding"
	"strongroom/internal/keyring"
)

// Operator is what the command line may ask of an installation. House answers when no server runs;
// a running server answers over its control socket, because two processes never write one embedded
// database. Either way the deed is in the trail under the name of whoever ran the command.
type Operator interface {
	// Verify recomputes the whole trail; see audit.Trail.Verify. progress may be nil.
	Verify(ctx context.Context, progress func(done, total int64)) (audit.Report, error)
	// Tail returns the newest events after the one named, oldest first.
	Tail(ctx context.Context, after string, limit int) ([]audit.Entry, error)
	// Keys lists every key version.
	Keys(ctx context.Context) ([]keyring.Info, error)
	// Findings lists what is wrong; with all, also what was.
	Findings(ctx context.Context, all bool) ([]finding.Finding, error)
	VaultOperator
	KeyOperator
	CustomerKeyOperator
	TrailOperator
	SearchOperator
	LogOperator
	RootOperator
	PinOperator
	BackupOperator
	LoginOperator
	ReportOperator
	// Close lets go of the installation.
	Close() error
}

// socketName is the control socket in the data folder, mode 0600.
const socketName = "control.sock"

// control serves the command line of this host. The kernel vouches for the caller (SO_PEERCRED):
// only the user that the server runs as, and root, are let in, whatever the file's mode became.
type control struct {
	house  *House
	log    *slog.Logger
	server *http.Server
	path   string
}

type peerKey struct{}

func serveControl(house *House, data string, log *slog.Logger) (*control, error) {
	path := filepath.Join(data, socketName)
	if err := house.lockFolder(); err != nil {
		return nil, err
	}
	// No other server runs on the folder, so a socket that is there is left from a crash.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	listener, err := listenUnix(path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	c := &control{house: house, log: log, path: path}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /verify", c.verify)
	mux.HandleFunc("POST /tail", c.tail)
	mux.HandleFunc("POST /audit/export", sendPieces(c, func(ctx context.Context, o operator, q audit.ExportQuery, send func([]audit.Entry) error) error {
		return o.ExportTrail(ctx, q, send)
	}))
	mux.HandleFunc("POST /keys", c.keys)
	mux.HandleFunc("POST /findings", c.findings)
	c.vaultRoutes(mux)
	c.searchRoutes(mux)
	c.logRoutes(mux)
	c.assuranceRoutes(mux)
	c.backupRoutes(mux)
	mux.HandleFunc("POST /rotation", c.rotation)
	c.customerKeyRoutes(mux)
	mux.HandleFunc("POST /root-move", c.rootMove)
	mux.HandleFunc("POST /pins", c.pins)
	c.loginRoutes(mux)
	c.reportRoutes(mux)
	c.server = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			uid, err := peerUID(conn)
			if err != nil || (uid != os.Getuid() && uid != 0) {
				log.WarnContext(ctx, "control socket: caller refused", "uid", uid, "error", err)
				conn.Close()
				return ctx
			}
			return context.WithValue(ctx, peerKey{}, commandActor(uid))
		},
	}
	go func() {
		if err := c.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("control socket closed", "error", err)
		}
	}()
	return c, nil
}

func (c *control) close(ctx context.Context) {
	if err := c.server.Shutdown(ctx); err != nil {
		c.server.Close()
	}
	_ = os.Remove(c.path) // the listener may have removed it already
}

// commandActor names whoever runs a command on this host.
func commandActor(uid int) actor.Actor {
	name := strconv.Itoa(uid)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	return actor.OfSystem("cli:" + name)
}

// by returns the caller, whom ConnContext has let in.
func (c *control) by(r *http.Request) operator {
	by, ok := r.Context().Value(peerKey{}).(actor.Actor)
	if !ok {
		by = actor.Actor{Kind: actor.Anonymous} // the rooms refuse it
	}
	return operator{c.house, by, false}
}

// line is one line of an answer: progress, the result, or why there is none.
type line struct {
	Done   int64           `json:"done,omitempty"`
	Total  int64           `json:"total,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
}

func (c *control) verify(w http.ResponseWriter, r *http.Request) { c.verifying(w, r, c.by(r).Verify) }

// verifying answers with the progress of a verification, and in the end with its report.
func (c *control) verifying(w http.ResponseWriter, r *http.Request, verify func(context.Context, func(done, total int64)) (audit.Report, error)) {
	out := json.NewEncoder(w)
	var last time.Time
	report, err := verify(r.Context(), func(done, total int64) {
		if now := time.Now(); now.Sub(last) > 100*time.Millisecond {
			last = now
			_ = out.Encode(line{Done: done, Total: total}) // a caller that has gone is noticed through the context
			_ = http.NewResponseController(w).Flush()
		}
	})
	c.answer(w, r, report, err)
}

func (c *control) tail(w http.ResponseWriter, r *http.Request) {
	var ask tailRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 4096)).Decode(&ask); err != nil {
		c.answer(w, r, nil, err)
		return
	}
	entries, err := c.by(r).Tail(r.Context(), ask.After, ask.Limit)
	c.answer(w, r, entries, err)
}

type tailRequest struct {
	After string `json:"after"`
	Limit int    `json:"limit"`
}

func (c *control) keys(w http.ResponseWriter, r *http.Request) {
	infos, err := c.by(r).Keys(r.Context())
	c.answer(w, r, infos, err)
}

func (c *control) findings(w http.ResponseWriter, r *http.Request) {
	var ask findingsRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 4096)).Decode(&ask); err != nil {
		c.answer(w, r, nil, err)
		return
	}
	list, err := c.by(r).Findings(r.Context(), ask.All)
	c.answer(w, r, list, err)
}

type findingsRequest struct {
	All bool `json:"all"`
}

func (c *control) answer(w http.ResponseWriter, r *http.Request, result any, err error) {
	var l line
	if err == nil {
		l.Result, err = json.Marshal(result)
	}
	if err != nil {
		l = line{Error: err.Error()}
		c.log.ErrorContext(r.Context(), "control command failed", "path", r.URL.Path, "error", err)
	}
	_ = json.NewEncoder(w).Encode(l) // the command has gone; there is nobody to tell
}

// dialled is a running server's Operator.
type dialled struct {
	client *http.Client
}

// errNoServer says that no server runs on the data folder.
var errNoServer = errors.New("no server runs here")

// dial reaches the server that runs on the data folder, or returns errNoServer.
func dial(ctx context.Context, data string) (*dialled, error) {
	path := filepath.Join(data, socketName)
	conn, err := dialUnix(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoServer, err)
	}
	conn.Close()
	return &dialled{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, path) },
	}}}, nil
}

func (d *dialled) Close() error {
	d.client.CloseIdleConnections()
	return nil
}

func (d *dialled) Verify(ctx context.Context, progress func(done, total int64)) (report audit.Report, err error) {
	err = d.call(ctx, "/verify", nil, &report, progress)
	return report, err
}

func (d *dialled) Tail(ctx context.Context, after string, limit int) (entries []audit.Entry, err error) {
	err = d.call(ctx, "/tail", tailRequest{after, limit}, &entries, nil)
	return entries, err
}

func (d *dialled) Keys(ctx context.Context) (infos []keyring.Info, err error) {
	err = d.call(ctx, "/keys", nil, &infos, nil)
	return infos, err
}

func (d *dialled) Findings(ctx context.Context, all bool) (list []finding.Finding, err error) {
	err = d.call(ctx, "/findings", findingsRequest{all}, &list, nil)
	return list, err
}

func (d *dialled) call(ctx context.Context, path string, ask, result any, progress func(done, total int64)) error {
	body, write := io.Pipe()
	go func() { write.CloseWithError(json.NewEncoder(write).Encode(ask)) }()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://strongroom"+path, body)
	if err != nil {
		return err
	}
	answer, err := d.client.Do(r)
	if err != nil {
		return fmt.Errorf("the running server did not answer: %w", err)
	}
	defer answer.Body.Close()
	lines := json.NewDecoder(bufio.NewReader(answer.Body))
	for {
		var l line
		if err := lines.Decode(&l); err != nil {
			return fmt.Errorf("the running server stopped in the middle of its answer; ask again: %w", err)
		}
		switch {
		case l.Error != "":
			return errors.New(l.Error)
		case l.Result != nil:
			return json.Unmarshal(l.Result, result)
		case progress != nil:
			progress(l.Done, l.Total)
		}
	}
}
