// Package policy decides what services may do, by Cedar policies in files.
//
// The promise: what no policy permits is refused, and one forbid outweighs any permit. Every policy
// is checked against a schema when it is loaded, so that a misspelt action or attribute stops the
// start instead of never matching. A forbid that cannot be evaluated refuses. A Set never changes, and
// its hash, which the trail records at every start, says exactly which policies held.
//
// A policy speaks of a principal (Service), an action, a resource (Collection, TokenKind, Key or
// Environment) and a context: the purpose, the customer, and the fields that are shown whole or
// looked up by. schema.cedarschema has all of them.
package policy

import (
	"crypto/sha256"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"

	"strongroom/internal/actor"
	"strongroom/internal/customer"
	"strongroom/internal/problem"
)

// ActionLoad is the event of a start: its resource says how many policies hold, and their hash.
const ActionLoad = "policy.set.load"

// The actions that a policy can permit.
const (
	CustomerCreate = "customer.create"
	CustomerErase  = "customer.erase"
	CustomerProof  = "customer.receipt" // of an erasure
	AuditStream    = "audit.stream"     // as it grows, without personal parts
	RecordCreate   = "record.create"
	RecordRead     = "record.read" // masked
	RecordReveal   = "record.reveal"
	RecordUpdate   = "record.update"
	RecordDelete   = "record.delete"
	RecordList     = "record.list"
	RecordHistory  = "record.history"
	RecordLookup   = "record.lookup"
	BlobCreate     = "blob.create"
	BlobRead       = "blob.read"
	BlobUpdate     = "blob.update"
	BlobDelete     = "blob.delete"
	TokenCreate    = "token.create"
	TokenReveal    = "token.reveal"
	TokenDelete    = "token.delete"
	KeyCreate      = "key.create"
	KeyRead        = "key.read"
	KeyRotate      = "key.rotate"
	KeyDestroy     = "key.destroy"
	KeyCompromise  = "key.compromise"
	KeyEncrypt     = "key.encrypt"
	KeyDecrypt     = "key.decrypt"
	KeyRewrap      = "key.rewrap"
	KeyMAC         = "key.mac"
	KeyVerifyMAC   = "key.verify-mac"
	KeySign        = "key.sign"
	KeyVerify      = "key.verify"
	AuditSearch    = "audit.search" // without what is personal
	AuditReveal    = "audit.reveal"
	EventRecord    = "event.record"
	AuditTiles     = "audit.tiles" // the log: checkpoints, tiles and entries

	SessionIntrospect = "session.introspect"
	PaymentAsk        = "payment.ask"
	PaymentRead       = "payment.read"
	PaymentVerify     = "payment.verify"
)

// Suffix is how the names of policy files end; others in the folder are left alone.
const Suffix = ".cedar"

// maxFile is the size in bytes over which a file is surely no policy.
const maxFile = 1 << 20

var (
	//go:embed shipped.cedar
	shipped []byte
	//go:embed schema.cedarschema
	schemaText []byte
)

// Resource is what an action is done to.
type Resource struct{ Type, ID string }

// Collection returns the resource of records of a kind.
func Collection(name string) Resource { return Resource{"Collection", name} }

// TokenKind returns the resource of tokens of a kind.
func TokenKind(name string) Resource { return Resource{"TokenKind", name} }

// Key returns the resource of a named key.
func Key(name string) Resource { return Resource{"Key", name} }

// Source returns the resource of a service's own events.
func Source(name string) Resource { return Resource{"Source", name} }

// Environment returns the resource of what belongs to none of the others.
func Environment(name string) Resource { return Resource{"Environment", name} }

// Question is what a decision is made on.
type Question struct {
	By       actor.Actor
	Action   string
	Resource Resource
	Purpose  string
	Customer customer.ID // empty when it is about none, or more than one
	Fields   []string    // shown whole, or looked up by
}

// Set is the policies of one start. It is safe for concurrent use.
type Set struct {
	policies *cedar.PolicySet
	actions  types.EntityMap // with the groups that they are in
	count    int
	hash     string
}

