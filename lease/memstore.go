package lease

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
	"time"
)

// MemStore is a Store in memory, for tests and trials. Leases expire by the clock of package time, so
// that testing/synctest drives it. The zero value is not usable: see NewMemStore.
type MemStore struct {
	mu        sync.Mutex
	revision  int64
	compacted int64 // the newest revision that a watch can no longer start from
	config    []byte
	configRev int64
	leases    map[string]*memLease
	log       []Event       // every change of a lease since compacted
	changed   chan struct{} // closed and replaced whenever something happens
	down      error
}

type memLease struct {
	entry   Entry
	expires time.Time // zero: reserved
	timer   *time.Timer
}

// NewMemStore returns an empty store at revision 1, as an empty etcd is.
func NewMemStore() *MemStore {
	return &MemStore{revision: 1, leases: make(map[string]*memLease), changed: make(chan struct{})}
}

// Fail makes every method, and every watch that stands, return err from now on; nil ends that. Leases
// go on expiring meanwhile.
func (m *MemStore) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = err
	m.wake()
}

// Compact forgets the history up to now. A watch from an earlier revision gets ErrCompacted.
func (m *MemStore) Compact() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.compacted, m.log = m.revision, nil
	m.wake()
}

// PutRaw writes whatever it is given, as somebody who is not muslin might. A ttl of Permanent makes a
// reservation.
func (m *MemStore) PutRaw(key, value string, ttl time.Duration) Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.put(key, []byte(value), ttl)
}

// Config implements Store.
func (m *MemStore) Config(ctx context.Context) ([]byte, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.unavailable(ctx); err != nil {
		return nil, 0, err
	}
	if m.configRev == 0 {
		return nil, 0, ErrNoConfig
	}
	return bytes.Clone(m.config), m.configRev, nil
}

// PutConfig implements Store.
func (m *MemStore) PutConfig(ctx context.Context, value []byte, revision int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.unavailable(ctx); err != nil {
		return err
	}
	if err := compare(m.configRev, revision); err != nil {
		return err
	}
	m.revision++
	m.config, m.configRev = bytes.Clone(value), m.revision
	m.wake()
	return nil
}

// RemoveConfig deletes the network config, as somebody who is not muslin might.
func (m *MemStore) RemoveConfig() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision++
	m.config, m.configRev = nil, 0
	m.wake()
}

// WatchConfig implements Store.
func (m *MemStore) WatchConfig(ctx context.Context, changed func()) error {
	for seen := int64(-1); ; {
		m.mu.Lock()
		now, wake, err := m.configRev, m.changed, m.unavailable(ctx)
		m.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if now != seen {
			seen = now
			changed()
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// List implements Store.
func (m *MemStore) List(ctx context.Context) ([]Entry, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.unavailable(ctx); err != nil {
		return nil, 0, err
	}
	var out []Entry
	for _, l := range m.leases {
		e := l.entry
		e.Value = bytes.Clone(e.Value)
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
	return out, m.revision, nil
}

// Watch implements Store.
func (m *MemStore) Watch(ctx context.Context, from int64, changed func([]Event, int64)) error {
	standing := false
	seen := from - 1
	for {
		m.mu.Lock()
		if ctx.Err() != nil {
			m.mu.Unlock()
			return nil
		}
		if err := m.unavailable(ctx); err != nil {
			m.mu.Unlock()
			return err
		}
		if from <= m.compacted {
			m.mu.Unlock()
			return ErrCompacted
		}
		var events []Event
		for _, e := range m.log {
			if e.Revision >= from {
				e.Value = bytes.Clone(e.Value)
				events = append(events, e)
			}
		}
		revision, wake := m.revision, m.changed
		from = revision + 1
		m.mu.Unlock()
		if !standing {
			standing = true
			changed(nil, seen)
		}
		if len(events) > 0 {
			changed(events, revision)
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// PutLease implements Store.
func (m *MemStore) PutLease(ctx context.Context, key string, value []byte, ttl time.Duration, revision int64) (Entry, error) {
	if err := CheckWritable(key, value); err != nil {
		return Entry{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.unavailable(ctx); err != nil {
		return Entry{}, err
	}
	if err := compare(m.revisionOf(key), revision); err != nil {
		return Entry{}, err
	}
	return m.put(key, value, ttl), nil
}

// DeleteLease implements Store.
func (m *MemStore) DeleteLease(ctx context.Context, key string, revision int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.unavailable(ctx); err != nil {
		return err
	}
	have := m.revisionOf(key)
	if have == 0 {
		return ErrNotFound
	}
	if err := compare(have, revision); err != nil {
		return err
	}
	m.remove(key)
	return nil
}

// TimeToLive implements Store.
func (m *MemStore) TimeToLive(ctx context.Context, key string) (time.Duration, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.unavailable(ctx); err != nil {
		return 0, err
	}
	l, ok := m.leases[key]
	switch {
	case !ok:
		return 0, ErrNotFound
	case l.expires.IsZero():
		return Permanent, nil
	}
	return time.Until(l.expires), nil
}

// The rest is called with mu held.

func (m *MemStore) unavailable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return m.down
}

func (m *MemStore) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *MemStore) revisionOf(key string) int64 {
	if l, ok := m.leases[key]; ok {
		return l.entry.Revision
	}
	return 0
}

func compare(have, want int64) error {
	switch {
	case want == Any || have == want:
		return nil
	case want == Absent:
		return ErrExists
	}
	return ErrConflict
}

func (m *MemStore) put(key string, value []byte, ttl time.Duration) Entry {
	if old, ok := m.leases[key]; ok && old.timer != nil {
		old.timer.Stop()
	}
	m.revision++
	l := &memLease{entry: Entry{Key: key, Value: bytes.Clone(value), Revision: m.revision, Reserved: ttl == Permanent}}
	if ttl != Permanent {
		l.expires = time.Now().Add(ttl)
		l.timer = time.AfterFunc(ttl, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.leases[key] == l {
				m.remove(key)
			}
		})
	}
	m.leases[key] = l
	m.log = append(m.log, Event{Entry: l.entry})
	m.wake()
	e := l.entry
	e.Value = bytes.Clone(value)
	return e
}

func (m *MemStore) remove(key string) {
	if t := m.leases[key].timer; t != nil {
		t.Stop()
	}
	delete(m.leases, key)
	m.revision++
	m.log = append(m.log, Event{Entry: Entry{Key: key, Revision: m.revision}, Deleted: true})
	m.wake()
}
