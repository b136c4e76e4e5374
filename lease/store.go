package lease

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// What a Store promises to tell apart. Callers use errors.Is.
var (
	ErrNoConfig    = errors.New("the network has no config yet")
	ErrExists      = errors.New("the key exists already")
	ErrConflict    = errors.New("the key was changed by somebody else")
	ErrNotFound    = errors.New("the key does not exist")
	ErrCompacted   = errors.New("the revision was compacted away")
	ErrUnavailable = errors.New("the store does not answer")
	ErrDenied      = errors.New("the store refuses this user")
	ErrInvalid     = errors.New("not a lease")
)

// Entry is one key below the leases, as the store has it: it may be foreign or broken.
type Entry struct {
	Key      string // what follows "<prefix>/subnets/"; "../subnets-old" for a foreign "<prefix>/subnets-old"
	Value    []byte // owned by whoever received the Entry
	Revision int64  // of the last change of this key
	Reserved bool   // no time to live is attached: a reservation
}

// Event is a change of one key.
type Event struct {
	Entry        // of a deleted key only Key and Revision, that of the deletion
	Deleted bool // deleted or expired
}

// Revisions that PutLease and PutConfig take besides that of a key.
const (
	// Absent means: only if the key does not exist. Otherwise ErrExists.
	Absent int64 = 0
	// Any means: whatever is there.
	Any int64 = -1
)

// Permanent as a time to live makes a reservation, which never expires.
const Permanent time.Duration = 0

// Store holds the network's config and the leases. Its revision grows with every change of anything in
// it. Every method may fail with ErrUnavailable, which is worth a retry, and with ErrDenied, which is
// not. Safe for concurrent use.
type Store interface {
	// Config returns the network config and the revision of its last change, or ErrNoConfig.
	Config(ctx context.Context) (value []byte, revision int64, err error)

	// PutConfig writes the network config if its revision is still the given one (otherwise
	// ErrConflict), or Absent (otherwise ErrExists), or Any.
	PutConfig(ctx context.Context, value []byte, revision int64) error

	// WatchConfig calls changed when the watch stands and after every change of the network config, its
	// deletion too, until ctx ends (then it returns nil) or the watch breaks.
	WatchConfig(ctx context.Context, changed func()) error

	// List returns every key below "<prefix>/subnets/", foreign ones too, and those beside it that begin
	// with "<prefix>/subnets", since flannel takes them for leases; and the revision of the answer.
	List(ctx context.Context) (entries []Entry, revision int64, err error)

	// Watch calls changed for every change from the revision from on, in order, until ctx ends (then
	// it returns nil) or the watch breaks. It calls changed once without events when the watch stands.
	// revision is the newest one the caller has seen everything up to. ErrCompacted means that the
	// caller must list again; so, to be safe, does any other error.
	Watch(ctx context.Context, from int64, changed func(events []Event, revision int64)) error

	// PutLease writes a lease with a time to live, or Permanent, if its key's revision is still the
	// given one (otherwise ErrConflict), or Absent (otherwise ErrExists), or Any. What is not a lease
	// in key or value is refused with ErrInvalid. It returns the entry as written.
	PutLease(ctx context.Context, key string, value []byte, ttl time.Duration, revision int64) (Entry, error)

	// DeleteLease deletes a key if its revision is still the given one (otherwise ErrConflict), or
	// Any. It may be a foreign key. ErrNotFound if there is none.
	DeleteLease(ctx context.Context, key string, revision int64) error

	// TimeToLive says how long a lease has left, Permanent for a reservation; or ErrNotFound.
	TimeToLive(ctx context.Context, key string) (time.Duration, error)
}

// CheckWritable returns ErrInvalid, with the reason, for what no Store may write among the leases:
// flannel nodes lose all their peers over one bad key or value.
func CheckWritable(key string, value []byte) error {
	subnet, _, err := ParseKey(key)
	if err != nil {
		return fmt.Errorf("write lease: %w: %w", ErrInvalid, err)
	}
	attrs, err := DecodeAttrs(value)
	if err == nil && subnet.IsValid() && attrs.sixOnly() {
		err = errors.New("there is an IPv4 subnet, but no PublicIP")
	}
	if err != nil {
		return fmt.Errorf("write lease %s: %w: %w", key, ErrInvalid, err)
	}
	return nil
}
