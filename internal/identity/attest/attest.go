// Package attest checks what makers of telephones say about a key: Android Key Attestation and Apple's App
// Attest. It promises that a key which passes was made by the secure hardware of a telephone, for one of
// the operator's own apps, in answer to one challenge. It knows no database and no network.
package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// The roots as their owners publish them; a test holds their fingerprints.
var (
	//go:embed google.pem
	googlePEM []byte // https://developer.android.com/privacy-and-security/security-key-attestation
	//go:embed apple.pem
	applePEM []byte // https://www.apple.com/certificateauthority/Apple_App_Attestation_Root_CA.pem
)

// Level says what vouched for a key.
type Level string

// The levels.
const (
	AndroidTEE       Level = "android-tee"       // a trusted execution environment
	AndroidStrongBox Level = "android-strongbox" // a security chip
	AppleApp         Level = "apple"             // the Secure Enclave, for a genuine copy of the app
)

// Options say whose keys pass. An app that is not named does not.
type Options struct {
	AndroidPackages  []string // for example com.example.app
	AndroidSigners   [][]byte // SHA-256 of the certificates that the app is signed with
	AppleApps        []string // team and bundle, for example 0123456789.com.example.app
	AppleDevelopment bool     // copies that were not published pass as well
	// GoogleRoots and AppleRoots are what chains end in; nil means those that are shipped.
	GoogleRoots, AppleRoots *x509.CertPool
}

// Verifier checks attestations. It is safe for concurrent use.
type Verifier struct{ Options }

// New returns a Verifier.
func New(o Options) (*Verifier, error) {
	for _, r := range []struct {
		pool **x509.CertPool
		pem  []byte
	}{{&o.GoogleRoots, googlePEM}, {&o.AppleRoots, applePEM}} {
		if *r.pool != nil {
			continue
		}
		*r.pool = x509.NewCertPool()
		if !(*r.pool).AppendCertsFromPEM(r.pem) {
			return nil, errors.New("attest: the shipped roots cannot be read")
		}
	}
	return &Verifier{o}, nil
}

// chainOf reads and verifies a chain, leaf first.
func chainOf(ders [][]byte, roots *x509.CertPool, now time.Time) (chain []*x509.Certificate, err error) {
	if len(ders) < 2 || len(ders) > 8 {
		return nil, fmt.Errorf("attest: a chain of %d certificates", len(ders))
	}
	inner := x509.NewCertPool()
	for n, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("attest: certificate %d: %w", n, err)
		}
		if n > 0 {
			inner.AddCert(c)
		}
		chain = append(chain, c)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: inner, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return chain, err
}

func extension(c *x509.Certificate, oid asn1.ObjectIdentifier) []byte {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return e.Value
		}
	}
	return nil
}

func keyOf(c *x509.Certificate) (*ecdsa.PublicKey, error) {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("attest: the key is not on the curve P-256")
	}
	return key, nil
}

var oidAndroid = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 1, 17}

// keyDescription is the extension of Android's attestations; the lists are read element by element,
// since their schema grows with each version.
type keyDescription struct {
	Version          int
	Level            asn1.Enumerated
	KeyMintVersion   int
	KeyMintLevel     asn1.Enumerated
	Challenge        []byte
	UniqueID         []byte
	SoftwareEnforced asn1.RawValue
	HardwareEnforced asn1.RawValue
}

// Tags and values of the authorization list.
const (
	tagPurpose       = 1
	tagOrigin        = 702
	tagRootOfTrust   = 704
	tagApplicationID = 709

	purposeSign     = 2
	originGenerated = 0
	bootVerified    = 0
)

