package kernel

// Feature is one thing that the data path does faster or better where the kernel allows it. It is shown
// in `muslin status`: Reason says what was given when On, and why not when off.
type Feature struct {
	Name   string `json:"name"`
	On     bool   `json:"on"`
	Reason string `json:"reason"`
}
