# shellcheck shell=bash
# What the VM tests share. Each NAME.test starts with `. /tests/vm/lib.sh`, says what
# it does with `step`, and ends with `finish`, which takes everything down again
# and fails if anything is left. All knowledge of bdsnap in here is of its contract
# (command line, JSON, exit codes), none of its insides.
#
# Disks are $VDB, $VDC … as the test's `# disks:` line asks for them.
set -Eeuo pipefail
export LC_ALL=C
umask 022

T=$(mktemp -d /run/bdsnap-test.XXXXXX)	# scratch, in memory: no I/O on any disk
OUT=$T/out	# standard output of the last `expect`
ERR=$T/err	# standard error of the last `expect`
RC=0		# exit status of the last `expect`
# Used by the tests, not here.
# shellcheck disable=SC2034
VDB=/dev/vdb VDC=/dev/vdc VDD=/dev/vdd VDE=/dev/vde
MOUNTS=()	# mounted by `mounted`, newest last
declare -A BG=()	# background jobs, name to process id
FAILED=
QUIET=		# set while `quiet` runs something
exec 3>&1	# where a failure is told, whatever is redirected

step() {
	local up _
	read -r up _ </proc/uptime
	printf '== [%ss] %s\n' "$up" "$*"
}

# many ALL FEW: how often something is repeated: in a long run, and in others (a quarter of it on the debug kernel, which is slow)
many() {
	if [ -n "${LONG:-}" ]; then echo "$1"; elif [ -n "${FEWER:-}" ]; then echo $((($2 + 3) / 4)); else echo "$2"; fi
}

# one_of NAME…: in a long run all of them, else one by lot
one_of() {
	if [ -n "${LONG:-}" ]; then
		echo "$@"
	else
		for name in "$@"; do echo "$(echo "${SEED:-$RANDOM} $0 $name" | sha256sum) $name"; done | sort | sed -n '1s/.* //p'
	fi
}

note() { printf '   %s\n' "$*"; }

# What may help whoever looks into a failure.
dump() {
	local f
	echo '--- state at the failure ---'
	for f in "$T"/*.log; do
		if [ -s "$f" ]; then
			echo "--- end of $f"
			tail -n 15 "$f"
		fi
	done
	if [ -e /dev/bdsnap ]; then timeout 20 bdsnap status 2>&1 | head -n 60; fi
	echo '--- end of the kernel log'
	dmesg | tail -n 25
}

fail() {
	trap - ERR
	[ -z "$FAILED" ] || exit 1
	FAILED=1
	exec >&3 2>&1
	if [ -n "$QUIET" ]; then tail -n 40 "$T/quiet"; fi
	echo "FAIL: $*"
	local i
	for ((i = 1; i < ${#FUNCNAME[@]}; i++)); do
		note "in ${FUNCNAME[i]} at ${BASH_SOURCE[i]##*/}:${BASH_LINENO[i - 1]}"
	done
	dump
	exit 1
}

skip() {
	echo "SKIP: $*"
	exit 4
}

trap 'fail "line $LINENO: \"$BASH_COMMAND\" exited with $?"' ERR
trap 'leave' EXIT

leave() {
	local pid
	trap - ERR EXIT
	set +e
	exec 2>/dev/null	# no "Killed" from bash
	for pid in "${BG[@]}"; do kill -9 "$pid"; done
	# A device that a failed test left suspended would hang the sync at the end.
	dmsetup ls 2>/dev/null | while read -r name _; do
		[ "$name" = No ] || dmsetup resume "$name" 2>/dev/null
	done
}

# quiet COMMAND…: shows what it prints only if it fails
quiet() {
	QUIET=1
	"$@" >"$T/quiet" 2>&1
	QUIET=
}

# equal WHAT GOT WANTED
equal() {
	[ "$2" = "$3" ] || fail "$1: is '$2', should be '$3'"
	note "$1: $2"
}

# expect "CODES" COMMAND…: runs it; its exit status must be one of the codes.
# What it printed is in $OUT and $ERR, its status in $RC.
expect() {
	local want=" $1 "
	shift
	printf '+ %s\n' "$*"
	RC=0
	"$@" >"$OUT" 2>"$ERR" || RC=$?
	head -n 12 "$OUT" | cut -c 1-600 | sed 's/^/  | /'
	head -n 20 "$ERR" | cut -c 1-600 | sed 's/^/  ! /'
	case "$want" in
	*" $RC "*) ;;
	*) fail "'$*' exited with $RC, should be one of:$want" ;;
	esac
}

