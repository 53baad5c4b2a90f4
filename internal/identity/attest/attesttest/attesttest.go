// Package attesttest makes attestations of the structure that telephones make, under roots of its own.
package attesttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// The app whose keys are attested.
const (
	Package = "com.example.money"
	AppID   = "0123456789.com.example.money"
)

// Signer is the hash of the certificate that the Android app is signed with.
var Signer = sha256.Sum256([]byte("signer"))

// Maker is a maker of telephones: a root and an authority below it.
type Maker struct {
	t         testing.TB
	Now       time.Time
	Roots     *x509.CertPool
	authority *x509.Certificate
	key       *ecdsa.PrivateKey
}

// New returns a Maker whose certificates are good at now.
func New(t testing.TB, now time.Time) *Maker {
	m := &Maker{t: t, Now: now, Roots: x509.NewCertPool()}
	rootKey := Key(t)
	root := m.sign(m.template("root", true), nil, &rootKey.PublicKey, rootKey)
	m.Roots.AddCert(root)
	m.key = Key(t)
	m.authority = m.sign(m.template("authority", true), root, &m.key.PublicKey, rootKey)
	return m
}

// Key returns a fresh key on P-256.
func Key(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (m *Maker) template(name string, ca bool) *x509.Certificate {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: m.Now.Add(-24 * time.Hour), NotAfter: m.Now.Add(48 * time.Hour),
		BasicConstraintsValid: true, IsCA: ca, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if ca {
		c.KeyUsage = x509.KeyUsageCertSign
	}
	return c
}

func (m *Maker) sign(c, parent *x509.Certificate, key *ecdsa.PublicKey, by *ecdsa.PrivateKey) *x509.Certificate {
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key, by)
	if err != nil {
		m.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

func (m *Maker) der(v any, params string) []byte {
	b, err := asn1.MarshalWithParams(v, params)
	if err != nil {
		m.t.Fatal(err)
	}
	return b
}

// explicit is an element of an authorization list.
func (m *Maker) explicit(tag int, inner []byte) []byte {
	return m.der(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: true, Bytes: inner}, "")
}

// Android says what Android's attestation shall hold; the zero values of what it does not name are good.
type Android struct {
	Challenge []byte
	Level     int // 0 software, 1 TEE, 2 StrongBox
	Package   string
	Signer    []byte
	Imported  bool // the key was not made in the hardware
	Unlocked  bool // the telephone's boot loader was opened
	Encrypts  bool // the key is not for signing
}

// Good is what a genuine telephone says.
func Good(challenge []byte) Android {
	return Android{Challenge: challenge, Level: 2, Package: Package, Signer: Signer[:]}
}

var (
	oidAndroid = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 1, 17}
	oidApple   = asn1.ObjectIdentifier{1, 2, 840, 113635, 100, 8, 2}
)

// Description is the extension that says a.
func (m *Maker) Description(a Android) pkix.Extension {
	purpose, origin, state := 2, 0, 0
	if a.Encrypts {
		purpose = 0
	}
	if a.Imported {
		origin = 2
	}
	if a.Unlocked {
		state = 2
	}
	type pkg struct {
		Name    []byte
		Version int64
	}
	app := m.der(struct {
		Packages []pkg    `asn1:"set"`
		Signers  [][]byte `asn1:"set"`
	}{[]pkg{{[]byte(a.Package), 7}}, [][]byte{a.Signer}}, "")
	root := m.der(struct {
		Key    []byte
		Locked bool
		State  asn1.Enumerated
		Hash   []byte
	}{make([]byte, 32), !a.Unlocked, asn1.Enumerated(state), make([]byte, 32)}, "")
	list := func(elements ...[]byte) asn1.RawValue {
		var all []byte
		for _, e := range elements {
			all = append(all, e...)
		}
		return asn1.RawValue{Class: asn1.ClassUniversal, Tag: asn1.TagSequence, IsCompound: true, Bytes: all}
	}
	value := m.der(struct {
		Version        int
		Level          asn1.Enumerated
		KeyMintVersion int
		KeyMintLevel   asn1.Enumerated
		Challenge      []byte
		UniqueID       []byte
		Software       asn1.RawValue
		Hardware       asn1.RawValue
	}{300, asn1.Enumerated(a.Level), 300, asn1.Enumerated(a.Level), a.Challenge, nil,
		list(m.explicit(701, m.der(1700000000000, "")), m.explicit(709, m.der(app, ""))),
		list(m.explicit(1, m.der([]int{purpose}, "set")), m.explicit(2, m.der(3, "")), m.explicit(702, m.der(origin, "")), m.explicit(704, root)),
	}, "")
	return pkix.Extension{Id: oidAndroid, Value: value}
}

