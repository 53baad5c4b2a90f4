package app

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus/collectors"

	"strongroom/examples/pocket"
	"strongroom/internal/actor"
	"strongroom/internal/api"
	"strongroom/internal/assurance"
	"strongroom/internal/audit"
	"strongroom/internal/backup"
	"strongroom/internal/clock"
	"strongroom/internal/config"
	"strongroom/internal/edge"
	"strongroom/internal/identity"
	"strongroom/internal/identity/phone"
	"strongroom/internal/identity/sms"
	"strongroom/internal/vault"
)

// ReadyFile is the name of the file in the data folder that says where a running server listens.
const ReadyFile = "ready.json"

// URLs say where a server listens, and how to trust it.
type URLs struct {
	App     string   `json:"app"`
	Service string   `json:"service"`
	Admin   string   `json:"admin"`
	Ops     string   `json:"ops"`
	CA      string   `json:"ca"`   // PEM file of the authority that signed the app listener's certificate; empty outside dev
	Pins    []string `json:"pins"` // public-key pins of the app listener, the one in use first
	Data    string   `json:"data"` // data folder, in which the control socket is
}

// Options are what the command line adds to the settings.
type Options struct {
	Log     *slog.Logger
	Version string
}

// Server is a house with its doors open.
type Server struct {
	house    *House
	edge     *edge.Server
	control  *control
	records  *vault.Vault
	feed     *audit.Feed
	page     *assurance.Page
	public   *http.ServeMux // what the app listener serves
	stop     context.CancelFunc
	urls     URLs
	identity *identity.Identity
}

// Serve opens the installation in c.Data and its doors. It returns once every listener serves.
func Serve(ctx context.Context, c config.Config, o Options) (_ *Server, err error) {
	house, err := openHouse(ctx, c, actor.OfSystem("server"), o.Log)
	if err != nil {
		return nil, err
	}
	house.backups.program = o.Version
	// Jobs and requests end when Close says so, not when the caller's context does: what has begun
	// is finished first.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Server{house: house, stop: stop}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(running))
		}
	}()
	if err := house.Metrics.Register(collectors.NewGoCollector()); err != nil {
		return nil, err
	}
	if err := house.Metrics.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})); err != nil {
		return nil, err
	}
	appHandler, err := s.rooms(o)
	if err != nil {
		return nil, err
	}
	serviceHandler, err := s.services(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := house.openSinks(ctx, actor.OfSystem("server"), o.Version, s.house.Findings); err != nil {
		return nil, err
	}
	if err := house.startArchive(ctx, actor.OfSystem("server")); err != nil {
		return nil, err
	}
	if err := s.doors(c, o, appHandler, serviceHandler); err != nil {
		return nil, err
	}
	if s.control, err = serveControl(house, c.Data, o.Log); err != nil {
		return nil, err
	}
	if err := house.sweepScratch(); err != nil {
		return nil, err
	}
	if err := s.edge.Listen(ctx); err != nil {
		return nil, err
	}
	house.backups.since = clock.System.Now()
	house.Jobs.Start(running)
	house.Jobs.Wake(backup.JobSnapshot) // a fresh server's first snapshot does not wait for the job's pace
	if err := s.edge.Start(running); err != nil {
		return nil, err
	}
	s.urls.App, s.urls.Service = s.edge.URL("app"), s.edge.URL("service")
	s.urls.Admin, s.urls.Ops, s.urls.Data = s.edge.URL("admin"), s.edge.URL("ops"), c.Data
	return s, nil
}