# json PATH…: a value from the JSON of the last `expect`
json() { jsonget "$@" <"$OUT"; }

# refused CODES COMMAND…: as expect, and there must be a cause on standard error.
refused() {
	expect "$@"
	[ -s "$ERR" ] || fail "no cause on standard error"
}

# ---- module -------------------------------------------------------------------

loaded() { grep -q '^bdsnap ' /proc/modules; }

load() {
	modprobe bdsnap 2>/dev/null || insmod "$BDSNAP_KO" || fail "the module can't be loaded"
	wait_for 5 test -c /dev/bdsnap || fail "no /dev/bdsnap"
	# The debug kernel runs the module's own KUnit tests now; a failure is in the kernel's log.
	[ ! -d /sys/kernel/debug/kunit ] || compgen -G '/sys/kernel/debug/kunit/bdsnap_*/results' >/dev/null ||
		fail "the module's KUnit tests did not run"
}

unload() {
	expect 0 rmmod bdsnap
	if loaded; then fail "rmmod succeeded, the module is still there"; fi
	wait_for 5 test ! -e /dev/bdsnap || fail "/dev/bdsnap outlives its module"
}

# True while anything hooks submit_bio_noacct: the kernel's own word, not bdsnap's.
hooked() { grep -q '^submit_bio_noacct ' /sys/kernel/tracing/enabled_functions; }

