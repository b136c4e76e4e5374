package encap

// The ECN codepoints: the lower two bits of TOS, or of IPv6's traffic class (RFC 3168, section 5).
const (
	NotECT = 0
	ECT1   = 1
	ECT0   = 2
	CE     = 3
)

// OuterECN is what the outer header gets for an inner one: a copy, RFC 6040's normal mode (section 4.1).
func OuterECN(innerTOS uint8) uint8 { return innerTOS & 3 }

// MergeECN brings the outer header's ECN into the inner packet on decapsulation, and reports whether the
// packet may go on (RFC 6040, section 4.2):
//
//	inner \ outer   Not-ECT   ECT(0)   ECT(1)   CE
//	Not-ECT         Not-ECT   Not-ECT  Not-ECT  drop
//	ECT(0)          ECT(0)    ECT(0)   ECT(1)   CE
//	ECT(1)          ECT(1)    ECT(1)   ECT(1)   CE
//	CE              CE        CE       CE       CE
func MergeECN(p []byte, h *Header, outer uint8) bool {
	inner := h.TOS & 3
	switch {
	case outer == CE && inner == NotECT:
		return false
	case inner == NotECT || inner == CE:
		return true
	case outer == CE, outer == ECT1 && inner == ECT0:
		h.TOS = h.TOS&^3 | outer
		if p[0]>>4 == 6 {
			setTrafficClass(p, h.TOS)
		} else {
			updateTOS(p, h.TOS)
		}
	}
	return true
}
