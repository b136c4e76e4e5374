package doctor

import (
	"context"
	"errors"
	"fmt"

	"muslin/lease"
)

var storeChecks = []Check{
	{Name: "etcd", Essential: true, Run: checkStore},
}

// checkStore is about a store that cannot be had.
func checkStore(_ context.Context, p *Patient) []Finding {
	err := p.Store.Err
	if err == nil {
		return nil
	}
	if errors.Is(err, lease.ErrUnavailable) {
		return []Finding{broken("etcd-unreachable", "etcd does not answer: nobody hears of new nodes, and no lease is renewed", err.Error(),
			fmt.Sprintf("start etcd at %v, or open the way there", p.Store.Endpoints))}
	}
	p.CannotTell("etcd", err)
	return nil
}
