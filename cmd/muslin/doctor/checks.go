package doctor

import "slices"

// checks are all that there are, in the order of the layers: what stands further up explains what stands below it, and
// comes first where nothing else decides.
func checks() []Check {
	return slices.Concat(rightsChecks, deviceChecks, storeChecks, daemonChecks, warnedChecks, keyChecks, hostChecks, leaseChecks, overlapChecks, routeChecks, firewallChecks, loadChecks, pathChecks)
}
