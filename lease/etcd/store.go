package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"

	"muslin/lease"
)

var _ lease.Store = (*Store)(nil)

func (s *Store) configKey() string { return s.cfg.Prefix + "/config" }

// subnets is what List and Watch look for. It does not end in a slash, because flannel's does not either:
// a key beside the leases, such as <prefix>/subnets-old, costs flannel nodes their peers as well.
func (s *Store) subnets() string { return s.cfg.Prefix + "/subnets" }

// beside starts the Key of an Entry that does not lie below <prefix>/subnets/ but beside it: the path from
// there. It is never a lease key.
const beside = "../subnets"

// shortKey makes an Entry's Key of one in etcd: "10.244.1.0-24" of <prefix>/subnets/10.244.1.0-24, and
// "../subnets-old" of <prefix>/subnets-old. No two are the same: what lies below subnets/ and begins with
// "../" is spelled as if it lay beside it.
func (s *Store) shortKey(full string) string {
	rest := strings.TrimPrefix(full, s.subnets())
	if below, ok := strings.CutPrefix(rest, "/"); ok && !strings.HasPrefix(below, "../") {
		return below
	}
	return beside + rest
}

// fullKey is the inverse of shortKey.
func (s *Store) fullKey(key string) string {
	if rest, ok := strings.CutPrefix(key, beside); ok {
		return s.subnets() + rest
	}
	return s.subnets() + "/" + key
}

// do runs one request under the Store's timeout.
func (s *Store) do(ctx context.Context, request func(context.Context, *clientv3.Client) error) error {
	c, err := s.connect(ctx)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	return s.explain(ctx, request(limited, c))
}

// Config implements lease.Store.
func (s *Store) Config(ctx context.Context) (value []byte, revision int64, err error) {
	err = s.do(ctx, func(ctx context.Context, c *clientv3.Client) error {
		r, err := c.Get(ctx, s.configKey())
		if err == nil && len(r.Kvs) > 0 {
			value, revision = r.Kvs[0].Value, r.Kvs[0].ModRevision
		}
		return err
	})
	if err == nil && revision == 0 {
		err = fmt.Errorf("etcd key %s: %w", s.configKey(), lease.ErrNoConfig)
	}
	return value, revision, err
}

// PutConfig implements lease.Store.
func (s *Store) PutConfig(ctx context.Context, value []byte, revision int64) error {
	done := false
	err := s.do(ctx, func(ctx context.Context, c *clientv3.Client) error {
		r, err := c.Txn(ctx).If(condition(s.configKey(), revision)...).Then(clientv3.OpPut(s.configKey(), string(value))).Commit()
		if err == nil {
			done = r.Succeeded
		}
		return err
	})
	if err == nil && !done {
		err = lost(s.configKey(), revision)
	}
	return err
}

// condition is what a transaction asks of a key.
func condition(key string, revision int64) []clientv3.Cmp {
	switch revision {
	case lease.Any:
		return nil
	case lease.Absent:
		return []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)}
	}
	return []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", revision)}
}

// lost is the error of a transaction whose condition did not hold.
func lost(key string, revision int64) error {
	if revision == lease.Absent {
		return fmt.Errorf("etcd key %s: %w", key, lease.ErrExists)
	}
	return fmt.Errorf("etcd key %s: %w", key, lease.ErrConflict)
}

// List implements lease.Store.
func (s *Store) List(ctx context.Context) (entries []lease.Entry, revision int64, err error) {
	err = s.do(ctx, func(ctx context.Context, c *clientv3.Client) error {
		r, err := c.Get(ctx, s.subnets(), clientv3.WithPrefix())
		if err != nil {
			return err
		}
		for _, kv := range r.Kvs {
			entries = append(entries, s.entry(kv))
		}
		revision = r.Header.Revision
		return nil
	})
	return entries, revision, err
}

func (s *Store) entry(kv *mvccpb.KeyValue) lease.Entry {
	return lease.Entry{
		Key:      s.shortKey(string(kv.Key)),
		Value:    kv.Value,
		Revision: kv.ModRevision,
		Reserved: kv.Lease == 0,
	}
}

