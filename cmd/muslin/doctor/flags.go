package doctor

import (
	"fmt"
	"regexp"
	"strings"

	"muslin/lease/etcd"
)

// asksStore are muslin's commands that ask etcd by themselves, and learn nothing from the daemon.
var asksStore = regexp.MustCompile(`\bmuslin (?:leases (?:list|release|reserve)|config (?:get|set))\b`)

// withFlags gives such a command in a fix the flags by which etcd was reached, so that it can be copied.
func (p *Patient) withFlags(fix string) string {
	flags := p.storeFlags()
	if flags == "" {
		return fix
	}
	return asksStore.ReplaceAllStringFunc(fix, func(command string) string { return command + flags })
}

// storeFlags are those that are not the default.
func (p *Patient) storeFlags() string {
	if p.Store.Kind != "etcd" {
		return ""
	}
	c := &p.Options.Store
	var b strings.Builder
	for _, f := range []struct{ name, value, usual string }{
		{"etcd-endpoints", strings.Join(c.Endpoints, ","), strings.Join(etcd.DefaultEndpoints(), ",")}, {"etcd-prefix", c.Prefix, etcd.DefaultPrefix},
		{"etcd-cafile", c.CAFile, ""}, {"etcd-certfile", c.CertFile, ""}, {"etcd-keyfile", c.KeyFile, ""}, {"etcd-username", c.Username, ""},
	} {
		if f.value != f.usual && f.value != "" {
			fmt.Fprintf(&b, " --%s=%s", f.name, plain(f.value))
		}
	}
	return b.String()
}

// plain is a word for a shell, quoted only where it has to be.
func plain(word string) string {
	if strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:,=@%+[]") == "" && !strings.Contains(word, "[") {
		return word
	}
	return quote(word)
}