# wait_for SECONDS COMMAND…: until it succeeds
wait_for() {
	local until=$(($(date +%s) + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$(date +%s)" -lt "$until" ] || return 1
		sleep 0.1
	done
}

# ---- bdsnap -------------------------------------------------------------------

# bd COMMAND…: must succeed
bd() { expect 0 bdsnap "$@"; }

# bdj COMMAND…: must succeed and print JSON
bdj() {
	expect 0 bdsnap --json "$@"
	jsonget '' <"$OUT" >/dev/null || fail "no JSON from bdsnap --json $*"
}

# snap DEV… [option…]: a snapshot. Sets SNAP (id), IMAGE and IMAGES, GEN, NUM.
# shellcheck disable=SC2034 # for the tests
snap() {
	bdj snapshot create "$@"
	SNAP=$(json id)
	mapfile -t IMAGES < <(json 'devices.*.image')
	IMAGE=${IMAGES[0]}
	GEN=$(json devices.0.generation)
	NUM=$(json devices.0.number)
	local i
	for i in "${IMAGES[@]}"; do
		wait_for 5 test -b "$i" || fail "no image device $i"
	done
}

unsnap() { bd snapshot delete "$@"; }

# What bdsnap says there is, in a form that can be compared.
bdstate() {
	timeout 60 bdsnap --json status >"$T/state.json" || fail "status fails"
	local p
	for p in 'devices.*.device' 'devices.*.generation' 'devices.*.number' 'devices.*.state' \
		'snapshots.*.id' 'snapshots.*.state'; do
		jsonget "$p" <"$T/state.json" | sed "s/^/$p /"
	done
}

# unchanged_by CODES COMMAND…: refused, and everything is as before.
unchanged_by() {
	local before after
	before=$(bdstate)
	refused "$@"
	after=$(bdstate)
	[ "$before" = "$after" ] || fail "refused, but something changed: before: $before; after: $after"
}

no_snapshots() {
	bdj status
	equal "snapshots left" "$(json 'snapshots.#')" 0
	if compgen -G '/dev/bdsnap-image*' >/dev/null; then
		wait_for 5 eval '! compgen -G "/dev/bdsnap-image*"' || fail "image devices left: $(echo /dev/bdsnap-image*)"
	fi
}

# ---- disks and file systems -----------------------------------------------------

ext4_on() { mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$1"; }
xfs_on() { mkfs.xfs -q -f "$1"; }

# needs_recovery DEV: the ext4 on it is one that was running
needs_recovery() {
	dumpe2fs -h "$1" >"$T/dumpe2fs" 2>&1 || fail "dumpe2fs $1: $(tail -n 3 "$T/dumpe2fs")"
	grep -q needs_recovery "$T/dumpe2fs"
}

# mounted DEV DIR [options]
mounted() {
	mkdir -p "$2"
	mount ${3:+-o "$3"} "$1" "$2" || fail "can't mount $1 on $2 (${3:-})"
	MOUNTS+=("$2")
}

unmounted() {
	umount "$1" || fail "can't unmount $1"
	local m keep=()
	for m in "${MOUNTS[@]}"; do [ "$m" = "$1" ] || keep+=("$m"); done
	MOUNTS=("${keep[@]}")
}

# loop_of FILE [losetup option…]: sets LOOP
loop_of() {
	modprobe loop 2>/dev/null || true
	LOOP=$(losetup -f --show "${@:2}" "$1") || fail "no loop device for $1"
}

# store_on DEV: an ext4 for stores and dumps, at /mnt/store
store_on() {
	ext4_on "$1"
	mounted "$1" /mnt/store
}

drop_caches() { echo 3 >/proc/sys/vm/drop_caches; }

# manifest DIR: checksums and metadata of all files
manifest() {
	(
		cd "$1" || exit 1
		find . -type f -print0 | sort -z | xargs -0r md5sum
		find . -printf '%p %y %s %m %T@\n' | sort
	)
}

# same_files A B: two manifests must be equal
same_files() {
	diff "$1" "$2" >"$T/diff" || {
		head -n 20 "$T/diff"
		fail "$1 and $2 differ in $(wc -l <"$T/diff") lines"
	}
	note "equal: ${1##*/} and ${2##*/} ($(wc -l <"$1") lines)"
}

# differ A B: a check that the comparison above can fail at all
differ() {
	if cmp -s "$1" "$2"; then fail "$1 and $2 are equal: this test proves nothing"; fi
	note "differ, as they should: ${1##*/} and ${2##*/}"
}

# same_image DIGEST IMAGE [option…]: the image must have this digest
same_image() {
	digest take "$2" "$T/now.digest" "${@:3}" >/dev/null || fail "can't read $2"
	digest diff "$1" "$T/now.digest" || fail "$2 is not what it was (${1##*/})"
}

# ---- background jobs --------------------------------------------------------------

# bg NAME COMMAND…
bg() {
	local name=$1
	shift
	printf '+ %s & (%s)\n' "$*" "$name"
	"$@" >"$T/$name.log" 2>&1 3>&- &
	BG[$name]=$!
}

running() { kill -0 "${BG[$1]}" 2>/dev/null; }

# Waits until it ends by itself: it must succeed.
bg_wait() {
	local rc=0
	wait "${BG[$1]}" || rc=$?
	unset "BG[$1]"
	sed 's/^/  | /' "$T/$1.log" | tail -n 5
	[ $rc = 0 ] || fail "$1 exited with $rc"
}

# Asks it to stop (SIGTERM); it must still have been there, and end well.
bg_stop() {
	local there=1
	running "$1" || there=
	kill -TERM "${BG[$1]}" 2>/dev/null || true
	bg_wait "$1"
	[ -n "$there" ] || fail "$1 had ended before it was stopped"
}

# ---- the end ------------------------------------------------------------------------

# Takes everything down: nothing may be left, and the module must go.
finish() {
	step "take everything down"
	local name i
	for name in "${!BG[@]}"; do
		if running "$name"; then
			bg_stop "$name"
		else
			note "$name has ended"
			bg_wait "$name"
		fi
	done
	# Image mounts first: they are the newest.
	for ((i = ${#MOUNTS[@]} - 1; i >= 0; i--)); do
		case $(findmnt -no SOURCE "${MOUNTS[i]}") in /dev/bdsnap-*) unmounted "${MOUNTS[i]}" ;; esac
	done
	if loaded; then
		bd snapshot delete --all
		no_snapshots
		bd untrack --all
		bdj status
		equal "origins left" "$(json 'devices.#')" 0
		if hooked; then fail "submit_bio_noacct is still hooked with nothing tracked"; fi
	fi
	for ((i = ${#MOUNTS[@]} - 1; i >= 0; i--)); do unmounted "${MOUNTS[i]}"; done
	if loaded; then unload; fi
	step "done"
}

# ---- the parts that several tests share -------------------------------------------

# raw_image DEV NAME STORE_SIZE [option of `stomp run`…]: the image of a raw device never changes,
# whatever is written to the device. Needs store_on before.
raw_image() {
	local dev=$1 name=$2 size=$3 reads=0 how
	shift 3
	step "$name: fill $dev, cut, and compare the image with the origin as it was"
	stomp fill "$dev" --seq 1
	stomp check "$dev" --direct --min-seq 1 --max-seq 1
	digest take "$dev" "$T/$name.origin" --direct
	snap "$dev" --no-freeze --store "file:/mnt/store,size=$size"
	equal "size of the image" "$(blockdev --getsize64 "$IMAGE")" "$(blockdev --getsize64 "$dev")"
	equal "logical block size" "$(blockdev --getss "$IMAGE")" "$(blockdev --getss "$dev")"
	equal "physical block size" "$(blockdev --getpbsz "$IMAGE")" "$(blockdev --getpbsz "$dev")"
	equal "read-only" "$(blockdev --getro "$IMAGE")" 1
	same_image "$T/$name.origin" "$IMAGE" --direct

	step "$name: random writes to $dev while the image is read again and again"
	bg "$name" stomp run "$dev" "$@"
	while running "$name"; do
		if [ $((reads % 2)) = 0 ]; then how=--direct; else how=--read=64K; fi
		same_image "$T/$name.origin" "$IMAGE" "$how"
		reads=$((reads + 1))
	done
	bg_wait "$name"
	note "the image was read $reads times under writes"
	[ "$reads" -ge 1 ] || fail "the image was never read under writes"
	drop_caches
	same_image "$T/$name.origin" "$IMAGE"

	step "$name: overwrite all of $dev: every granule must be in the store now"
	stomp fill "$dev" --seq 9000000
	drop_caches
	same_image "$T/$name.origin" "$IMAGE" --direct
	stomp check "$IMAGE" --min-seq 1 --max-seq 1
	stomp check "$dev" --min-seq 9000000
	digest take "$dev" "$T/$name.after" --direct
	digest diff "$T/$name.origin" "$T/$name.after" --expect-different

	step "$name: the image can't be written"
	if dd if=/dev/zero of="$IMAGE" bs=4096 count=1 oflag=direct conv=notrunc 2>"$T/dd"; then
		fail "the image took a write"
	fi
	if blkdiscard -f "$IMAGE" 2>>"$T/dd"; then fail "the image took a discard"; fi
	same_image "$T/$name.origin" "$IMAGE"
	unsnap "$SNAP"
	wait_for 5 test ! -e "$IMAGE" || fail "$IMAGE outlives its snapshot"
}

# changes_round DEV NAME: cut; compare with the cut before, whose digest is $T/old.digest and number $OLD
changes_round() {
	snap "$1" --no-freeze --store file:/mnt/store,size=28M
	digest take "$IMAGE" "$T/new.digest"
	bdj changes "$1" --since "$OLD" --generation "$GEN"
	cp "$OUT" "$T/changes.json"
	equal from "$(json from)" "$OLD"
	equal to "$(json to)" "$NUM"
	equal generation "$(json generation)" "$GEN"
	digest changes "$T/old.digest" "$T/new.digest" "$T/changes.json" | sed "s/^/   $2: /"
	# The image gives the same answer as its origin.
	bdj changes "$IMAGE" --since "$OLD"
	equal "extents by the image" "$(json extents)" "$(jsonget extents <"$T/changes.json")"
	unsnap "$SNAP"
	mv "$T/new.digest" "$T/old.digest"
	OLD=$NUM
}

# changes_first DEV [BLOCK_SIZE]: a filled device, tracked, and the first cut
changes_first() {
	stomp fill "$1" --seq 1
	bd track "$1" ${2:+--block-size "$2"}
	snap "$1" --no-freeze --store file:/mnt/store,size=28M
	digest take "$IMAGE" "$T/old.digest"
	unsnap "$SNAP"
	OLD=$NUM
}

# fs_image TYPE DEV SCRATCH: the image of a mounted file system, its store on that
# file system itself with its blocks among the data; SCRATCH is a blank disk, at least as large as DEV.
fs_image() {
	local type=$1 dev=$2 scratch=$3 opts check size
	case $type in
	ext4) opts=ro,noload check="e2fsck -fn" ;;
	xfs) opts=ro,nouuid,norecovery check="xfs_repair -n" ;;
	esac
	local dir=/mnt/$type image=/mnt/image
	step "$type: a tree, and free space in pieces between data"
	"${type}_on" "$dev"
	mounted "$dev" "$dir"
	churn tree "$dir/tree" --bytes 20M --seed 11
	churn fragment "$dir/frag" --files 1200 --size 64K
	# Leave little in one piece: the store needs the holes.
	size=$(($(df --output=avail -B1 "$dir" | tail -n 1) - 84 * 1048576))
	if [ $size -gt 0 ]; then fallocate -l $size "$dir/filler"; fi
	sync -f "$dir"
	manifest "$dir/tree" >"$T/before"

	step "$type: snapshot, store on $dir"
	snap "$dev" --store "file:$dir,size=64M"
	bdj status
	note "store: $(json snapshots.0.store)"
	if [ "$type" = ext4 ]; then
		# A frozen ext4 is clean; a running one is not.
		if needs_recovery "$IMAGE"; then fail "the image was not taken from a frozen file system"; fi
		needs_recovery "$dev" || fail "the origin looks clean too: this check proves nothing"
	fi
	mounted "$IMAGE" "$image" "$opts"
	manifest "$image/tree" >"$T/image0"
	same_files "$T/before" "$T/image0"

	step "$type: change the origin, read the image meanwhile"
	bg churn churn run "$dir/tree" --seconds 10 --threads 2 --grow 4M --pace-us 1000 --seed 12
	drop_caches
	manifest "$image/tree" >"$T/image1"
	same_files "$T/before" "$T/image1"
	bg_wait churn
	sync -f "$dir"
	unmounted "$image"
	drop_caches
	mounted "$IMAGE" "$image" "$opts"
	manifest "$image/tree" >"$T/image2"
	same_files "$T/before" "$T/image2"
	unmounted "$image"
	manifest "$dir/tree" >"$T/after"
	differ "$T/before" "$T/after"

	step "$type: a copy of the image recovers and checks clean"
	whole_copy "$type" "$IMAGE" "$scratch" "$check"
	same_files "$T/before" "$T/copy"
	unsnap "$SNAP"

	step "$type: a cut in the middle of changes"
	bg churn churn run "$dir/tree" --seconds 3600 --threads 2 --grow 4M --pace-us 2000 --seed 13
	sleep 2
	snap "$dev" --store "file:$dir,size=64M"
	mounted "$IMAGE" "$image" "$opts"
	manifest "$image/tree" >"$T/image0"
	sleep 3
	bg_stop churn
	drop_caches
	unmounted "$image"
	whole_copy "$type" "$IMAGE" "$scratch" "$check"
	same_files "$T/image0" "$T/copy"
	unsnap "$SNAP"
	if find "$dir" -newer "$T/before" -size +20M | grep .; then fail "a store file is left in $dir"; fi
	step "$type: the origin itself is sound"
	unmounted "$dir"
	$check "$dev" >"$T/fsck" 2>&1 || {
		tail -n 20 "$T/fsck"
		fail "the origin is damaged"
	}
}

# whole_copy TYPE IMAGE DEV CHECK: copies the image, lets the file system recover on
# the copy (unlinked files), checks it, and leaves the manifest of its tree in $T/copy.
whole_copy() {
	dd if="$2" of="$3" bs=1M iflag=direct conv=fsync status=none || fail "can't copy $2"
	local opts=
	if [ "$1" = xfs ]; then opts=nouuid; fi
	mounted "$3" /mnt/copy "$opts"
	manifest /mnt/copy/tree >"$T/copy"
	unmounted /mnt/copy
	$4 "$3" >"$T/fsck" 2>&1 || {
		tail -n 20 "$T/fsck"
		fail "$4 finds errors in the copy of the image"
	}
	note "clean: $4 of a copy"
}

# apart DEVICE SINCE: the JSON, in $T/apart.json; without --discards all of it is in one list
apart() {
	bdj changes "$1" --since "$2" --discards
	cp "$OUT" "$T/apart.json"
	bdj changes "$1" --since "$2"
	jq -c '[.extents[], .discards[]] | sort_by(.offset) | reduce .[] as $e ([];
		if length > 0 and .[-1].offset + .[-1].length == $e.offset then .[-1].length += $e.length else . + [$e] end)' \
		"$T/apart.json" >"$T/both"
	jq -c .extents "$OUT" >"$T/one"
	cmp "$T/one" "$T/both" || fail "the two lists are not what changed"
}
# zeros_there IMAGE: what is listed in $T/apart.json as discarded reads as zeros (on a disk where discards do that)
zeros_there() {
	python3 - "$1" "$T/apart.json" <<'END' || fail "data in what is listed as discarded"
import json, sys
image = open(sys.argv[1], "rb")
holes, blocks = json.load(open(sys.argv[2]))["discards"], 0
for hole in holes:
    image.seek(hole["offset"])
    data = image.read(hole["length"])
    assert len(data) == hole["length"], hole
    assert not any(data), f"data in {hole}"
    blocks += 1
print(f"   {blocks} ranges listed as discarded, all zeros")
END
}

# What only some tests need.
# shellcheck source=tests/vm/lib-oracle.sh
. /tests/vm/lib-oracle.sh
# shellcheck source=tests/vm/lib-stack.sh
. /tests/vm/lib-stack.sh