// CheckWritable returns nil if this user may write a key where leases lie, or lease.ErrDenied. It writes nothing: etcd
// asks for the rights of all that a transaction might do (checkTxnAuth in server/etcdserver/txn), and this one's condition
// holds of no key.
func (s *Store) CheckWritable(ctx context.Context, key string) error {
	full := s.fullKey(key)
	return s.do(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(full), "=", int64(math.MaxInt64))).Then(clientv3.OpPut(full, "")).Commit()
		return err
	})
}

// Watch implements lease.Store.
func (s *Store) Watch(ctx context.Context, from int64, changed func([]lease.Event, int64)) error {
	seen := from - 1
	return s.watch(ctx, s.subnets(), func(a clientv3.WatchResponse) {
		switch {
		case a.Created:
			changed(nil, seen)
		case a.IsProgressNotify():
			seen = a.Header.Revision
			changed(nil, seen)
		default:
			seen = max(seen, a.Header.Revision)
			changed(s.events(a.Events), seen)
		}
	}, clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithProgressNotify())
}

// WatchConfig implements lease.Store.
func (s *Store) WatchConfig(ctx context.Context, changed func()) error {
	return s.watch(ctx, s.configKey(), func(clientv3.WatchResponse) { changed() })
}

// watch calls answer for what the server says about a watch, first that it stands. The etcd client mends a broken
// watch by itself and says nothing; so the state of its connection is watched as well, and watch returns when
// that is lost.
func (s *Store) watch(ctx context.Context, key string, answer func(clientv3.WatchResponse), options ...clientv3.OpOption) error {
	c, err := s.connect(ctx)
	if err != nil {
		return err
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	dead := make(chan struct{})
	go func() {
		defer close(dead)
		untilDisconnected(inner, c.ActiveConnection())
	}()
	defer func() { cancel(); <-dead }()

	answers := c.Watch(clientv3.WithRequireLeader(s.apart(inner)), key, append(options, clientv3.WithCreatedNotify())...)
	created := time.NewTimer(s.cfg.Timeout)
	defer created.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-dead:
			if ctx.Err() != nil {
				return nil
			}
			return s.explain(ctx, errors.New("the connection is lost"))
		case <-created.C:
			return s.explain(ctx, errors.New("the server does not start the watch"))
		case a, ok := <-answers:
			if ctx.Err() != nil {
				return nil
			}
			if !ok {
				return s.explain(ctx, errors.New("the watch ended"))
			}
			if err := a.Err(); err != nil {
				return s.explain(ctx, err)
			}
			if a.Created {
				created.Stop()
			}
			answer(a)
		}
	}
}

// apart gives a watch that is logged in a stream of its own. The client joins watches into one, which keeps the
// login that it was begun with: once the server has forgotten that, a watch that is added ends them all. Watches
// whose metadata differ are not joined.
func (s *Store) apart(ctx context.Context) context.Context {
	if s.cfg.Username == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "muslin-watch", strconv.FormatUint(s.watches.Add(1), 10))
}

func (s *Store) events(in []*clientv3.Event) []lease.Event {
	var out []lease.Event
	for _, e := range in {
		ev := lease.Event{Entry: s.entry(e.Kv), Deleted: e.Type == clientv3.EventTypeDelete}
		if ev.Deleted {
			ev.Value, ev.Reserved = nil, false
		}
		out = append(out, ev)
	}
	return out
}

// untilDisconnected returns when a connection that was ready no longer is, when it fails to get ready,
// or when ctx ends.
func untilDisconnected(ctx context.Context, conn *grpc.ClientConn) {
	ready := false
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			ready = true
		case connectivity.TransientFailure, connectivity.Shutdown:
			return
		default:
			if ready {
				return
			}
		}
		if !conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// PutLease implements lease.Store. The time to live is that of a fresh etcd lease; one whose write is
// lost is revoked.
func (s *Store) PutLease(ctx context.Context, key string, value []byte, ttl time.Duration, revision int64) (lease.Entry, error) {
	if err := lease.CheckWritable(key, value); err != nil {
		return lease.Entry{}, err
	}
	e := lease.Entry{Key: key, Value: slices.Clone(value), Reserved: ttl == lease.Permanent}
	full := s.fullKey(key)
	done := false
	id := clientv3.NoLease
	err := s.do(ctx, func(ctx context.Context, c *clientv3.Client) error {
		var options []clientv3.OpOption
		if ttl != lease.Permanent {
			// etcd counts whole seconds.
			g, err := c.Grant(ctx, max(1, int64(ttl/time.Second)))
			if err != nil {
				return fmt.Errorf("grant: %w", err)
			}
			id = g.ID
			s.remember(key, id)
			options = append(options, clientv3.WithLease(id))
		}
		r, err := c.Txn(ctx).If(condition(full, revision)...).Then(clientv3.OpPut(full, string(value), options...)).Commit()
		if err == nil {
			done, e.Revision = r.Succeeded, r.Header.Revision
		}
		return err
	})
	switch {
	case err == nil && done:
		s.revoke(ctx, key, id)
		return e, nil
	case err == nil:
		// Surely not written, so nothing hangs on the grant.
		s.revokeOne(ctx, key, id)
		return lease.Entry{}, lost(full, revision)
	}
	// Perhaps it was written: revoking now might delete our own key. The next write clears up.
	return lease.Entry{}, err
}

func (s *Store) remember(key string, id clientv3.LeaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grants[key] = append(s.grants[key], id)
}

// revoke gives back what was granted for the key before, once its value hangs on keep alone. A failure
// costs nothing: the grants run out by themselves.
func (s *Store) revoke(ctx context.Context, key string, keep clientv3.LeaseID) {
	s.mu.Lock()
	old := slices.DeleteFunc(slices.Clone(s.grants[key]), func(id clientv3.LeaseID) bool { return id == keep })
	s.mu.Unlock()
	for _, id := range old {
		s.revokeOne(ctx, key, id)
	}
}

func (s *Store) revokeOne(ctx context.Context, key string, id clientv3.LeaseID) {
	if id == clientv3.NoLease {
		return
	}
	err := s.do(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Revoke(ctx, id)
		return err
	})
	if err != nil {
		s.log.Debug("etcd: cannot revoke a grant; it runs out by itself", "key", key, "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grants[key] = slices.DeleteFunc(s.grants[key], func(g clientv3.LeaseID) bool { return g == id })
	if len(s.grants[key]) == 0 {
		delete(s.grants, key)
	}
}

// DeleteLease implements lease.Store.
func (s *Store) DeleteLease(ctx context.Context, key string, revision int64) error {
	full := s.fullKey(key)
	var done, there bool
	err := s.do(ctx, func(ctx context.Context, c *clientv3.Client) error {
		r, err := c.Txn(ctx).If(condition(full, revision)...).Then(clientv3.OpDelete(full)).Else(clientv3.OpGet(full)).Commit()
		if err != nil {
			return err
		}
		done = r.Succeeded
		if done {
			there = r.Responses[0].GetResponseDeleteRange().Deleted > 0
		} else {
			there = len(r.Responses[0].GetResponseRange().Kvs) > 0
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case !there:
		return fmt.Errorf("etcd key %s: %w", full, lease.ErrNotFound)
	case !done:
		return lost(full, revision)
	}
	s.revoke(ctx, key, clientv3.NoLease) // what was granted for it, if it was ours
	return nil
}

// TimeToLive implements lease.Store.
func (s *Store) TimeToLive(ctx context.Context, key string) (left time.Duration, err error) {
	full := s.fullKey(key)
	there := false
	err = s.do(ctx, func(ctx context.Context, c *clientv3.Client) error {
		r, err := c.Get(ctx, full)
		if err != nil || len(r.Kvs) == 0 {
			return err
		}
		id := clientv3.LeaseID(r.Kvs[0].Lease)
		if there = true; id == clientv3.NoLease {
			return nil
		}
		t, err := c.TimeToLive(ctx, id)
		if err != nil {
			return err
		}
		there, left = t.TTL > 0, time.Duration(t.TTL)*time.Second
		return nil
	})
	if err == nil && !there {
		err = fmt.Errorf("etcd key %s: %w", full, lease.ErrNotFound)
	}
	return left, err
}
