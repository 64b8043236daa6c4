// Package storetest gets the default model for tests that need a real one.
//
// The rule is the same for all of them: the model is taken from the model folder, or pulled into it.
// Only where it cannot be had (no network and not there) is the test left out, which it says with the
// reason; with QUIRE_TEST_MODEL=required in the environment, as in continuous integration, it fails
// instead.
//
// The package imports model/store only.
package storetest
