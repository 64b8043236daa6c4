package storetest

import (
	"errors"
	"os"
	"testing"

	"github.com/quire-serve/quire/model/store"
)

// SmolLM2 returns the path of SmolLM2-135M-Instruct as Q4_1.
func SmolLM2(t testing.TB) string {
	t.Helper()
	e, err := store.Find(store.Default)
	if errors.Is(err, store.ErrNotFound) {
		e, err = store.Pull(t.Context(), store.Default, nil)
	}
	if errors.Is(err, store.ErrUnavailable) && os.Getenv("QUIRE_TEST_MODEL") != "required" {
		t.Skipf("left out: %s is not here and cannot be had: %v", store.Default, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e.Path
}
