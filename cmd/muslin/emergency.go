package main

import (
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"muslin/docs"
)

// newEmergencyTopic is docs/emergency.md for who has the binary alone: it runs nothing.
func newEmergencyTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "emergency",
		Short: "The page for 3 a.m.: symptoms, commands, and what they mean",
		Long:  plainPage(docs.Emergency),
	}
}

// pageLink is a link of markdown: its text, and where it leads.
var pageLink = regexp.MustCompile(`\[([^\]]+)\]\(([^)]+)\)`)

// plainPage is a page of docs without its links, which lead nowhere in a terminal: what is on the page has a heading to look
// for, and of another page the name stays.
func plainPage(page string) string {
	return strings.TrimSpace(pageLink.ReplaceAllStringFunc(page, func(link string) string {
		m := pageLink.FindStringSubmatch(link)
		file, _, _ := strings.Cut(m[2], "#")
		if file == "" || strings.HasSuffix(m[1], ".md") {
			return m[1]
		}
		return m[1] + " (docs/" + file + ")"
	}))
}
