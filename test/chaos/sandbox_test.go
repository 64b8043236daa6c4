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
	"time"
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

// private keeps what is mounted from showing elsewhere.
func private() error {
	if err := syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	return nil
}

// hangingDisk makes a file system of that size in a file, and mounts it, for this process and its children
// only, until the test ends. freeze and thaw make it hang and go on.
func hangingDisk(t *testing.T, image, dir string, bytes int64) error {
	if err := private(); err != nil {
		return err
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, bytes); err != nil {
		return err
	}
	for _, command := range [][]string{{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", command[0], err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", dir, err, out)
		}
		if err := os.Remove(image); err != nil {
			t.Error(err)
		}
	})
	return nil
}

// freeze lets every write to a file system hang, until thaw. What waits for a frozen disk can't be
// killed, so a process that outlives this one thaws it in any case.
func freeze(dir string, most time.Duration) (thaw func() error, err error) {
	rescue := exec.Command("sh", "-c", fmt.Sprintf("sleep %d; fsfreeze --unfreeze '%s'", int(most.Seconds()), dir))
	rescue.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := rescue.Start(); err != nil {
		return nil, err
	}
	end := func() {
		_ = syscall.Kill(-rescue.Process.Pid, syscall.SIGKILL)
		_ = rescue.Wait()
	}
	if out, err := exec.Command("fsfreeze", "--freeze", dir).CombinedOutput(); err != nil {
		end()
		return nil, fmt.Errorf("fsfreeze: %w: %s", err, out)
	}
	return func() error {
		defer end()
		if out, err := exec.Command("fsfreeze", "--unfreeze", dir).CombinedOutput(); err != nil {
			return fmt.Errorf("fsfreeze: %w: %s", err, out)
		}
		return nil
	}, nil
}

// smallDisk mounts a file system of that size, for this process and its children only, until the test
// ends.
func smallDisk(t *testing.T, dir string, bytes int64) error {
	if err := private(); err != nil {
		return err
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
