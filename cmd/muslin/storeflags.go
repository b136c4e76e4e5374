package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"muslin/lease"
	"muslin/lease/etcd"
)

// storeFlags say which etcd holds the leases, and as whom. They are flannel's.
type storeFlags struct {
	endpoints, prefix         string
	caFile, certFile, keyFile string
	username, password        string
	passwordFile              string
}

func (s *storeFlags) register(f *pflag.FlagSet) {
	f.StringVar(&s.endpoints, "etcd-endpoints", strings.Join(etcd.DefaultEndpoints(), ","), "etcd `URLs`, comma-separated")
	f.StringVar(&s.prefix, "etcd-prefix", etcd.DefaultPrefix, "etcd `path` of the network's config and leases")
	f.StringVar(&s.caFile, "etcd-cafile", "", "PEM `file` of the CA that signed etcd's certificate")
	f.StringVar(&s.certFile, "etcd-certfile", "", "PEM `file` of our client certificate")
	f.StringVar(&s.keyFile, "etcd-keyfile", "", "PEM `file` of our client key")
	f.StringVar(&s.username, "etcd-username", "", "etcd user `name`")
	f.StringVar(&s.passwordFile, "etcd-password-file", "", "`file` that holds the etcd user's password")
	f.StringVar(&s.password, "etcd-password", "", "etcd `password` (better in a file or in MUSLIN_ETCD_PASSWORD: a process list shows flags)")
}

func (s *storeFlags) dial(endpoints []string, log *slog.Logger) (*etcd.Store, error) {
	return etcd.Dial(etcd.Config{
		Endpoints: endpoints,
		Prefix:    s.prefix,
		CAFile:    s.caFile, CertFile: s.certFile, KeyFile: s.keyFile,
		Username: s.username, Password: s.password,
		Logger: log,
	})
}

// list is the endpoints as given.
func (s *storeFlags) list() []string {
	var all []string
	for _, e := range strings.Split(s.endpoints, ",") {
		if e = strings.TrimSpace(e); e != "" {
			all = append(all, e)
		}
	}
	return all
}

// connect is dial for a command that a person waits for: it fails if etcd does not answer.
func (s *storeFlags) connect(ctx context.Context, log *slog.Logger) (*etcd.Store, error) {
	if err := s.takePassword(log); err != nil {
		return nil, err
	}
	return s.reach(ctx, log)
}

// reach is connect where the password has been taken.
func (s *storeFlags) reach(ctx context.Context, log *slog.Logger) (*etcd.Store, error) {
	store, err := s.dial(s.list(), log)
	if err != nil {
		return nil, err
	}
	if err := store.CheckConnection(ctx); err != nil {
		store.Close()
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("etcd does not answer at %s", strings.Join(store.Endpoints(), ", "))
		}
		return nil, err
	}
	return store, nil
}

// waitConnected returns once etcd answers, saying at once and then every minute that it does not. What
// waiting cannot mend, a refused user or a certificate that is not trusted, is an error.
func waitConnected(ctx context.Context, store *etcd.Store, log *slog.Logger) error {
	const retry, remind = time.Second, time.Minute
	var said time.Time
	log.Info("connecting to etcd", "endpoints", strings.Join(store.Endpoints(), ","))
	for {
		err := store.CheckConnection(ctx)
		switch {
		case err == nil:
			if !said.IsZero() {
				log.Info("etcd answers", "endpoints", store.Endpoints())
			}
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, lease.ErrDenied), errors.Is(err, etcd.ErrTLS):
			return err
		}
		if time.Since(said) >= remind {
			said = time.Now()
			log.Warn("waiting for etcd; trying again every second", "err", err,
				"hint", fmt.Sprintf("check --etcd-endpoints (now %s), or start with --embedded-etcd on the first host", strings.Join(store.Endpoints(), ",")))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry):
		}
	}
}