// Load returns the policies that are shipped and, unless dir is empty, those of the operator: every
// *.cedar file in dir. Its error names the file and what is wrong in it.
func Load(dir string) (*Set, error) {
	s := &Set{policies: cedar.NewPolicySet()}
	var declared schema.Schema
	if err := declared.UnmarshalCedar(schemaText); err != nil {
		return nil, fmt.Errorf("policy: the schema: %w", err)
	}
	resolved, err := declared.Resolve()
	if err != nil {
		return nil, fmt.Errorf("policy: the schema: %w", err)
	}
	s.actions = make(types.EntityMap, len(resolved.Actions))
	for uid, action := range resolved.Actions {
		s.actions[uid] = action.Entity
	}
	checker := validate.New(resolved, validate.WithStrict())
	sum := sha256.New()
	add := func(name string, text []byte) error {
		list, err := cedar.NewPolicyListFromBytes(name, text)
		if err != nil {
			return fmt.Errorf("policies: %s: %w", name, err)
		}
		for i, p := range list {
			id := fmt.Sprintf("%s#%d", name, i+1)
			if err := checker.Policy(id, (*ast.Policy)(p.AST())); err != nil {
				return fmt.Errorf("policies: %s line %d: %w", name, p.Position().Line, err)
			}
			s.policies.Add(cedar.PolicyID(id), p)
			s.count++
		}
		for _, part := range [][]byte{[]byte(name), text} {
			_ = binary.Write(sum, binary.BigEndian, uint64(len(part))) // a hash never fails
			sum.Write(part)
		}
		return nil
	}
	if err := add("(schema)", nil); err != nil {
		return nil, err
	}
	sum.Write(schemaText)
	if err := add("(shipped)", shipped); err != nil {
		return nil, err
	}
	if dir != "" {
		entries, err := os.ReadDir(dir) // sorted by name
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("policies: the folder %s does not exist; make it, or leave the setting empty", dir)
		}
		if err != nil {
			return nil, fmt.Errorf("policies: %w", err)
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), Suffix) || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			text, err := read(filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, fmt.Errorf("policies: %w", err)
			}
			if err := add(e.Name(), text); err != nil {
				return nil, err
			}
		}
	}
	s.hash = hex.EncodeToString(sum.Sum(nil))
	return s, nil
}

func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("%s may be written by others than its owner (mode %04o); run: chmod go-w %s", path, info.Mode().Perm(), path)
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", path, maxFile)
	}
	return os.ReadFile(path)
}

// Resource describes the set in an event: how many policies it has, and their hash.
func (s *Set) Resource() string { return fmt.Sprintf("%d policies sha256:%s", s.count, s.hash) }

// Count returns how many policies there are, those that are shipped included.
func (s *Set) Count() int { return s.count }

// Hash returns the SHA-256, in hexadecimal, of the schema and of all policy files with their names.
func (s *Set) Hash() string { return s.hash }

// slug is how a purpose looks, because it stands in events and is never personal: a-z and 0-9, with single
// hyphens between.
func slug(text string) bool {
	for i := range len(text) {
		switch c := text[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case c == '-' && i > 0 && i < len(text)-1 && text[i-1] != '-':
		default:
			return false
		}
	}
	return text != ""
}

const maxPurpose = 64

// Purpose checks the form of a purpose.
func Purpose(text string) *problem.Problem {
	switch {
	case text == "":
		return problem.New(problem.Unprocessable, "purpose-required", "Say in the header Strongroom-Purpose why this is done.")
	case len(text) > maxPurpose || !slug(text):
		return problem.New(problem.Unprocessable, "invalid-purpose", "A purpose is at most %d of a-z, 0-9 and single hyphens.", maxPurpose)
	}
	return nil
}

// Decide returns nil when the policies permit what q asks, else the problem to refuse with. It does
// not say which policy decided: that is the operator's to know.
func (s *Set) Decide(q Question) *problem.Problem {
	refused := problem.New(problem.Forbidden, "not-permitted", "No policy lets this service do that for this purpose.")
	if q.By.Kind != actor.Service || q.By.ID == "" {
		return refused
	}
	if p := Purpose(q.Purpose); p != nil {
		return p
	}
	fields := make([]types.Value, len(q.Fields))
	for i, f := range q.Fields {
		fields[i] = types.String(f)
	}
	context := types.RecordMap{"purpose": types.String(q.Purpose), "fields": types.NewSet(fields...)}
	if q.Customer != "" {
		context["customer"] = types.NewEntityUID("Customer", types.String(q.Customer))
	}
	decision, diagnostic := cedar.Authorize(s.policies, s.actions, cedar.Request{
		Principal: types.NewEntityUID("Service", types.String(q.By.ID)),
		Action:    types.NewEntityUID("Action", types.String(q.Action)),
		Resource:  types.NewEntityUID(types.EntityType(q.Resource.Type), types.String(q.Resource.ID)),
		Context:   types.NewRecord(context),
	})
	// Cedar passes over a policy that fails. That is right for a permit, and not for a forbid.
	for _, e := range diagnostic.Errors {
		if p := s.policies.Get(e.PolicyID); p == nil || p.Effect() == cedar.Forbid {
			return refused.Because(fmt.Errorf("policy %s: %s", e.PolicyID, e.Message))
		}
	}
	if decision != cedar.Allow {
		return refused
	}
	return nil
}
