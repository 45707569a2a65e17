#!/bin/bash
# SPDX-License-Identifier: MIT
# The rules of this house, checked by machine. In TAP; run by meson, which sets UP_SOURCE, UP_BUILD,
# UP_MASTER and UP_CTL. What needs a tool that is not installed is skipped.
set -u
cd "${UP_SOURCE:?run by meson test}" || exit 1

n=0
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

# report NAME FINDINGS: each line of findings breaks the rule.
report() {
	n=$((n + 1))
	if [ -z "$2" ]; then
		echo "ok $n - $1"
	else
		echo "not ok $n - $1"
		sed 's/^/# /' <<<"$2"
	fi
}

skip() {
	n=$((n + 1))
	echo "ok $n - $1 # SKIP $2 is not installed"
}

have() {
	command -v "$1" >/dev/null
}

mapfile -t c_files < <(find include src test bench -name '*.[ch]' | sort)
mapfile -t sources < <(find include src test bench docs .ci -type f ! -path '*/corpus/*' ! -path '*/__pycache__/*' | sort)

only_wire_passes_descriptors() {
	grep -nwE 'sendmsg|sendmmsg|recvmsg|recvmmsg|SCM_RIGHTS' -r src include | grep -v '^src/common/wire\.c:' |
		grep -vE '^[^:]*:[0-9]+:[[:space:]]*(/\*|\*|//)'
}

# A room includes itself and what lies below it: common, and for workers the public header.
includes_stay_in_the_room() {
	local room allowed
	for room in common master worker ctl; do
		allowed="common|$room"
		[ "$room" = worker ] && allowed="$allowed|up"
		grep -nE '^#include "' -r "src/$room" | grep -vE "#include \"($allowed)/[^\"/]+\"$"
	done
	grep -nE '^#include "' -r include
	grep -nE '^#include [<"]up/' -r src/common src/master src/ctl
}

# Within the master's room the arrows go down: no module includes, by any way, itself. Files that
# share the name before the first hyphen are one module; so are config and its table of options.
modules_have_no_circles() {
	local file line
	for file in src/master/*.[ch]; do
		sed -nE 's/^#include "master\/([a-z]+)[^"]*"$/\1/p' "$file" | while read -r line; do
			set -- "$(basename "$file" | sed -E 's/[-.].*//')" "$line"
			set -- "${1/#option/config}" "${2/#option/config}"
			[ "$1" = "$2" ] || echo "$1 $2"
		done
	done | tsort 2>&1 >/dev/null
}

libup_exports_only_up() {
	local library
	library=$(find "$UP_BUILD/src/worker" -maxdepth 1 -name 'libup.so.*' -type f | head -n 1)
	[ "$library" ] || { echo 'libup.so is not there'; return; }
	nm -D --defined-only "$library" | awk '{ print $NF }' | grep -v '^up_'
}

public_headers_stand_alone() {
	local header
	for header in include/up/*.h; do
		${CC:-cc} -std=c11 -Wall -Wextra -Werror -pedantic -fsyntax-only -Iinclude -x c "$header" 2>&1
		have c++ && c++ -std=c++17 -Wall -Wextra -Werror -pedantic -fsyntax-only -Iinclude -x c++ \
			"$header" 2>&1
	done
}

# options_are_in_the_manual PROGRAM PAGE: those of --help, and no others.
options_are_in_the_manual() {
	local option
	[ -f "$2" ] || { echo "$2 is not there"; return; }
	grep -E '^\.It Fl ' "$2" | grep -oE 'Fl -[a-z][a-z-]*' | sort -u | while read -r _ option; do
		"$1" --help | grep -qE -e "-$option([ ,]|\$)" || echo "$2 has -$option"
	done
	"$1" --help | grep -oE '(^|[ ,])--?[a-zA-Z][a-z0-9-]*' | tr -d ' ,' | sort -u | while read -r option; do
		# mdoc writes -x as "Fl x" and --long as "Fl -long".
		grep -qE "Fl ${option#-}( |\$)" "$2" || echo "$2 lacks $option"
	done
}

# The example runs: every key is one, with a value in range.
example_configuration_is_valid() {
	"$UP_MASTER" --check-config --config docs/examples/up-master.json 2>&1 >/dev/null
}

manuals_are_well_formed() {
	local page
	for page in docs/*.[1-9]; do
		mandoc -T lint -W warning "$page" 2>&1
	done
}

files_say_their_licence() {
	local file
	for file in "${sources[@]}"; do
		case $file in
		*.c | *.h) head -n 2 "$file" | tr -d '\n' |
			grep -q 'SPDX-License-Identifier: MIT.*SPDX-FileCopyrightText: ' || echo "$file" ;;
		*.md | *.json) ;;
		*) head -n 3 "$file" | grep -q 'SPDX-License-Identifier: MIT' || echo "$file" ;;
		esac
	done
}

# Put together here, so that this file does not find itself.
no_stubs() {
	local words='TO''DO|FIX''ME|X''XX|HA''CK'
	grep -nwE "$words" "${sources[@]}" README.md meson.build
}

# Tests wait for events with a deadline.
tests_never_sleep() {
	grep -nE '\b(u|nano|clock_nano)?sleep *\(' -r test | grep -v '^test/house\.sh:'
	grep -nE '^[[:space:]]*sleep [0-9]' -r test
}

tests_are_run() {
	local file name
	for file in test/unit/test-*.c test/fuzz/fuzz-*.c test/live/*.py; do
		[ -e "$file" ] || continue
		name=$(basename "$file" | sed -E 's/^(test|fuzz)-//; s/\.[a-z]+$//')
		case $file in
		test/fuzz/*) grep -q "'$name':" test/fuzz/meson.build || echo "$file" ;;
		# What is imported by others.
		test/live/harness.py | test/live/_*) ;;
		*) grep -q "'$name':" test/meson.build || echo "$file" ;;
		esac
	done
}

readme_is_short() {
	local lines
	lines=$(wc -l <README.md)
	[ "$lines" -lt 120 ] || echo "$lines lines"
}

report only_wire_passes_descriptors "$(only_wire_passes_descriptors)"
report includes_stay_in_the_room "$(includes_stay_in_the_room)"
report modules_have_no_circles "$(modules_have_no_circles)"
report libup_exports_only_up "$(libup_exports_only_up)"
report public_headers_stand_alone "$(public_headers_stand_alone)"
report options_of_up_master_are_in_the_manual "$(options_are_in_the_manual "$UP_MASTER" docs/up-master.8)"
report options_of_upctl_are_in_the_manual "$(options_are_in_the_manual "$UP_CTL" docs/upctl.1)"
report example_configuration_is_valid "$(example_configuration_is_valid)"
report files_say_their_licence "$(files_say_their_licence)"
report no_stubs "$(no_stubs)"
report tests_never_sleep "$(tests_never_sleep)"
report tests_are_run "$(tests_are_run)"
report readme_is_short "$(readme_is_short)"
if have mandoc; then
	report manuals_are_well_formed "$(manuals_are_well_formed)"
else
	skip manuals_are_well_formed mandoc
fi
if have clang-format; then
	report clang_format_changes_nothing \
		"$(clang-format --dry-run "${c_files[@]}" 2>&1 | grep -F "be clang-formatted" | cut -d: -f1 | sort -u)"
else
	skip clang_format_changes_nothing clang-format
fi
echo "1..$n"
