package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
)

// The etcd password comes by a file, a variable or a flag. Everybody on the host may read a process's command
// line (/proc/PID/cmdline), its user's other processes and the programs that it starts its environment, so both
// are wiped as soon as the password was taken from them.

const (
	passwordFlag     = "--etcd-password"
	passwordVariable = "ETCD_PASSWORD" // behind each of envPrefixes
)

// takePassword reads the password file, if there is one, and wipes what others could read of the password.
func (s *storeFlags) takePassword(log *slog.Logger) error {
	if s.passwordFile != "" {
		return s.readPassword(log)
	}
	if s.password == "" {
		return nil
	}
	s.password = strings.Clone(s.password) // it was a part of the command line's own memory
	for _, prefix := range envPrefixes {
		if err := os.Unsetenv(prefix + passwordVariable); err != nil {
			return err
		}
	}
	onCommandLine, err := wipePassword()
	switch {
	case err != nil:
		log.Warn("the etcd password could not be wiped from what other processes may read of this one", "err", err,
			"hint", "give it with --etcd-password-file")
	case onCommandLine:
		log.Warn("the etcd password was in the process list until now; give it with --etcd-password-file, or in MUSLIN_ETCD_PASSWORD")
	}
	return nil
}

func (s *storeFlags) readPassword(log *slog.Logger) error {
	if s.password != "" {
		return errors.New("--etcd-password and --etcd-password-file both give the password: leave the first out")
	}
	content, err := os.ReadFile(s.passwordFile)
	if err != nil {
		return fmt.Errorf("--etcd-password-file: %w", err)
	}
	s.password = strings.TrimRight(string(content), "\r\n")
	if s.password == "" {
		return fmt.Errorf("--etcd-password-file %s: the file is empty; write the password into it", s.passwordFile)
	}
	if info, err := os.Stat(s.passwordFile); err == nil && info.Mode().Perm()&0o004 != 0 {
		log.Warn("everybody on this host may read the etcd password", "file", s.passwordFile, "hint", "chmod o-r it")
	}
	return nil
}

// wipePassword overwrites the password in the memory that the kernel shows as /proc/PID/cmdline and /proc/PID/environ.
func wipePassword() (onCommandLine bool, err error) {
	args, env, err := startMemory()
	if err != nil {
		return false, err
	}
	mem, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer mem.Close()
	onCommandLine, err = args.wipe(mem, func(before, text string) (secret string) {
		if value, ok := strings.CutPrefix(text, passwordFlag+"="); ok {
			return value
		}
		if before == passwordFlag {
			return text
		}
		return ""
	})
	if err != nil {
		return onCommandLine, err
	}
	_, err = env.wipe(mem, func(_, text string) (secret string) {
		for _, prefix := range envPrefixes {
			if value, ok := strings.CutPrefix(text, prefix+passwordVariable+"="); ok {
				return value
			}
		}
		return ""
	})
	return onCommandLine, err
}

// memory is a piece of this process's memory: strings, each with a NUL behind it.
type memory struct{ start, end int64 }

// wipe overwrites with NULs what secret finds in a string, which it is given with the one before it.
func (m memory) wipe(mem *os.File, secret func(before, text string) string) (found bool, err error) {
	content := make([]byte, m.end-m.start)
	if _, err := mem.ReadAt(content, m.start); err != nil {
		return false, err
	}
	before, at := "", m.start
	for text := range bytes.SplitSeq(content, []byte{0}) {
		if s := secret(before, string(text)); s != "" {
			found = true
			if _, err := mem.WriteAt(make([]byte, len(s)), at+int64(len(text)-len(s))); err != nil {
				return found, err
			}
		}
		before, at = string(text), at+int64(len(text))+1
	}
	return found, nil
}

// startMemory is where command line and environment lie: the fields arg_start, arg_end, env_start and env_end
// of proc(5)'s stat, 48 to 51, there since 3.5.
func startMemory() (args, env memory, err error) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return args, env, err
	}
	// The second field, the command's name in brackets, may hold blanks and brackets.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from field 3 on
	if len(fields) < 51-2 {
		return args, env, errors.New("/proc/self/stat does not say where the command line lies")
	}
	var at [4]int64
	for i := range at {
		if at[i], err = strconv.ParseInt(fields[48-3+i], 10, 64); err != nil {
			return args, env, fmt.Errorf("/proc/self/stat: %w", err)
		}
	}
	return memory{at[0], at[1]}, memory{at[2], at[3]}, nil
}
