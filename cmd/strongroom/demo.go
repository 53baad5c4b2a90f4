package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"strongroom/internal/app"
	"strongroom/internal/config"
	"strongroom/internal/demo"
)

func newDemo() *cobra.Command {
	var s settings
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Play a customer's whole journey against a running dev server",
		Long: `Plays a customer's journey against a server that "strongroom dev" runs: registration, login with
three factors, records, a second device, a payment, what is lost, forgotten and attacked, and at the end the
audit trail of all that. Every step checks what must work and what must not; the exit code is 0 only when
every check held.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.ReadyFile == "" {
				o.ReadyFile = filepath.Join(s.data, app.ReadyFile)
			}
			o.Out = cmd.OutOrStdout()
			o.VerifyAudit = func(ctx context.Context) (int64, string, error) { return verifyRunning(ctx, o.ReadyFile) }
			return demo.Run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.data, "data", dataFolder(), "data folder of the running server")
	f.StringVar(&o.ReadyFile, "ready-file", "", "file that the server wrote with --ready-file (default DATA/"+app.ReadyFile+")")
	f.BoolVar(&o.JSON, "json", false, "one JSON object a line")
	f.BoolVar(&o.Loop, "loop", false, "play journey after journey and print a summary line now and then")
	f.IntVar(&o.Runs, "runs", 0, "with --loop: how many journeys; 0 means until stopped")
	f.DurationVar(&o.For, "for", 0, "with --loop: for how long; 0 means until stopped")
	f.DurationVar(&o.Every, "every", 10*time.Second, "with --loop: time between summary lines")
	f.IntVar(&o.Parallel, "parallel", 1, "with --loop: journeys at once")
	return cmd
}

// verifyRunning asks the server that wrote the ready file to verify its trail.
func verifyRunning(ctx context.Context, readyFile string) (int64, string, error) {
	b, err := os.ReadFile(readyFile)
	if err != nil {
		return 0, "", err
	}
	var urls app.URLs
	if err := json.Unmarshal(b, &urls); err != nil {
		return 0, "", fmt.Errorf("%s: %w", readyFile, err)
	}
	if urls.Data == "" {
		return 0, "", fmt.Errorf("%s does not name the data folder; use the file that the server wrote", readyFile)
	}
	c, err := config.Load(filepath.Join(urls.Data, config.FileName), environ())
	if err != nil {
		return 0, "", err
	}
	log, err := logger(c.Log)
	if err != nil {
		return 0, "", err
	}
	o, err := app.Operate(ctx, c, log)
	if err != nil {
		return 0, "", err
	}
	defer o.Close()
	report, err := o.Verify(ctx, nil)
	if err == nil && len(report.Findings) > 0 {
		err = errors.New("the trail does not hold; run `strongroom audit verify --data " + urls.Data + "`")
	}
	return report.Events, report.Checkpoint, err
}
