// Package web looks at the page of --web as a person does: in a real browser, Debian's Chromium without a window, with a daemon
// of the lab behind it, or with a made-up one of 500 peers.
//
// testdata/axe.min.js is axe-core 4.14.1 by Deque Systems as npm has it, unchanged, under the Mozilla Public License 2.0
// (testdata/axe.LICENSE). It is part of the tests alone.
package web
