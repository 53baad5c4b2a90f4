package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/witness"
)

func newWitness() *cobra.Command {
	var key, dir, listen, certificate, certificateKey string
	var logs []string
	cmd := &cobra.Command{
		Use:   "witness --key FILE --log KEY --state DIR",
		Short: "Witness the audit log of somebody else",
		Long: `Cosigns the checkpoints of a log for as long as each continues the one before (C2SP tlog-witness,
tlog-cosignature), and refuses a log that was forked or cut off. It needs no installation. Run it where the
log's operators cannot reach it: it is worth what its independence is worth.

The state is a folder that this witness alone writes. Never put an older copy of it back.`,
		Example: `  strongroom witness key --name witness.example/w1 w1.key
  strongroom witness --key w1.key --log "$(cat log.vkey)" --state w1 --listen 127.0.0.1:8450`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			secret, err := os.ReadFile(key)
			if err != nil {
				return fmt.Errorf("--key: %w", err)
			}
			log := slog.New(slog.NewTextHandler(os.Stderr, nil))
			w, err := witness.Open(dir, string(secret), strings.Fields(strings.Join(logs, " ")), log)
			if err != nil {
				return err
			}
			defer w.Close()
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "witnessing on %s\n", l.Addr())
			return serveWitness(cmd.Context(), l, w, certificate, certificateKey)
		},
	}
	f := cmd.Flags()
	f.StringVar(&key, "key", "", "file of the witness's private key; `strongroom witness key` makes one")
	f.StringArrayVar(&logs, "log", nil, "verifier key of a log to watch; may be repeated, also for a log's next key")
	f.StringVar(&dir, "state", "", "folder for what was cosigned")
	f.StringVar(&listen, "listen", "127.0.0.1:8450", "host:port; the protocol needs no secrecy, but put TLS before any network that is not yours")
	f.StringVar(&certificate, "tls-certificate", "", "PEM file: speak TLS by yourself")
	f.StringVar(&certificateKey, "tls-key", "", "PEM file of the certificate's key")
	for _, name := range []string{"key", "log", "state"} {
		_ = cmd.MarkFlagRequired(name)
	}
	cmd.MarkFlagsRequiredTogether("tls-certificate", "tls-key")
	cmd.AddCommand(newWitnessKey())
	return cmd
}

// serveWitness serves until the context ends, and finishes what it has begun.
func serveWitness(ctx context.Context, l net.Listener, h http.Handler, certificate, key string) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
	}
	done := make(chan error, 1)
	go func() {
		if certificate != "" {
			done <- server.ServeTLS(l, certificate, key)
		} else {
			done <- server.Serve(l)
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	err := server.Shutdown(stop)
	if served := <-done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

func newWitnessKey() *cobra.Command {
	var name, algorithm string
	cmd := &cobra.Command{
		Use:   "key FILE",
		Short: "Make the key of a witness and print its verifier key",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, verifier, err := witness.GenerateKey(name, algorithm)
			if err != nil {
				return err
			}
			file, err := os.OpenFile(args[0], os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			_, err = file.WriteString(key + "\n")
			if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), verifier)
			return err
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "the witness's name, like an address without the scheme: witness.example/w1")
	cmd.Flags().StringVar(&algorithm, "algorithm", "ed25519", "ed25519, which all understand, or ml-dsa-44, which outlasts quantum computers")
	_ = cmd.MarkFlagRequired("name")
	return cmd
}