// rooms makes the rooms that customers come to, and returns what the app listener serves.
func (s *Server) rooms(o Options) (http.Handler, error) {
	h, c := s.house, s.house.Config
	mux := http.NewServeMux()
	s.public = mux

	var sender sms.Sender
	if c.SMS.Sender == "inbox" {
		inbox := sms.NewInbox(clock.System)
		mux.Handle("/dev/inbox", inbox.Handler())
		mux.Handle("/dev/inbox/", inbox.Handler())
		mux.Handle("/pocket/", pocket.Handler())
		sender = inbox
	} else {
		route, err := gateways(context.Background(), c)
		if err != nil {
			return nil, err
		}
		sender = route
	}
	starts := identity.Rate{Limit: c.Login.StartsPerHour, Per: time.Hour}
	options := identity.Options{
		DB: h.DB, Keys: h.Ring, Trail: h.Trail, Sender: sender,
		Clock: clock.System, Log: h.log, Metrics: h.Metrics, Wake: h.Jobs.Wake,
		Phone:           phone.Rules{Region: c.Login.DefaultRegion, AllowTestNumbers: c.Login.AllowTestNumbers},
		Cost:            c.Login.BcryptCost,
		MinCodeLength:   c.Login.PrivateCodeMinLength,
		HashWorkers:     c.Login.HashWorkers,
		AccessLifetime:  c.Login.AccessLifetime,
		IdleLifetime:    c.Login.IdleLifetime,
		SessionLifetime: c.Login.SessionLifetime,
		PaymentIdle:     c.Login.PaymentIdle,
		ReadIdle:        c.Login.ReadIdle,
		ReadLifetime:    c.Login.ReadLifetime,
		StepUpAge:       c.Login.StepUpAge,
		Limits: identity.Limits{
			Registrations: starts, Logins: starts,
			NumberHourly: c.SMS.NumberHourly, NumberDaily: c.SMS.NumberDaily, Daily: c.SMS.DailyCap,
		},
	}
	options.Findings = h.Findings
	loginOptions(&options, c, h.Vault)
	if err := deviceOptions(&options, c); err != nil {
		return nil, err
	}
	if err := oracles(&options, c); err != nil {
		return nil, err
	}
	if c.Login.Origin != "" {
		options.Origins = []string{c.Login.Origin}
	}
	id, err := identity.New(options)
	if err != nil {
		return nil, err
	}
	surface := api.New(mux, id, api.Options{Title: "Strongroom", Version: o.Version, Log: h.log})
	id.Register(surface)
	id.RegisterOAuth(mux)
	s.identity, h.login = id, id
	mux.Handle("POST "+identity.ReceiptPath+"{provider}", id.Receipts())
	h.Vault.Register(surface)
	s.records = h.Vault
	h.Reports.Register(surface)

	h.Jobs.Add(h.Trail.Job())
	if err := h.openWitnesses(); err != nil {
		return nil, err
	}
	for _, job := range h.Ring.Jobs() {
		h.Jobs.Add(job)
	}
	for _, job := range id.Jobs() {
		h.Jobs.Add(job)
	}
	h.Jobs.Add(h.Vault.Job())
	h.Jobs.Add(h.Vault.BlobJob())
	if err := s.openAssurance(mux); err != nil {
		return nil, err
	}
	for _, job := range h.Vault.CollectionJobs() {
		h.Jobs.Add(job)
	}
	if err := h.backupJobs(); err != nil {
		return nil, err
	}
	return mux, nil
}

