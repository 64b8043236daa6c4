package consensus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"
)

const (
	// asidePrefix begins the names of folders that were found damaged and replaced; asideKept of them,
	// the newest, stay for whoever wants to know what happened.
	asidePrefix = "raft.damaged-"
	asideKept   = 2
	// maxReasonBytes bounds what the hard state says about damage.
	maxReasonBytes = 512
)

// Damage says what of a data folder is not as this node wrote it.
type Damage struct {
	// What is a file, an entry or a number of entries.
	What string
	// Err is what is wrong with it.
	Err error
}

func (d *Damage) Error() string { return fmt.Sprintf("%s: %v", d.What, d.Err) }

// Unwrap is the reason.
func (d *Damage) Unwrap() error { return d.Err }

// Damaged makes a *Damage; the format is of what is wrong.
func Damaged(what, format string, args ...any) error {
	return &Damage{What: what, Err: fmt.Errorf(format, args...)}
}

// asDamage turns any error of reading what must be there into a *Damage.
func asDamage(what string, err error) error {
	if damage := (*Damage)(nil); err == nil || errors.As(err, &damage) {
		return err
	}
	return &Damage{What: what, Err: err}
}

// protect runs f and returns its panic, or the fault of a mapped file that is shorter than it says, as an
// error. The libraries that read our files trust what they find there.
func protect(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("reading it fails: %v", p)
		}
	}()
	return f()
}

// refusal is what a node says that cannot repair itself, because there is nobody to repair it from.
func refusal(dir string, damage *Damage) error {
	return fmt.Errorf("the data folder %s is damaged, and this node is alone and has nobody to repair it from: %w; "+
		"put back a copy of the folder, or move the folder away, start anew and load the last backup with quire snapshot restore", dir, damage)
}

// setAside moves a damaged folder out of the way and returns where it is now. Older ones go.
func setAside(dir string) (string, error) {
	old, err := filepath.Glob(filepath.Join(dir, asidePrefix+"*"))
	if err != nil {
		return "", err
	}
	slices.Sort(old) // The oldest first, as their names have the time.
	for len(old) >= asideKept {
		if err := os.RemoveAll(old[0]); err != nil {
			return "", err
		}
		old = old[1:]
	}
	aside := filepath.Join(dir, asidePrefix+time.Now().UTC().Format("20060102T150405.000000000"))
	if err := os.Rename(filepath.Join(dir, raftDir), aside); err != nil {
		return "", err
	}
	return aside, syncDir(dir)
}
