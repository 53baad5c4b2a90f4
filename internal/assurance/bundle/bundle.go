// Package bundle is the archive that an auditor gets of an installation: what was promised, what the checks
// saw, when each claim changed its state, and the proof that all of it is in the audit log.
//
// The promise: whoever has the archive and the public key of the installation's evidence needs nothing else.
// Verify reads it offline and in bounded memory, and names the first thing that does not fit: a byte that was
// changed, a member that is gone, evidence that is another's, a run that the log does not have, a claim that
// the evidence does not bear. Everything in it has a standard form (ZIP, in-toto statements in DSSE envelopes,
// C2SP tlog-proof and tlog-checkpoint, OSCAL), so that it can be checked without Strongroom too; the README in
// the archive says how. Nothing in it is personal.
package bundle

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"strongroom/internal/check"
	"strongroom/internal/clock"
)

// format is the version of the archive that is written and read.
const format = 1

// The members, in the order in which they stand in the archive; the manifest is the last.
const (
	readmeName      = "README.txt"
	keyName         = "evidence-key.pem"              // SubjectPublicKeyInfo (RFC 8410)
	claimsName      = "claims.json"                   // a Catalogue
	historyName     = "history.jsonl"                 // a Change in each line
	runsName        = "evidence.intoto.jsonl.gz"      // an envelope in each line: an in-toto attestation bundle
	eventsName      = "events.jsonl.gz"               // a citedEvent in each line
	checkpointsName = "checkpoints.jsonl"             // an audit.Link in each line
	oscalName       = "oscal-assessment-results.json" // OSCAL 1.1.3
	manifestName    = "manifest.json"                 // an envelope: an in-toto statement whose subjects are the other members
)

var members = []string{readmeName, keyName, claimsName, historyName, runsName, eventsName, checkpointsName, oscalName}

//go:embed README.txt
var readme []byte

// ErrBundle means that a bundle does not hold; the message names the first thing that does not fit.
var ErrBundle = errors.New("the bundle does not hold")

// wrong returns ErrBundle with the place and the reason.
func wrong(where, why string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", ErrBundle, where, fmt.Sprintf(why, args...))
}

// Info says what a bundle is of; it is signed with the manifest.
type Info struct {
	Format       int       `json:"format"`
	Installation string    `json:"installation"`
	Environment  string    `json:"environment"`
	Program      string    `json:"program"`
	From         time.Time `json:"from,omitzero"` // zero: from the beginning
	To           time.Time `json:"to"`            // the first moment that is left out
	EvidenceKey  string    `json:"evidence_key"`  // the verifier key (C2SP signed-note) that everything here is signed with
	LogKeys      []string  `json:"log_keys"`      // those of the log
}

// Catalogue is what was promised, and how it stood at the end of the period.
type Catalogue struct {
	Claims []Claim `json:"claims"`
	Checks []Check `json:"checks"`
}

// Claim is a sentence for the public and what makes it true.
type Claim struct {
	ID       string    `json:"id"`
	Sentence string    `json:"sentence"`
	Owner    string    `json:"owner"`
	Controls []Control `json:"controls,omitempty"`
	State    string    `json:"state"` // green, amber, red or grey
	Why      string    `json:"why"`
}

// Control is one way in which a claim is made true.
type Control struct {
	Text       string   `json:"text"`
	References []string `json:"references"`
	Checks     []string `json:"checks"`
}

// Check is what is done to find out.
type Check struct {
	ID      string `json:"id"`
	Version int    `json:"version"`
	Says    string `json:"says"`
}

// Change is one change of a claim's state.
type Change struct {
	Claim string    `json:"claim"`
	State string    `json:"state"`
	Since time.Time `json:"since"`
	Why   string    `json:"why"`
	Event string    `json:"event,omitempty"` // of the trail; empty for changes that are older than this link
}

// Run is what one run of a check saw.
type Run struct {
	ID    string        // of the evidence
	Event string        // of the trail, which has the SHA-256 of Text
	Took  time.Duration // in whole microseconds
	Text  string        // see Text
}

// Seen is what the text of a run says.
type Seen struct {
	Check      string
	Version    int
	ObservedAt time.Time
	ValidUntil time.Time
	check.Observation
}

// Text returns what the event of a run has the SHA-256 of: five lines, the last without an end, with the check,
// its version, when it was seen and until when it counts in microseconds of Unix time, and the observation as JSON.
func Text(s Seen) (string, error) {
	body, err := json.Marshal(s.Observation)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s\n%d\n%d\n%d\n%s", s.Check, s.Version, clock.Micros(s.ObservedAt), clock.Micros(s.ValidUntil), body), nil
}

// Digest returns what the trail says of a text.
func Digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Resource returns what the event of the run is about, in the words of the trail.
func Resource(s Seen, text string) string {
	return fmt.Sprintf("check %s v%d %s", s.Check, s.Version, Digest(text))
}

var errText = errors.New("the text of the evidence has an unknown form")

// seen reads the text of a run.
func (r Run) seen() (s Seen, err error) {
	lines := strings.SplitN(r.Text, "\n", 5)
	if len(lines) != 5 {
		return s, errText
	}
	var observed, until int64
	s.Check = lines[0]
	for i, to := range []*int64{&observed, &until} {
		if *to, err = strconv.ParseInt(lines[2+i], 10, 64); err != nil || *to < 0 || *to > maxTime {
			return s, errText
		}
	}
	s.ObservedAt, s.ValidUntil = clock.FromMicros(observed), clock.FromMicros(until)
	if s.Version, err = strconv.Atoi(lines[1]); err != nil {
		return s, errText
	}
	if err := json.Unmarshal([]byte(lines[4]), &s.Observation); err != nil {
		return s, errText
	}
	switch s.Outcome {
	case check.Holds, check.Fails, check.Unknown:
		return s, nil
	}
	return s, errText
}

// maxTime is the last microsecond of the year 9999.
const maxTime = 253402300799999999

// citedEvent is an event with its proof (C2SP tlog-proof, the leaf as extra data).
type citedEvent struct {
	Event string `json:"event"`
	Proof string `json:"proof"`
}

// keyBytes returns the Ed25519 public key of a verifier key.
func keyBytes(verifierKey string) (ed25519.PublicKey, error) {
	at := strings.LastIndex(verifierKey, "+")
	if parts := strings.SplitN(verifierKey, "+", 3); len(parts) == 3 {
		at = len(parts[0]) + 1 + len(parts[1])
	}
	if at < 0 {
		return nil, errors.New("not a verifier key (name+hash+base64)")
	}
	b, err := base64.StdEncoding.DecodeString(verifierKey[at+1:])
	if err != nil || len(b) != 1+ed25519.PublicKeySize || b[0] != 1 {
		return nil, errors.New("not the verifier key of an Ed25519 signer")
	}
	return b[1:], nil
}

// Fingerprint returns the SHA-256 of the public key in a verifier key as other programs compute it, over its
// SubjectPublicKeyInfo (`openssl pkey -pubin -outform DER | sha256sum`).
func Fingerprint(verifierKey string) (string, error) {
	der, err := subjectKey(verifierKey)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return "SHA256:" + hex.EncodeToString(sum[:]), nil
}

func subjectKey(verifierKey string) ([]byte, error) {
	key, err := keyBytes(verifierKey)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(key)
}

// keyPEM returns the public key as openssl reads it.
func keyPEM(verifierKey string) ([]byte, error) {
	der, err := subjectKey(verifierKey)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}
