// Package store keeps model files in the user's cache folder and gets them there: a known name
// through pip, a GGUF file of this machine, or an https URL.
//
// A file is visible under its name only once it is whole: it is written beside its place, checked
// (size and digest where they are known, and that it parses as GGUF), synced and renamed. What an
// interrupted download left is continued by the next one if the server still has the same file.
// One pull of a name runs at a time, over all processes.
//
// The package imports model/gguf, to check what it stores.
package store
