package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"

	"strongroom/internal/actor"
	"strongroom/internal/backup"
	"strongroom/internal/check"
	"strongroom/internal/config"
)

// backupChecks are those of the room that keeps copies.
func (h *House) backupChecks() []check.Check {
	const near, far = "near-data", "far-data" // of a scratch copy
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	remove := func([]byte) []byte { return nil }
	readable := func([]byte) []byte { return bytes.Repeat([]byte("as it was typed "), 1024) }
	return []check.Check{
		h.ofCopies("backup-on-schedule", "The newest snapshot that counts is as young as the schedule asks.", 5*time.Minute, time.Hour,
			(*backup.Backup).CheckSchedule,
			statements(`UPDATE backup_run SET started_at = started_at - 864000000000, ended_at = ended_at - 864000000000`)),
		h.ofCopies(drillCheck, "The newest restore for practice is recent and brought everything back; its certificate is genuine.", 30*time.Minute, 3*time.Hour,
			(*backup.Backup).CheckDrill,
			statements(`UPDATE backup_drill SET certificate = REPLACE(certificate, '"rows":', '"rows":1')`)),
		h.ofCopies("backup-copies-whole", "What was stored in each repository is read back as it was.", time.Hour, 6*time.Hour,
			(*backup.Backup).CheckCopies, stored("objects/*/*", flip, far)),
		h.ofCopies("backup-copies-separate", "The newest snapshot lies on separate media in allowed regions, and is labelled.", 30*time.Minute, 3*time.Hour,
			(*backup.Backup).CheckMedia, stored("manifests/*", remove, far)),
		h.ofCopies("backup-stored-unreadable", "What lies in the repositories is ciphertext.", 6*time.Hour, 24*time.Hour,
			func(b *backup.Backup, ctx context.Context) check.Observation {
				plain, err := h.Vault.Canary(ctx)
				if err != nil {
					return check.Undecided("", "The canary could not be read: %v", err)
				}
				return b.CheckStored(ctx, plain)
			}, stored("objects/*/*", readable, far)),
		h.ofCopies("backup-retention-kept", "Every snapshot that is to be kept is there, and what is to be locked is.", time.Hour, 6*time.Hour,
			(*backup.Backup).CheckRetention, stored("manifests/*", remove, near, far)),
		h.ofCopies("backup-runs-recorded", "Each snapshot is in the history and in the trail, with an estimate of the next.", time.Hour, 3*time.Hour,
			(*backup.Backup).CheckHistory,
			statements(`DELETE FROM backup_run WHERE started_at >= 0`)),
		h.ofCopies("backup-trail-copied", "The trail is in the copies, and still begins as it was copied.", time.Hour, 3*time.Hour,
			(*backup.Backup).CheckTrail,
			// Somebody cuts the end off the trail, and leaves it signed.
			statements(`UPDATE log_head SET (size, root, epoch) = (SELECT size, root, epoch FROM log_checkpoint ORDER BY size LIMIT 1)`,
				`DELETE FROM log_checkpoint WHERE size > (SELECT size FROM log_head)`)),
		h.ofCopies("backup-recoverable", "The guide to recovery is at hand and names every place, and the recovery keys open the copies.", 6*time.Hour, 24*time.Hour,
			func(b *backup.Backup, ctx context.Context) check.Observation {
				facts, err := h.backupFacts(ctx)
				if err != nil {
					return check.Undecided("", "The settings could not be read: %v", err)
				}
				return b.CheckRunbook(ctx, facts)
			}, otherRecipient),
	}
}

// ofCopies makes a check of a house's backups; its scratch copy has a snapshot.
func (h *House) ofCopies(id, says string, every, valid time.Duration, run func(*backup.Backup, context.Context) check.Observation, damage func(context.Context, *House) error) check.Check {
	look := func(ctx context.Context, h *House) check.Observation {
		b, err := h.backup(ctx)
		if err != nil {
			return check.Undecided("", "The backups could not be opened: %v", err)
		}
		return run(b, ctx)
	}
	c := h.of(id, says, every, valid, look, damage)
	c.Sabotage = func(ctx context.Context) check.Observation {
		copied := false
		return inScratch(ctx, damage, func(ctx context.Context, scratch *House) check.Observation {
			if !copied {
				copied = true
				if err := scratch.copyOnce(ctx, id == drillCheck); err != nil {
					return check.Undecided("", "The scratch copy was not copied: %v", err)
				}
			}
			return look(ctx, scratch)
		})
	}
	return c
}

// drillCheck is the check that looks at restores for practice.
const drillCheck = "backup-restores"

// copyOnce takes a first snapshot of a house that was just made, and restores it for practice when it is to.
func (h *House) copyOnce(ctx context.Context, drill bool) error {
	c, err := config.Load(filepath.Join(h.Config.Data, config.FileName), nil)
	if err != nil {
		return err
	}
	h.Config.Backup = c.Backup
	b, err := h.backup(ctx)
	if err != nil {
		return err
	}
	by := actor.OfSystem("sabotage")
	if _, err := b.Take(ctx, by, backup.Taking{Class: backup.ClassDaily}); err != nil || !drill {
		return err
	}
	_, err = h.drill(ctx, by, nil)
	return err
}

// stored damages what lies in repositories of a scratch copy: what change returns is put in a file's place, and
// without anything the file is removed.
func stored(pattern string, change func([]byte) []byte, repositories ...string) func(context.Context, *House) error {
	return func(_ context.Context, h *House) error {
		for _, name := range repositories {
			files, err := filepath.Glob(filepath.Join(h.Config.Data, "backups", name, pattern))
			if err != nil || len(files) == 0 {
				return errors.Join(err, fmt.Errorf("%s has no %s", name, pattern))
			}
			for _, file := range files {
				content, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				if content = change(content); content == nil {
					err = os.Remove(file)
				} else {
					err = os.WriteFile(file, content, 0o600)
				}
				if err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// otherRecipient names another recovery key than the one that the copies are sealed to.
func otherRecipient(_ context.Context, h *House) error {
	other, err := age.GenerateHybridIdentity()
	if err != nil {
		return err
	}
	h.Config.Backup.Recipients = []string{other.Recipient().String()}
	err = h.backups.close()
	h.backups = backups{}
	return err
}