// doors describes the four listeners.
func (s *Server) doors(c config.Config, o Options, appHandler, serviceHandler http.Handler) error {
	certificates, err := s.certificates(c, &c.Listeners.App, &c.Listeners.Service, &c.Listeners.Admin)
	if err != nil {
		return err
	}
	s.urls.Pins = certificates[0].Pins()
	s.public.Handle("GET "+edge.PinSetPath, edge.NewPinSets(certificates[0].Pins, s.house.Ring.CheckpointSigner, clock.System))
	var listeners []edge.Listener
	for i, door := range []struct {
		name     string
		set      config.Listener
		mode     edge.Mode
		everyone bool
		handler  http.Handler
		bodies   []edge.Body
		types    []string // of bodies; nil is JSON alone
	}{
		{"app", c.Listeners.App, edge.Public, len(c.Listeners.App.Allow) == 0, appHandler, slices.Concat(appBodies, receiptBodies, reportBodies), nil},
		{"service", c.Listeners.Service, edge.Mutual, false, serviceHandler, serviceBodies, []string{"application/json", "application/merge-patch+json"}},
		{"admin", c.Listeners.Admin, edge.Public, false, s.admin(), nil, nil},
	} {
		allow, err := prefixes("listeners."+door.name+".allow", door.set.Allow)
		if err != nil {
			return err
		}
		proxies, err := prefixes("listeners."+door.name+".trusted_proxies", door.set.TrustedProxies)
		if err != nil {
			return err
		}
		listeners = append(listeners, edge.Listener{
			Name: door.name, Address: door.set.Address, Mode: door.mode, Certificates: certificates[i],
			Handler: door.handler, ContentTypes: door.types, Bodies: door.bodies, Everyone: door.everyone, Allow: allow, TrustedProxies: proxies,
			Limits: edge.Limits{
				Connections: door.set.MaxConnections, ConnectionsPerAddress: door.set.MaxConnectionsPerAddress,
				RequestsPerAddress: door.set.MaxRequestsPerAddress,
				RequestsPerSecond:  door.set.RequestsPerSecond, Burst: door.set.Burst, Body: door.set.MaxBody,
			},
		})
	}
	draining := func() bool { return s.edge != nil && !s.edge.Ready() }
	listeners = append(listeners, edge.Listener{
		Name: "ops", Address: c.Listeners.Ops.Address, Mode: edge.Plain, Handler: opsHandler(s.house, draining, o.Log),
		Limits: edge.Limits{Write: 5 * time.Minute}, // a profile takes as long as it was asked for
	})
	s.edge, err = edge.New(edge.Options{Log: o.Log, Metrics: s.house.Metrics, Clock: clock.System, Drain: c.Listeners.Drain}, listeners...)
	return err
}

// certificates loads each listener's files; in dev, those that are not named are the development
// authority's.
func (s *Server) certificates(c config.Config, listeners ...*config.Listener) ([]*edge.Certificates, error) {
	var dev edge.DevFiles
	var all []*edge.Certificates
	for _, l := range listeners {
		files := edge.Files{Certificate: l.Certificate, Key: l.Key, BackupKey: l.BackupKey, ClientCAs: l.ClientCA}
		if l.Certificate == "" {
			if dev.CA == "" {
				var err error
				if dev, err = edge.DevCA(filepath.Join(c.Data, "tls"), clock.System); err != nil {
					return nil, err
				}
				s.urls.CA = dev.CA
			}
			files = dev.Server
			if l.ClientCA != "" {
				files.ClientCAs = l.ClientCA
			}
		}
		loaded, err := edge.LoadCertificates(files, clock.System)
		if err != nil {
			return nil, err
		}
		all = append(all, loaded)
	}
	return all, nil
}

func prefixes(key string, list []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, &config.Error{Key: key, Problem: err.Error()}
		}
		all = append(all, p)
	}
	return all, nil
}

// URLs says where the server listens.
func (s *Server) URLs() URLs { return s.urls }

// Reload reads the certificates again, as happens by itself when their files change.
func (s *Server) Reload() error { return s.edge.Reload() }

// Failed receives the error of a listener that ended by itself.
func (s *Server) Failed() <-chan error { return s.edge.Failed() }

// Close lets the doors finish what has begun until ctx ends, stops the jobs, brings the trail up to
// date, and closes the house.
func (s *Server) Close(ctx context.Context) error {
	var errs []error
	if s.feed != nil {
		s.feed.Close()
	}
	if s.edge != nil {
		errs = append(errs, s.edge.Shutdown(ctx))
	}
	if s.control != nil {
		s.control.close(ctx)
	}
	errs = append(errs, s.house.Jobs.Stop(ctx))
	s.stop()
	errs = append(errs, s.house.settle(ctx))
	return errors.Join(append(errs, s.house.Close())...)
}
