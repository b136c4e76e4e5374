package doctor

import "fmt"

// Commands that start a node's daemon anew, as a shell takes them. Whether muslin or flanneld runs on another node cannot
// be told from here: try-restart starts none that does not run, beside the one that does.

// restartOn is for another node, by its PublicIP; why stands behind it as a remark.
func restartOn(node any, why string) string {
	return fmt.Sprintf("ssh %v systemctl try-restart muslin flanneld # whichever runs there: %s", node, why)
}

// restartWhoHasAnother is for the one of two nodes that has not what the config says.
func restartWhoHasAnother(what string) string {
	return fmt.Sprintf("muslin config get # and on the node whose %s is another: systemctl try-restart muslin flanneld", what)
}

// restartFlannel is for this one, which is flannel's.
const restartFlannel = "systemctl restart flanneld # or, if it does not come up: muslin rescue"

const (
	writesAgain  = "it writes its lease again"
	takesConfig  = "it takes what the network's config (muslin config get) says"
	reachesEtcd  = "it takes a lease again, if it reaches etcd (muslin doctor there)"
	watchesAgain = "it has lost its watch on etcd"
)
