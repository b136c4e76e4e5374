package main

import (
	"bufio"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

var errDeclined = errors.New("nothing was changed")

// confirm asks on standard error and reads the answer from standard input; only "y" or "yes" is one. A signal is a no.
func confirm(cmd *cobra.Command, yes bool, question string) error {
	if yes {
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() { // which cannot be interrupted; the process ends instead
		text, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		read <- line{text, err}
	}()
	var answer line
	select {
	case <-cmd.Context().Done():
		fmt.Fprintln(cmd.ErrOrStderr())
		return errDeclined
	case answer = <-read:
	}
	if answer.err != nil && answer.text == "" {
		fmt.Fprintln(cmd.ErrOrStderr())
		return fmt.Errorf("%w: no answer (--yes answers for you)", errDeclined)
	}
	switch strings.ToLower(strings.TrimSpace(answer.text)) {
	case "y", "yes":
		return nil
	}
	return errDeclined
}