// Android checks the chain of a key, leaf first, at now, and returns the key. Whoever asked for it compares
// the key with the one that they know.
func (v *Verifier) Android(chain [][]byte, challenge []byte, now time.Time) (*ecdsa.PublicKey, Level, error) {
	certificates, err := chainOf(chain, v.GoogleRoots, now)
	if err != nil {
		return nil, "", err
	}
	// A key that can sign can sign certificates too. Only the statement of the secure hardware counts, so
	// there must be no second one that something attested has made.
	for _, c := range certificates[1:] {
		if extension(c, oidAndroid) != nil {
			return nil, "", errors.New("attest: a certificate above the leaf's holds a key description")
		}
	}
	var d keyDescription
	if rest, err := asn1.Unmarshal(extension(certificates[0], oidAndroid), &d); err != nil || len(rest) > 0 {
		return nil, "", errors.New("attest: the leaf holds no key description")
	}
	level := map[asn1.Enumerated]Level{1: AndroidTEE, 2: AndroidStrongBox}[min(d.Level, d.KeyMintLevel)]
	if level == "" {
		return nil, "", errors.New("attest: the key is kept in software")
	}
	if len(challenge) == 0 || !bytes.Equal(d.Challenge, challenge) {
		return nil, "", errors.New("attest: the key was made for another challenge")
	}
	hardware, err := authorizations(d.HardwareEnforced)
	if err != nil {
		return nil, "", err
	}
	software, err := authorizations(d.SoftwareEnforced)
	if err != nil {
		return nil, "", err
	}
	if err := checkHardware(hardware); err != nil {
		return nil, "", err
	}
	if err := v.checkApplication(software[tagApplicationID]); err != nil {
		return nil, "", err
	}
	key, err := keyOf(certificates[0])
	return key, level, err
}

// authorizations reads a list into its elements by tag.
func authorizations(list asn1.RawValue) (map[int][]byte, error) {
	if list.Class != asn1.ClassUniversal || list.Tag != asn1.TagSequence || !list.IsCompound {
		return nil, errors.New("attest: an authorization list is none")
	}
	out := make(map[int][]byte)
	for rest := list.Bytes; len(rest) > 0; {
		var e asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &e); err != nil {
			return nil, fmt.Errorf("attest: an authorization list: %w", err)
		}
		if e.Class != asn1.ClassContextSpecific || out[e.Tag] != nil {
			return nil, errors.New("attest: an authorization list holds what it must not")
		}
		out[e.Tag] = e.Bytes
	}
	return out, nil
}

func unmarshal(der []byte, into any, params string) error {
	rest, err := asn1.UnmarshalWithParams(der, into, params)
	if err == nil && len(rest) > 0 {
		err = errors.New("trailing bytes")
	}
	return err
}

// checkHardware asks that the key signs, was made in the hardware, and that the telephone runs what its
// maker has signed.
func checkHardware(list map[int][]byte) error {
	var purposes []int
	if err := unmarshal(list[tagPurpose], &purposes, "set"); err != nil || !slices.Contains(purposes, purposeSign) {
		return errors.New("attest: the key is not for signing")
	}
	origin := -1
	if err := unmarshal(list[tagOrigin], &origin, ""); err != nil || origin != originGenerated {
		return errors.New("attest: the key was not made in the hardware")
	}
	var root struct {
		BootKey []byte
		Locked  bool
		State   asn1.Enumerated
		Hash    []byte `asn1:"optional"`
	}
	if err := unmarshal(list[tagRootOfTrust], &root, ""); err != nil || !root.Locked || root.State != bootVerified {
		return errors.New("attest: the telephone does not run what its maker has signed")
	}
	return nil
}

