//go:build linux

package chaos

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// inside is set in the process that runs in namespaces of its own.
const inside = "QUIRE_CHAOS_INSIDE"

// sandboxed runs the test again in a process with its own network and mounts, where it may do what it
// wants and leaves nothing behind, however it ends. It returns false if this is that process. Where the
// system forbids such processes the reason is returned, and the test goes on without what needs them.
func sandboxed(t *testing.T) (done bool, reason string) {
	if os.Getenv(inside) != "" {
		return false, ""
	}
	if err := enter(exec.Command("/proc/self/exe", "-test.run=^$")).Run(); err != nil {
		return false, fmt.Sprintf("no namespaces of its own here (%v)", err)
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v"}
	flag.Visit(func(f *flag.Flag) {
		if strings.HasPrefix(f.Name, "chaos.") || f.Name == "test.timeout" {
			args = append(args, "-"+f.Name+"="+f.Value.String())
		}
	})
	// The process must not outlive this one, and dies with the thread that began it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := enter(exec.Command("/proc/self/exe", args...))
	cmd.Env = append(os.Environ(), inside+"=1")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if testing.Verbose() {
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	return true, ""
}

// enter has a command start in namespaces of its own, as root in there.
func enter(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: gid, Size: 1}}
	}
	return cmd
}

// smallDisk mounts a file system of that size, for this process and its children only, until the test
// ends.
func smallDisk(t *testing.T, dir string, bytes int64) error {
	// What is mounted here must not show elsewhere.
	if err := syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		return fmt.Errorf("small disk on %s: %w", dir, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return nil
}
