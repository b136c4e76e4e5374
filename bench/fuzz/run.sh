#!/usr/bin/env bash
# Runs fuzz targets one after the other, or some side by side, and says at the end what each came to:
#
#   bench/fuzz/run.sh TIME [SIDE] [PATTERN]   each target for TIME (60s, 5m), SIDE at once (1), those that match PATTERN
#   bench/fuzz/run.sh --list                  directory and name of every target
#   bench/fuzz/run.sh --keep                  take a part of what was found so far into testdata/fuzz, for all to begin with
#
# It goes on after a failure and ends with status 1: go test has written the input that fails into testdata/fuzz, where
# it stays as a test. What go test said is in build/fuzz, in a file for each target. No root is needed.
set -eu
cd "$(dirname "$0")/../.."
export CGO_ENABLED=0
go=${GO-go}
kept=16 # inputs of each target that --keep takes

list() {
	git grep -o '^func Fuzz[A-Za-z0-9_]*' -- '*_test.go' | sed -E 's,^(.*)/[^/]*:func (.*),\1 \2,' | sort -u
}

# one runs a target and writes a line: directory, target, executions, new inputs, inputs in all, seconds.
one() {
	local dir=$1 target=$2 out begin=$SECONDS
	out=$work/$(echo "$dir-$target" | tr / -)
	echo "$(date +%T) $dir $target" >&2
	if ! "$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -parallel "$parallel" "./$dir" >"$out.log" 2>&1 && ! late "$out.log"; then
		cat "$out.log" >&2
		touch "$work/failed"
	fi
	sed -nE 's/^fuzz: elapsed: .*execs: ([0-9]+).*new interesting: ([0-9]+) \(total: ([0-9]+)\)$/\1 \2 \3/p' "$out.log" |
		tail -n 1 | sed "s,.*,$dir $target & $((SECONDS - begin))," >>"$work/sums"
}

# late reports whether all that failed is that the end of TIME met a busy worker: a fault of go test before Go 1.27
# (golang.org/issue/75804), which says no more than this and writes no input.
late() { grep -q '^    context deadline exceeded$' "$1" && ! grep -q 'Failing input written' "$1"; }

# keep spreads what it takes over all lengths, so that there are small inputs and large ones.
keep() {
	local cache from all to step
	cache=$("$go" env GOCACHE)/fuzz/$("$go" list -m)
	list | while read -r dir target; do
		from=$cache/$dir/$target to=$dir/testdata/fuzz/$target
		[ -d "$from" ] || continue
		mapfile -t all < <(find "$from" -type f -size -5k -printf '%s %f\n' | sort -n | cut -d ' ' -f 2)
		mkdir -p "$to"
		step=$(((${#all[@]} + kept - 1) / kept))
		for ((i = 0; i < ${#all[@]}; i += step)); do
			cp "$from/${all[i]}" "$to/"
		done
		rmdir --ignore-fail-on-non-empty "$to"
		echo "$dir $target: $(find "$to" -type f 2>/dev/null | wc -l) of ${#all[@]}"
	done
}

case "${1-}" in
--list) list ;;
--keep) keep ;;
[0-9]*)
	# Workers are killed, and leave their temporary files behind.
	work=$PWD/build/fuzz TMPDIR=$PWD/build/fuzz/tmp
	rm -rf "$work"
	mkdir -p "$TMPDIR"
	trap 'rm -rf "$TMPDIR"' EXIT
	time=$1 side=${2-1} parallel=$(((($(nproc) + side - 1)) / side))
	export -f one late
	export work time parallel go TMPDIR
	begin=$SECONDS
	list | grep -E "${3-.}" | xargs -P "$side" -L 1 bash -euc 'one "$@"' one
	sort "$work/sums" | awk '
		BEGIN { printf "%-18s %-22s %12s %6s %6s %8s\n", "", "", "executions", "new", "inputs", "seconds" }
		{ printf "%-18s %-22s %12d %6d %6d %8d\n", $1, $2, $3, $4, $5, $6; execs += $3; new += $4; n++ }
		END { printf "%-18s %-22s %12d %6d\n", n " targets", "", execs, new }'
	echo "in $((SECONDS - begin)) seconds"
	[ ! -e "$work/failed" ]
	;;
*)
	sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac
