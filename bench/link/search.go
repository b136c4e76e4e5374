//go:build linux

package link

// Largest is what the search for the largest packet found, in bytes of the whole IP packet.
type Largest struct {
	Found    int `json:"found_bytes"`
	Expected int `json:"expected_bytes"` // the smaller MTU of the two nodes' interfaces
}

// usualMTU is where the search begins when no interface's MTU is known.
const usualMTU = 1500

// searchLargest finds the largest size that passes, from minPacket (which is known to) to maxPacket. Sizes up
// to some limit pass, those above do not. The expected size is tried first, so that a path in order costs
// three questions.
//
// A no may be wrong, where answers are late or lost. A wrong one is the search's last, as all that is shorter
// passes; so the last is asked for again, to be sure, and a yes starts the search anew from there.
func searchLargest(expected int, passes func(size int, sure bool) (bool, error)) (int, error) {
	if expected <= minPacket {
		expected = usualMTU
	}
	good, bad := minPacket, maxPacket+1
	size, sure := expected, false
	for {
		ok, err := passes(size, sure)
		if err != nil {
			return good, err
		}
		switch {
		case ok && sure:
			good, bad = size, maxPacket+1
		case ok:
			good = size
		case sure:
			return good, nil
		default:
			bad = size
		}
		switch {
		case good == maxPacket:
			return good, nil
		case good+1 == bad:
			size, sure = bad, true
		case good == expected:
			size, sure = expected+1, false
		default:
			size, sure = good+(bad-good)/2, false
		}
	}
}
