package bundle

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	testresult "github.com/in-toto/attestation/go/predicates/test_result/v0"
	intoto "github.com/in-toto/attestation/go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"strongroom/internal/check"
)

// The types of what is signed.
const (
	payloadType  = "application/vnd.in-toto+json"
	resultType   = "https://in-toto.io/attestation/test-result/v0.1"
	manifestType = "urn:strongroom:evidence-bundle:v1"
)

// envelopeKey signs and verifies DSSE envelopes with a key for signed notes. What DSSE signs begins with "DSSEv1",
// and no note does.
type envelopeKey struct {
	sign   note.Signer
	verify note.Verifier
}

func (k envelopeKey) Sign(_ context.Context, data []byte) ([]byte, error) { return k.sign.Sign(data) }

func (k envelopeKey) Verify(_ context.Context, data, signature []byte) error {
	if !k.verify.Verify(data, signature) {
		return errors.New("the signature does not hold")
	}
	return nil
}

func (k envelopeKey) KeyID() (string, error) { return keyID(k.verify), nil }

func (k envelopeKey) Public() crypto.PublicKey { return nil } // KeyID names it

// keyID names a key as signed notes do.
func keyID(v note.Verifier) string { return fmt.Sprintf("%s+%08x", v.Name(), v.KeyHash()) }

// seal returns the statement in an envelope, one line of JSON without its end.
func seal(ctx context.Context, s *intoto.Statement, key envelopeKey) ([]byte, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	loose, err := protojson.Marshal(s)
	if err != nil {
		return nil, err
	}
	// protojson puts white space where it likes.
	var payload bytes.Buffer
	if err := json.Compact(&payload, loose); err != nil {
		return nil, err
	}
	signer, err := dsse.NewEnvelopeSigner(key)
	if err != nil {
		return nil, err
	}
	envelope, err := signer.SignPayload(ctx, payloadType, payload.Bytes())
	if err != nil {
		return nil, err
	}
	return json.Marshal(envelope)
}

// open returns the statement in an envelope that the key has signed, once, and that is written as seal does.
func open(ctx context.Context, line []byte, key envelopeKey) (*intoto.Statement, error) {
	var envelope dsse.Envelope
	if err := json.Unmarshal(line, &envelope); err != nil {
		return nil, errors.New("it is not a DSSE envelope")
	}
	verifier, err := dsse.NewEnvelopeVerifier(key)
	if err != nil {
		return nil, err
	}
	if _, err := verifier.Verify(ctx, &envelope); err != nil {
		return nil, errors.New("its signature does not hold")
	}
	payload, err := envelope.DecodeB64Payload()
	if err != nil {
		return nil, errors.New("it is not a DSSE envelope")
	}
	// What stands around the payload is not signed: it has to be what it can only be.
	signature, err := base64.StdEncoding.DecodeString(envelope.Signatures[0].Sig)
	if err != nil {
		return nil, errors.New("it is not a DSSE envelope")
	}
	canonical, err := json.Marshal(dsse.Envelope{
		PayloadType: payloadType, Payload: base64.StdEncoding.EncodeToString(payload),
		Signatures: []dsse.Signature{{KeyID: keyID(key.verify), Sig: base64.StdEncoding.EncodeToString(signature)}},
	})
	if err != nil || !bytes.Equal(canonical, line) {
		return nil, errors.New("the envelope says more than what is signed")
	}
	s := new(intoto.Statement)
	if err := protojson.Unmarshal(payload, s); err != nil {
		return nil, errors.New("it is not an in-toto statement")
	}
	if err := s.Validate(); err != nil {
		return nil, errors.New("it is not an in-toto statement")
	}
	return s, nil
}

// structure returns v, which is written as JSON, as a protocol buffer.
func structure(text []byte) (*structpb.Struct, error) {
	s := new(structpb.Struct)
	return s, protojson.Unmarshal(text, s)
}

