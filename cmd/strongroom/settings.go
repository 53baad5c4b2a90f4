package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/config"
)

// settings are the flags that say where an installation is and what differs from its file.
type settings struct {
	data, file, database, readyFile string
	app, service, admin, ops        string
}

// defaultData is where `make run` puts its installation.
const defaultData = ".strongroom"

// dataFolder is where an installation is when no flag says so.
func dataFolder() string {
	if data := os.Getenv("STRONGROOM_DATA"); data != "" {
		return data
	}
	return defaultData
}

// place adds the flags that find an installation.
func (s *settings) place(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.data, "data", dataFolder(), "data folder")
	cmd.Flags().StringVar(&s.file, "config", "", "settings file (default DATA/"+config.FileName+")")
	cmd.Flags().StringVar(&s.database, "database", "", "postgres://… instead of the embedded database; no password in it")
	_ = cmd.MarkFlagDirname("data") // only completion depends on it
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
}

// doors adds the flags that say where a server listens.
func (s *settings) doors(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.app, "app-addr", "", "address of the app listener, host:port; port 0 takes a free one")
	f.StringVar(&s.service, "service-addr", "", "address of the service listener")
	f.StringVar(&s.admin, "admin-addr", "", "address of the admin listener")
	f.StringVar(&s.ops, "ops-addr", "", "address of the ops listener, loopback only")
	f.StringVar(&s.readyFile, "ready-file", "", "write the listeners' URLs to this file once they serve")
}

func (s *settings) path() string {
	if s.file != "" {
		return s.file
	}
	return filepath.Join(s.data, config.FileName)
}

// load reads the settings file, the environment and the flags, and refuses what is not sound.
func (s *settings) load() (config.Config, error) {
	c, err := config.Load(s.path(), environ())
	if err != nil {
		return c, err
	}
	s.apply(&c)
	return c, app.Check(c)
}

// apply puts the flags over what the file said.
func (s *settings) apply(c *config.Config) {
	set := func(to *string, flag string) {
		if flag != "" {
			*to = flag
		}
	}
	set(&c.Database.URL, s.database)
	set(&c.Listeners.App.Address, s.app)
	set(&c.Listeners.Service.Address, s.service)
	set(&c.Listeners.Admin.Address, s.admin)
	set(&c.Listeners.Ops.Address, s.ops)
}

// environ is the environment without STRONGROOM_DATA, which the --data flag has read already.
func environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		if len(kv) < 16 || kv[:16] != "STRONGROOM_DATA=" {
			env = append(env, kv)
		}
	}
	return env
}

// logQuietly is for commands that have no settings.
var logQuietly = config.Log{Level: "warn", Format: "text"}

// logger writes to standard error, so that standard output stays a command's own.
func logger(c config.Log) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "text" {
		return slog.New(slog.NewTextHandler(os.Stderr, options)), nil
	}
	return slog.New(slog.NewJSONHandler(os.Stderr, options)), nil
}