// Android attests a key, and returns the chain, leaf first.
func (m *Maker) Android(key *ecdsa.PublicKey, a Android) [][]byte {
	leaf := m.template("Android Keystore Key", false)
	leaf.ExtraExtensions = []pkix.Extension{m.Description(a)}
	return [][]byte{m.sign(leaf, m.authority, key, m.key).Raw, m.authority.Raw}
}

// Below attests a key by one that is attested itself, as somebody does who has the use of a telephone but
// not of its secure hardware.
func (m *Maker) Below(key *ecdsa.PublicKey, a Android) [][]byte {
	middle := m.template("Android Keystore Key", true)
	middle.ExtraExtensions = []pkix.Extension{m.Description(a)}
	middleKey := Key(m.t)
	above := m.sign(middle, m.authority, &middleKey.PublicKey, m.key)
	leaf := m.template("Android Keystore Key", false)
	leaf.ExtraExtensions = []pkix.Extension{m.Description(a)}
	return [][]byte{m.sign(leaf, above, key, middleKey).Raw, above.Raw, m.authority.Raw}
}

// Apple says what App Attest's object shall hold.
type Apple struct {
	ClientData  []byte
	App         string
	Environment string // 16 bytes
	Counter     uint32
	KeyID       []byte // instead of the key's own
}

// Genuine is what a genuine copy of the app says.
func Genuine(clientData []byte) Apple {
	return Apple{ClientData: clientData, App: AppID, Environment: "appattest\x00\x00\x00\x00\x00\x00\x00"}
}

// Apple makes an App Attest key and attests it.
func (m *Maker) Apple(a Apple) []byte {
	key := Key(m.t)
	point, err := key.PublicKey.Bytes()
	if err != nil {
		m.t.Fatal(err)
	}
	id := sha256.Sum256(point)
	if a.KeyID == nil {
		a.KeyID = id[:]
	}
	app := sha256.Sum256([]byte(a.App))
	data := append(app[:], 0x40)
	data = binary.BigEndian.AppendUint32(data, a.Counter)
	data = append(data, a.Environment...)
	data = binary.BigEndian.AppendUint16(data, uint16(len(a.KeyID)))
	data = append(data, a.KeyID...)
	cose, err := cbor.Marshal(map[int]any{1: 2, 3: -7, -1: 1, -2: point[1:33], -3: point[33:]})
	if err != nil {
		m.t.Fatal(err)
	}
	data = append(data, cose...)
	hash := sha256.Sum256(a.ClientData)
	nonce := sha256.Sum256(append(append([]byte{}, data...), hash[:]...))
	leaf := m.template("App Attest key", false)
	leaf.ExtraExtensions = []pkix.Extension{{Id: oidApple, Value: m.der(struct {
		Nonce []byte `asn1:"tag:1,explicit"`
	}{nonce[:]}, "")}}
	object, err := cbor.Marshal(map[string]any{
		"fmt": "apple-appattest", "authData": data,
		"attStmt": map[string]any{"x5c": [][]byte{m.sign(leaf, m.authority, &key.PublicKey, m.key).Raw, m.authority.Raw}, "receipt": []byte("receipt")},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return object
}
