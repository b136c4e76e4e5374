#!/bin/sh
# Runs the Go benchmarks of the rooms that a packet goes through, and compares them with baseline.txt:
#
#   bench/micro/run.sh              compare; the new figures stay in bench/results/micro.txt
#   bench/micro/run.sh --baseline   write baseline.txt, on a machine that does nothing else
#
# It takes some three minutes and no root. Only figures of one machine compare: make your own baseline first.
set -eu
cd "$(dirname "$0")/../.."

rooms='encap tunnel/fib tunnel/gso tunnel'
baseline=bench/micro/baseline.txt
new=bench/results/micro.txt

case "${1-}" in
'') ;;
--baseline) new=$baseline ;;
*)
	sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac
[ "$new" = "$baseline" ] || [ -f "$baseline" ] || {
	echo "there is no $baseline: make one with $0 --baseline" >&2
	exit 1
}
mkdir -p "${new%/*}"
[ -w "${new%/*}" ] || {
	echo "${new%/*} cannot be written, perhaps because make bench made it as root: chown or remove it" >&2
	exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
for room in $rooms; do
	echo "benchmarks of $room" >&2
	# One processor: the names are the same on any machine then, and nothing here runs on two.
	CGO_ENABLED=0 "${GO-go}" test -run '^$' -bench . -count 6 -benchtime 200ms -cpu 1 "./$room" >"$work/room.txt" || {
		cat "$work/room.txt"
		exit 1
	}
	cat "$work/room.txt" >>"$work/all.txt"
done
mv "$work/all.txt" "$new"

stat() { "${GO-go}" tool benchstat -filter '.unit:(sec/op OR allocs/op)' "$@"; }
if [ "$new" = "$baseline" ]; then
	stat "$new"
	exit
fi
cpu() { sed -n 's/^cpu: //p' "$1" | sort -u; }
if [ "$(cpu "$baseline")" != "$(cpu "$new")" ]; then
	echo "The baseline is of another processor, \"$(cpu "$baseline")\": only large differences mean anything."
fi
stat -ignore cpu "baseline=$baseline" "now=$new"
