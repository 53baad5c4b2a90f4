package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"strongroom": func() { os.Exit(run(os.Args[1:])) },
	})
}

// TestCommands runs the scripts in testdata: what a person types, what they must read.
func TestCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata"})
}
