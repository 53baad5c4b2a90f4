package actor

import (
	"context"
	"testing"
)

func TestAContextWithoutActorIsAnonymous(t *testing.T) {
	if by := From(context.Background()); by.Kind != Anonymous || by.ID != "" || by.Customer() != "" {
		t.Errorf("got %+v", by)
	}
	a := Actor{Kind: Customer, ID: "cus_1", Device: "dev_1"}
	if by := From(With(context.Background(), a)); by != a || by.Customer() != "cus_1" {
		t.Errorf("got %+v", by)
	}
	if OfSystem("cli").Customer() != "" {
		t.Error("the system is a customer")
	}
}
