package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Default is the model that Quire serves when it is there.
const Default = "smollm2-135m"

var (
	// ErrNotFound means that no model has this name and no file this path.
	ErrNotFound = errors.New("no such model")
	// ErrCorrupt means that a file is not what it should be; the error says in what.
	ErrCorrupt = errors.New("corrupt model file")
	// ErrUnavailable means that a model could not be fetched; the error says why.
	ErrUnavailable = errors.New("model cannot be fetched")
)

const extension = ".gguf"

// Entry is a model that is here.
type Entry struct {
	Name string
	Path string
	Size int64 // bytes
}

// Dir is the folder of the models: QUIRE_MODELS, or quire/models in the user's cache folder.
func Dir() (string, error) {
	if dir := os.Getenv("QUIRE_MODELS"); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder for models; set QUIRE_MODELS: %w", err)
	}
	return filepath.Join(cache, "quire", "models"), nil
}

// List returns the models in the folder, by name.
func List() ([]Entry, error) {
	dir, err := Dir()
	if err != nil {
		return nil, err
	}
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []Entry
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), extension)
		if !ok {
			continue
		}
		e, err := entry(name, filepath.Join(dir, f.Name()))
		if errors.Is(err, ErrNotFound) {
			continue // a folder, or gone since
		}
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Find returns the model of this name in the folder, or the file at this path.
func Find(nameOrPath string) (Entry, error) {
	if validName(nameOrPath) == nil {
		dir, err := Dir()
		if err != nil {
			return Entry{}, err
		}
		if e, err := entry(nameOrPath, filepath.Join(dir, nameOrPath+extension)); err == nil || !errors.Is(err, ErrNotFound) {
			return e, err
		}
	}
	e, err := entry(strings.TrimSuffix(filepath.Base(nameOrPath), extension), nameOrPath)
	if errors.Is(err, ErrNotFound) {
		if _, known := catalogue[nameOrPath]; known {
			return e, fmt.Errorf("%w: %s is not here yet; get it with quire model pull %s", ErrNotFound, nameOrPath, nameOrPath)
		}
		return e, fmt.Errorf("%w: neither a pulled model nor a file: %s", ErrNotFound, nameOrPath)
	}
	return e, err
}

// entry describes a regular file.
func entry(name, path string) (Entry, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return Entry{}, ErrNotFound
	}
	if err != nil {
		return Entry{}, err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return Entry{}, err
	}
	return Entry{Name: name, Path: abs, Size: info.Size()}, nil
}

// validName refuses names that could leave the folder or hide in it.
func validName(name string) error {
	if name == "" || len(name) > 128 || name[0] == '.' || strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.+", r))
	}) {
		return fmt.Errorf("model name %q: want 1 to 128 letters, digits, and - _ . +", name)
	}
	return nil
}
