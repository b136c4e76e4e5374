package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"muslin/cmd/muslin/text"
	"muslin/tunnel/kernel"
)

// FeaturesReport is what `muslin features --output json` prints. Others script against it: fields are added,
// never renamed or removed (docs/kernels.md).
type FeaturesReport struct {
	Kernel      string          `json:"kernel"`
	MaxSegments int             `json:"udp_max_segments"` // datagrams that one send takes; 1 without UDP_SEGMENT
	Features    []FeatureReport `json:"features"`         // each behind the one that it needs
	Notes       []string        `json:"notes"`            // sentences for the operator
}

// FeatureReport is one feature.
type FeatureReport struct {
	Name   string `json:"name"`
	State  string `json:"state"` // "on", "off", or "not tried": on until the kernel refuses it
	Since  string `json:"since"` // the Linux version that brought it, or "any"
	Needs  string `json:"needs"` // the feature that it stands on; empty: none
	Buys   string `json:"buys"`
	Reason string `json:"reason"` // what was found out
}

// The states of a feature.
const (
	featureOn       = "on"
	featureOff      = "off"
	featureNotTried = "not tried"
)

func newFeaturesCommand() *cobra.Command {
	var features, output string
	cmd := &cobra.Command{
		Use:   "features",
		Short: "Show what this kernel can do for the data path, by trying",
		Long: `features tries on this host what "muslin run" tries when it starts: each feature of the data path on
throw-away descriptors, and the offloads by sending packets through a network namespace that lives for a
moment and comparing what comes out. It says which are on, which are off and why, and what each buys. It
changes nothing and takes a fraction of a second.

The full answer takes root (CAP_NET_ADMIN and CAP_SYS_ADMIN). What could not be tried is on in the daemon,
too, and goes off there when the kernel refuses it.

A daemon that is running may have switched off more since: "muslin status" shows its own state. What each
feature needs and what kernels had broken is in docs/kernels.md.`,
		Example: `  muslin features
  muslin features --features=-udp-gso,-tun-uso   # what is left of the others
  muslin features --output json | jq -r '.features[] | select(.state == "off") | .name + ": " + .reason'
  muslin status                                  # what the running daemon uses`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := text.CheckOutput(output); err != nil {
				return err
			}
			wanted, err := kernel.ParseFeatures(features)
			if err != nil {
				return err
			}
			host, err := kernel.Uname()
			if err != nil {
				return err
			}
			usable, probes := kernel.Examine(cmd.Context(), wanted)
			report := newFeaturesReport(host, wanted, usable, probes)
			report.MaxSegments = kernel.UDPMaxSegments()
			if os.Geteuid() != 0 && report.count(featureNotTried) > 0 {
				report.Notes = append(report.Notes, "run as root for the full answer")
			}
			if output == "json" {
				return text.JSON(cmd.OutOrStdout(), report)
			}
			return report.print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&features, "features", "auto", "which features to try: auto or none, then -`NAME` to leave one out, NAME to take it in")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// newFeaturesReport puts together what was found out. probes stand in the order of kernel.Ladder.
func newFeaturesReport(host kernel.Host, wanted, usable kernel.Features, probes []kernel.Probe) *FeaturesReport {
	r := &FeaturesReport{Kernel: host.String(), Notes: []string{}}
	for i, rung := range kernel.Ladder {
		p := probes[i]
		f := FeatureReport{Name: rung.Name, State: featureOn, Since: rung.Since, Needs: rung.Needs, Buys: rung.Buys, Reason: p.Reason}
		switch {
		case !wanted.On(rung.Name):
			f.State, f.Reason = featureOff, wanted.Why(rung.Name)
		case !usable.On(rung.Name):
			f.State, f.Reason = featureOff, usable.Why(rung.Name)
		case p.Answer == kernel.Unknown:
			f.State = featureNotTried
		}
		r.Features = append(r.Features, f)
	}
	if name, what := kernel.Caution(host.Release); usable.On(name) && what != "" {
		r.Notes = append(r.Notes, name+": "+what)
	}
	if n := r.count(featureNotTried); n > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("%d not tried: the daemon uses them until the kernel refuses them", n))
	}
	return r
}

func (r *FeaturesReport) count(state string) int {
	n := 0
	for _, f := range r.Features {
		if f.State == state {
			n++
		}
	}
	return n
}

// print writes the report for a person: what a feature buys, and under it why it is not on.
func (r *FeaturesReport) print(w io.Writer) error {
	p := text.NewPrinter(w)
	p.Line("%s: %d of %d features on, up to %d datagrams in one send", r.Kernel, r.count(featureOn), len(r.Features), r.MaxSegments)
	p.Line("\nFEATURE\tSTATE\tSINCE\tWHAT IT BUYS")
	for _, f := range r.Features {
		state := f.State
		if state == featureOff {
			state = "OFF"
		}
		p.Line("%s\t%s\t%s\t%s", f.Name, state, f.Since, f.Buys)
		if f.State != featureOn {
			p.Line("\t\t\t  %s", f.Reason)
		}
	}
	for i, note := range r.Notes {
		if i == 0 {
			p.Line("")
		}
		p.Line("NOTE: %s", note)
	}
	return p.Finish()
}
