// Package doctor injects faults into the hosts of bench/lab and wants `muslin doctor` to name them: each as its first finding,
// and nothing when it is mended. It never calls the doctor's own package, so that nothing but what the command says
// can make a test pass.
//
// The tests need root and the tools that they name; without them they skip, or fail where the environment variable CI is set.
// MUSLIN_BIN names a binary to test instead of one built from this tree (bench/labtest).
package doctor
