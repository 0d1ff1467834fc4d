# shellcheck shell=bash
# ---- the oracle: a log of all writes below the origin -----------------------------------------
#
# dm-log-writes under the origin logs every write. Replaying the log gives the true content of
# the origin at any instant, without asking bdsnap or the origin. Use:
#   logged NAME LOWER LOGDEV    $LOGGED is the device to work with. Before anything is on it, or with what is
#                               on it as a file in ORACLE_BASE, and after discards_of. LOGDEV is blank.
#   ORACLE_PAUSE=(JOB… DIR…)    background jobs to stop, file systems to freeze, while a mark is set
#   oracle_cut CUT DEV… [options of snap]    a snapshot, under way between two marks
#   oracle_check CUT IMAGE      IMAGE must be, byte for byte, what the origin was at one instant between them
#   oracle_changes OLD NEW DEV  every block that differs between the two cuts must be in `changes`
# Everything that was completed before a mark is before it in the log. The cut drains, so what the image
# shows must be the state after some number of writes, in the order of their completion.

ORACLE_PAUSE=()
ORACLE_BASE=	# what the device held when the log began; empty: zeros
ORACLE_DISCARDS=any	# what the lower device does with discards: keep, zeros, any
declare -A ORACLE_NUM=()	# number of each cut

# Write caches: the log is in the order of completion only for writes without FUA
# and flush. The kernel strips these (after bdsnap has seen them) where there is no write cache.
log_cache() { echo "$1" >"/sys/block/$(basename "$(readlink -f "$LOGGED")")/queue/write_cache"; }

# discards_of BLANK_DEV: sets ORACLE_DISCARDS
discards_of() {
	local unit
	unit=$(blockdev --getss "$1")
	head -c 64K /dev/zero | tr '\0' '\252' | dd of="$1" bs=64K count=1 iflag=fullblock oflag=direct status=none
	blkdiscard -f -o "$unit" -l $((unit * 5)) "$1" 2>/dev/null || true
	case $(dd if="$1" bs="$unit" skip=1 count=5 iflag=direct status=none | od -An -v -tx1 -w1 | sort -u | tr -d ' \n') in
	aa) ORACLE_DISCARDS=keep ;;
	00) ORACLE_DISCARDS=zeros ;;
	*) ORACLE_DISCARDS=any ;;
	esac
	dd if=/dev/zero of="$1" bs=64K count=1 oflag=direct status=none
	note "discarded blocks of $1: $ORACLE_DISCARDS"
}

# logged NAME LOWER LOGDEV: a device on LOWER whose writes are logged to LOGDEV. Sets LOGGED, LOGDEV.
logged() {
	modprobe dm-log-writes 2>/dev/null || skip "no dm-log-writes"
	[ -n "$ORACLE_BASE" ] || discards_of "$2"
	LOG_NAME=$1 LOGDEV=$3
	# no log of before
	dd if=/dev/zero of="$3" bs=64K count=1 oflag=direct status=none
	echo "0 $(blockdev --getsz "$2") log-writes $2 $3" | dmsetup create "$1"
	LOGGED=/dev/mapper/$1
	wait_for 5 test -b "$LOGGED" || fail "no $LOGGED"
	log_cache "write through"
}

# log_mark MARK: while nobody writes
log_mark() {
	log_cache "write back"
	sync "$LOGGED"
	dmsetup message "$LOG_NAME" 0 mark "$1"
	log_cache "write through"
	if dmsetup status "$LOG_NAME" | grep disabled; then fail "the log of writes is full"; fi
}

all_stopped() { ! cat /proc/"$1"/task/*/stat | sed 's/.*) //' | grep -qv '^[Tt]'; }

# log_pause; log_resume: stops and resumes those that write
log_pause() {
	local i
	for i in "${ORACLE_PAUSE[@]}"; do
		if [ -d "$i" ]; then
			fsfreeze -f "$i"
		else
			kill -STOP "${BG[$i]}"
			wait_for 30 all_stopped "${BG[$i]}" || fail "$i does not stop"
		fi
	done
}

log_resume() {
	local i
	for i in "${ORACLE_PAUSE[@]}"; do
		if [ -d "$i" ]; then fsfreeze -u "$i"; else kill -CONT "${BG[$i]}"; fi
	done
}

# oracle_mark MARK: a mark, with the writers stopped for it
oracle_mark() {
	log_pause
	log_mark "$1"
	log_resume
}

# oracle_cut CUT DEV… [options of snap]
oracle_cut() {
	oracle_mark "$1-before"
	snap "${@:2}" --skip-free off
	oracle_mark "$1-after"
	ORACLE_NUM[$1]=$NUM
}

# log_replay COMMAND [argument…]: of replay, on this log
log_replay() {
	replay "$1" "$LOGDEV" "${@:2}" --discards "$ORACLE_DISCARDS" ${ORACLE_BASE:+--base "$ORACLE_BASE"} | sed 's/^/   /'
}

# oracle_check CUT IMAGE
oracle_check() {
	drop_caches
	log_replay find "$2" --from "$1-before" --to "$1-after" --out "$T/$1.at"
}

# oracle_changes OLD NEW DEV [option of replay changes…]: after an oracle_check of both; DEV is
# the origin while NEW is its newest cut, or the image of NEW
oracle_changes() {
	bdj changes "$3" --since "${ORACLE_NUM[$1]}" >/dev/null
	cp "$OUT" "$T/changes.json"
	log_replay changes "$T/changes.json" --size-of "$3" --from "$(cat "$T/$1.at")" --to "$(cat "$T/$2.at")" "${@:4}"
}
