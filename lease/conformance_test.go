package lease_test

import (
	"testing"
	"time"

	"muslin/lease"
	"muslin/lease/storetest"
)

func TestMemStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		m := lease.NewMemStore()
		return storetest.Harness{
			Store:        m,
			PutRaw:       func(_ *testing.T, key, value string) { m.PutRaw(key, value, lease.Permanent) },
			RemoveConfig: func(*testing.T) { m.RemoveConfig() },
			Compact:      func(*testing.T) { m.Compact() },
			ShortTTL:     50 * time.Millisecond,
		}
	})
}