// statement returns the in-toto statement of a run: the subject is the text of its evidence, and the predicate the
// result of a test whose configuration is the check.
func (r Run) statement() (*intoto.Statement, Seen, error) {
	seen, err := r.seen()
	if err != nil {
		return nil, seen, err
	}
	annotations, err := structpb.NewStruct(map[string]any{
		"evidence": r.Text, "event": r.Event, "took_us": r.Took.Microseconds(),
		"observed_at": seen.ObservedAt.UTC().Format(time.RFC3339Nano), "valid_until": seen.ValidUntil.UTC().Format(time.RFC3339Nano),
		"detail": seen.Detail, "exercised": seen.Exercised,
	})
	if err != nil {
		return nil, seen, err
	}
	result := &testresult.TestResult{Configuration: []*intoto.ResourceDescriptor{{
		Name: seen.Check, Uri: fmt.Sprintf("urn:strongroom:check:%s:v%d", seen.Check, seen.Version), Annotations: annotations,
	}}}
	switch tests := []string{seen.Check}; seen.Outcome {
	case check.Holds:
		result.Result, result.PassedTests = "PASSED", tests
	case check.Fails:
		result.Result, result.FailedTests = "FAILED", tests
	default: // it could not be found out
		result.Result, result.WarnedTests = "WARNED", tests
	}
	text, err := protojson.Marshal(result)
	if err != nil {
		return nil, seen, err
	}
	predicate, err := structure(text)
	return &intoto.Statement{
		Type:          intoto.StatementTypeUri,
		Subject:       []*intoto.ResourceDescriptor{{Name: r.ID, Digest: map[string]string{"sha256": strings.TrimPrefix(Digest(r.Text), "sha256:")}}},
		PredicateType: resultType, Predicate: predicate,
	}, seen, err
}

// runOf reads the statement of a run. It fails unless the statement is the one that Run.statement makes of it.
func runOf(s *intoto.Statement) (Run, Seen, error) {
	var r Run
	unknown := errors.New("it is not the statement of a check's run")
	result := new(testresult.TestResult)
	text, err := protojson.Marshal(s.Predicate)
	if err == nil {
		err = protojson.Unmarshal(text, result)
	}
	if err != nil || s.PredicateType != resultType || len(s.Subject) != 1 || len(result.Configuration) != 1 {
		return r, Seen{}, unknown
	}
	said := result.Configuration[0].GetAnnotations().GetFields()
	us := said["took_us"].GetNumberValue()
	if us < 0 || us > float64(24*time.Hour.Microseconds()) {
		return r, Seen{}, unknown
	}
	r = Run{ID: s.Subject[0].Name, Event: said["event"].GetStringValue(), Text: said["evidence"].GetStringValue(), Took: time.Duration(us) * time.Microsecond}
	whole, seen, err := r.statement()
	if err != nil {
		return r, seen, err
	}
	if !proto.Equal(s, whole) {
		return r, seen, errors.New("its parts do not say the same")
	}
	return r, seen, nil
}

// manifest returns the statement about all members, whose hashes are given in their order.
func (i Info) manifest(hashes [][]byte) (*intoto.Statement, error) {
	text, err := json.Marshal(i)
	if err != nil {
		return nil, err
	}
	predicate, err := structure(text)
	if err != nil {
		return nil, err
	}
	s := &intoto.Statement{Type: intoto.StatementTypeUri, PredicateType: manifestType, Predicate: predicate}
	for n, name := range members {
		s.Subject = append(s.Subject, &intoto.ResourceDescriptor{Name: name, Digest: map[string]string{"sha256": hex.EncodeToString(hashes[n])}})
	}
	return s, nil
}

// infoOf reads a manifest. It returns the hashes of the members in their order.
func infoOf(s *intoto.Statement) (i Info, hashes []string, err error) {
	unknown := errors.New("it is not the manifest of a bundle that this version reads")
	if s.PredicateType != manifestType || len(s.Subject) != len(members) {
		return i, nil, unknown
	}
	for n, name := range members {
		if s.Subject[n].Name != name || len(s.Subject[n].Digest) != 1 || s.Subject[n].Digest["sha256"] == "" {
			return i, nil, unknown
		}
		hashes = append(hashes, s.Subject[n].Digest["sha256"])
	}
	text, err := protojson.Marshal(s.Predicate)
	if err == nil {
		err = json.Unmarshal(text, &i)
	}
	if err != nil || i.Format != format {
		return i, nil, unknown
	}
	return i, hashes, nil
}
