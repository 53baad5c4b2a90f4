package app

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"strongroom/internal/customer"
	"strongroom/internal/keyring"
)

// CustomerKeyOperator is what the command line may ask about the versions of customers' data keys.
type CustomerKeyOperator interface {
	// RotateCustomer gives a customer a new version and seals their values anew.
	RotateCustomer(ctx context.Context, c customer.ID) (CustomerKey, error)
	// CompromiseCustomer marks a version as known to somebody else, and seals the customer's values anew.
	CompromiseCustomer(ctx context.Context, c customer.ID, version uint32) (CustomerKey, error)
	// CompromiseCustomers marks all versions of all customers that were made before a time, and returns
	// how many; the job seals their values anew before all others.
	CompromiseCustomers(ctx context.Context, before time.Time) (int64, error)
	// DestroyCustomerKey destroys a version that nothing needs.
	DestroyCustomerKey(ctx context.Context, c customer.ID, version uint32) (CustomerKey, error)
}

// CustomerKey is a customer's data key after something was done to it.
type CustomerKey struct {
	Customer customer.ID
	Resealed int // values that were sealed anew
	Failed   int // values that do not open
	Versions []keyring.CustomerVersion
}

func (o operator) RotateCustomer(ctx context.Context, c customer.ID) (CustomerKey, error) {
	if _, err := o.house.Ring.RotateCustomer(ctx, o.by, c); err != nil {
		return CustomerKey{}, err
	}
	return o.resealed(ctx, c)
}

func (o operator) CompromiseCustomer(ctx context.Context, c customer.ID, version uint32) (CustomerKey, error) {
	if err := o.house.Ring.CompromiseCustomer(ctx, o.by, c, version); err != nil {
		return CustomerKey{}, err
	}
	return o.resealed(ctx, c)
}

// resealed seals a customer's values anew at once. Should it be cut short, the job goes on with it.
func (o operator) resealed(ctx context.Context, c customer.ID) (out CustomerKey, err error) {
	defer o.house.Jobs.Wake(keyring.JobReseal)
	done, failed, err := o.house.Ring.ResealCustomer(ctx, c)
	if err != nil {
		return out, fmt.Errorf("the new version seals; the customer's values are sealed anew later: %w", err)
	}
	out, err = o.customerKey(ctx, c)
	out.Resealed, out.Failed = done, failed
	return out, err
}

func (o operator) customerKey(ctx context.Context, c customer.ID) (CustomerKey, error) {
	versions, err := o.house.Ring.CustomerVersions(ctx, o.by, c)
	return CustomerKey{Customer: c, Versions: versions}, err
}

func (o operator) CompromiseCustomers(ctx context.Context, before time.Time) (int64, error) {
	n, err := o.house.Ring.CompromiseCustomersBefore(ctx, o.by, before)
	if !o.alone {
		o.house.Jobs.Wake(keyring.JobReseal)
		return n, err
	}
	for did := (keyring.Resealed{Customers: 1}); err == nil && did.Customers > 0; {
		did, err = o.house.Ring.Reseal(ctx, 250, true)
	}
	return n, err
}

func (o operator) DestroyCustomerKey(ctx context.Context, c customer.ID, version uint32) (CustomerKey, error) {
	if err := o.house.Ring.DestroyCustomerVersion(ctx, o.by, c, version); err != nil {
		return CustomerKey{}, err
	}
	return o.customerKey(ctx, c)
}

type customerKeyRequest struct {
	Customer customer.ID `json:"customer,omitempty"`
	Version  uint32      `json:"version,omitempty"`
	Before   time.Time   `json:"before,omitzero"`
}

// customerKeyRoutes adds the commands on customers' data keys to the control socket.
func (c *control) customerKeyRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /customer-key/rotate", command(c, func(ctx context.Context, o operator, ask customerKeyRequest) (CustomerKey, error) {
		return o.RotateCustomer(ctx, ask.Customer)
	}))
	mux.HandleFunc("POST /customer-key/compromise", command(c, func(ctx context.Context, o operator, ask customerKeyRequest) (CustomerKey, error) {
		return o.CompromiseCustomer(ctx, ask.Customer, ask.Version)
	}))
	mux.HandleFunc("POST /customer-key/compromise-all", command(c, func(ctx context.Context, o operator, ask customerKeyRequest) (int64, error) {
		return o.CompromiseCustomers(ctx, ask.Before)
	}))
	mux.HandleFunc("POST /customer-key/destroy", command(c, func(ctx context.Context, o operator, ask customerKeyRequest) (CustomerKey, error) {
		return o.DestroyCustomerKey(ctx, ask.Customer, ask.Version)
	}))
}

func (d *dialled) RotateCustomer(ctx context.Context, c customer.ID) (out CustomerKey, err error) {
	err = d.call(ctx, "/customer-key/rotate", customerKeyRequest{Customer: c}, &out, nil)
	return out, err
}

func (d *dialled) CompromiseCustomer(ctx context.Context, c customer.ID, version uint32) (out CustomerKey, err error) {
	err = d.call(ctx, "/customer-key/compromise", customerKeyRequest{Customer: c, Version: version}, &out, nil)
	return out, err
}

func (d *dialled) CompromiseCustomers(ctx context.Context, before time.Time) (n int64, err error) {
	err = d.call(ctx, "/customer-key/compromise-all", customerKeyRequest{Before: before}, &n, nil)
	return n, err
}

func (d *dialled) DestroyCustomerKey(ctx context.Context, c customer.ID, version uint32) (out CustomerKey, err error) {
	err = d.call(ctx, "/customer-key/destroy", customerKeyRequest{Customer: c, Version: version}, &out, nil)
	return out, err
}
