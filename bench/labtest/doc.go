// Package labtest is what the test suites that stand on bench/lab share: the binary under test, labs that
// end with their test, daemons, a real etcd, certificates, and waiting for something to become true. Like
// net/http/httptest it is imported by tests only.
//
// MUSLIN_BIN names a binary to test instead of one built from this tree. What needs root or a tool skips its
// test without it, or fails it where the environment variable CI is set.
package labtest
