package prefix

// Match is how much of a prompt a worker holds: the blocks of the longest unbroken beginning, by the
// fastest medium that has each.
type Match struct {
	// Worker is the number under which the worker is known.
	Worker             int32
	Device, Host, Disk int32
}

// Blocks is the length of the beginning.
func (m Match) Blocks() int32 { return m.Device + m.Host + m.Disk }
