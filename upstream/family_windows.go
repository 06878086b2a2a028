package upstream

import (
	"io/fs"
	"os/exec"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// family is a child with all that it starts: a job object, which the system ends
// when its last handle is closed, be it by the death of haldir. What the child
// starts before it is assigned, moments after its own start, is out of reach.
type family struct {
	guard *Guard
	child *exec.Cmd
	job   windows.Handle // 0 where the system gives none
}

func inodeTime(fs.FileInfo) time.Time { return time.Time{} }

// Guard has nothing to do here: the job objects of the children do it all.
type Guard struct{}

// NewGuard makes a guard.
func NewGuard(bool) *Guard { return &Guard{} }

// Look has nothing to find.
func (*Guard) Look() {}

// Close has nothing to end.
func (*Guard) Close() {}

// start starts the child. A Ctrl-C in haldir's console does not reach it: it is
// ended by the ladder instead.
func (f *family) start(child *exec.Cmd) error {
	child.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP}
	job, err := newJob()
	if err != nil {
		job = 0 // it does without
	}
	if err := child.Start(); err != nil {
		if job != 0 {
			_ = windows.CloseHandle(job)
		}
		return err
	}
	f.child, f.job = child, job
	if job != 0 {
		f.adopt()
	}
	return nil
}

// newJob makes a job whose processes end with its last handle.
func newJob() (windows.Handle, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, err
	}
	var info windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	info.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	at, size := uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)) //nolint:gosec // as the system's interface is
	_, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation, at, size)
	if err != nil {
		_ = windows.CloseHandle(job)
		return 0, err
	}
	return job, nil
}

// adopt puts the child into the job. Without the right to, kill ends it alone.
func (f *family) adopt() {
	pid := uint32(f.child.Process.Pid) //nolint:gosec // the system's own number
	process, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, pid)
	if err == nil {
		err = windows.AssignProcessToJobObject(f.job, process)
		_ = windows.CloseHandle(process)
	}
	if err != nil {
		_ = windows.CloseHandle(f.job)
		f.job = 0
	}
}

// Windows has no TERM for a process without a console: closing stdin was the
// polite request.
func (f *family) terminate() {}

// kill ends all of the job, or the child alone. It may be gone already.
func (f *family) kill() {
	if f.job != 0 {
		_ = windows.TerminateJobObject(f.job, 1)
		return
	}
	_ = f.child.Process.Kill()
}

func (f *family) release() {
	if f.job != 0 {
		_ = windows.CloseHandle(f.job)
	}
}
