package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"strongroom/client"
)

// A new customer signs up and logs in with three factors: the private code, the code that came by
// SMS, and the device's key.
func Example() {
	server := newFake() // in place of your Strongroom
	defer server.Close()
	ctx := context.Background()

	key, err := client.NewDeviceKey() // an app takes its platform's keystore
	if err != nil {
		log.Fatal(err)
	}
	c, err := client.New(client.Options{
		BaseURL: server.URL,
		Pins:    []string{client.Pin(server.Certificate()), client.Pin(server.authority)},
		RootCAs: server.pool,
		Key:     key,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	registration, err := c.Register(ctx, "+447700900123")
	if err != nil {
		log.Fatal(err)
	}
	account, err := registration.Complete(ctx, "493027", "tulip-harbour-42", "Ada's phone")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("registered", account.Customer)

	login, err := c.Login(ctx, "+447700900123", "tulip-harbour-42")
	if err != nil {
		log.Fatal(err)
	}
	if _, err := login.Complete(ctx, "493027", "Ada's phone"); err != nil {
		log.Fatal(err)
	}
	session, err := c.Session(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("logged in on", session.Device)
	// Output:
	// registered cus_1
	// logged in on dev_1
}

// Two copies of an app change one record; the slower one is told so, and reads again.
func ExampleCollection_Put() {
	server := newFake()
	defer server.Close()
	ctx := context.Background()
	c := server.loggedIn(server.options())
	profile := c.Collection("profile")

	first, err := profile.Put(ctx, "main", map[string]string{"name": "Ada"}, client.IfNew())
	if err != nil {
		log.Fatal(err)
	}
	if _, err := profile.Put(ctx, "main", map[string]string{"name": "Ada L."}, client.IfMatch(first.ETag)); err != nil {
		log.Fatal(err)
	}
	_, err = profile.Put(ctx, "main", map[string]string{"name": "A. L."}, client.IfMatch(first.ETag))
	fmt.Println(errors.Is(err, client.ErrVersionMismatch))

	newest, err := profile.Reveal(ctx, "main", "show-to-customer")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(newest.Version, newest.Fields["name"])
	// Output:
	// true
	// 2 Ada L.
}

// A new device is pending until one that the customer has already lets it in.
func ExampleClient_ApproveDevice() {
	server := newFake()
	defer server.Close()
	ctx := context.Background()
	phone := server.loggedIn(server.options())

	tablet, err := client.New(server.options()) // with a key of its own
	if err != nil {
		log.Fatal(err)
	}
	login, err := tablet.Login(ctx, "+447700900123", "tulip-harbour-42")
	if err != nil {
		log.Fatal(err)
	}
	_, err = login.Complete(ctx, "493027", "Ada's tablet")
	var p *client.Problem
	if errors.Is(err, client.ErrDevicePending) && errors.As(err, &p) {
		fmt.Println("awaits approval:", p.Text("device"))
		err = phone.ApproveDevice(ctx, p.Text("device"), "047") // which the customer reads and types
	}
	fmt.Println(err)
	// Output:
	// awaits approval: dev_2
	// <nil>
}
