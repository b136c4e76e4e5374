// Package soak watches daemons for a long time under traffic, churn and restarts (`make soak`), and holds what
// they take of the machine, and what they drop, to staying flat. This file's package holds what was sampled;
// the run is its test.
package soak