// checkApplication asks that the key was made by one of the operator's apps. The system of the telephone
// says so, and checkHardware has asked that it is genuine.
func (v *Verifier) checkApplication(octets []byte) error {
	var der []byte
	var app struct {
		Packages []struct {
			Name    []byte
			Version int64
		} `asn1:"set"`
		Signers [][]byte `asn1:"set"`
	}
	err := unmarshal(octets, &der, "")
	if err == nil {
		err = unmarshal(der, &app, "")
	}
	if err != nil {
		return errors.New("attest: the app is not named")
	}
	ours := len(app.Packages) > 0 && len(app.Signers) > 0
	for _, p := range app.Packages {
		ours = ours && slices.Contains(v.AndroidPackages, string(p.Name))
	}
	for _, s := range app.Signers {
		ours = ours && slices.ContainsFunc(v.AndroidSigners, func(known []byte) bool { return bytes.Equal(known, s) })
	}
	if !ours {
		return errors.New("attest: the key is another app's")
	}
	return nil
}

var oidApple = asn1.ObjectIdentifier{1, 2, 840, 113635, 100, 8, 2}

// appleObject is an attestation as App Attest encodes it.
type appleObject struct {
	Format    string `cbor:"fmt"`
	Statement struct {
		Chain   [][]byte `cbor:"x5c"`
		Receipt []byte   `cbor:"receipt"`
	} `cbor:"attStmt"`
	AuthData []byte `cbor:"authData"`
}

var strictCBOR = func() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: 8, MaxArrayElements: 16, MaxMapPairs: 16,
	}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return mode
}()

// authData is 32 bytes of the app's hash, a byte of flags, 4 of the counter, 16 that name the environment,
// 2 of a length and as many of the key's identifier. The key follows, which the leaf has too.
const authDataHead = 32 + 1 + 4 + 16 + 2

// Apple checks an attestation at now as "Validating apps that connect to your server" has it, steps 1 to 9.
// clientData is what the app has hashed for it.
func (v *Verifier) Apple(object, clientData []byte, now time.Time) (Level, error) {
	var a appleObject
	if err := strictCBOR.Unmarshal(object, &a); err != nil {
		return "", fmt.Errorf("attest: the object: %w", err)
	}
	if a.Format != "apple-appattest" {
		return "", errors.New("attest: the object is not App Attest's")
	}
	chain, err := chainOf(a.Statement.Chain, v.AppleRoots, now) // 1
	if err != nil {
		return "", err
	}
	hash := sha256.Sum256(clientData)
	nonce := sha256.Sum256(append(bytes.Clone(a.AuthData), hash[:]...)) // 2, 3
	var holder struct {
		Nonce []byte `asn1:"tag:1,explicit"`
	}
	if err := unmarshal(extension(chain[0], oidApple), &holder, ""); err != nil || !bytes.Equal(holder.Nonce, nonce[:]) { // 4
		return "", errors.New("attest: the key was made for another challenge")
	}
	key, err := keyOf(chain[0])
	if err != nil {
		return "", err
	}
	point, err := key.Bytes()
	if err != nil {
		return "", err
	}
	keyID := sha256.Sum256(point) // 5
	d := a.AuthData
	if len(d) < authDataHead || len(d) < authDataHead+len(keyID) || int(d[53])<<8|int(d[54]) != len(keyID) {
		return "", errors.New("attest: the authenticator data is cut short")
	}
	if !slices.ContainsFunc(v.AppleApps, func(app string) bool { // 6
		h := sha256.Sum256([]byte(app))
		return bytes.Equal(h[:], d[:32])
	}) {
		return "", errors.New("attest: the key is another app's")
	}
	if !bytes.Equal(d[33:37], make([]byte, 4)) { // 7
		return "", errors.New("attest: the key has signed before")
	}
	switch string(d[37:53]) { // 8
	case "appattest\x00\x00\x00\x00\x00\x00\x00":
	case "appattestdevelop":
		if !v.AppleDevelopment {
			return "", errors.New("attest: the app is a developer's copy")
		}
	default:
		return "", errors.New("attest: the authenticator is not App Attest's")
	}
	if !bytes.Equal(d[authDataHead:authDataHead+len(keyID)], keyID[:]) { // 9
		return "", errors.New("attest: the authenticator data is about another key")
	}
	return AppleApp, nil
}
