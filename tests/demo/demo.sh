#!/bin/bash
# In the VM, for tests/demo/run: two live volumes are backed up fully, then incrementally, and restored to
# blank disks; then everything is compared. Ends with what failed, if anything did (status 1).
set -euo pipefail
export LC_ALL=C
EXT4=/dev/vdb XFS=/dev/vdc BACKUP=/dev/vdd NEW_EXT4=/dev/vde NEW_XFS=/dev/vdf
W=/run/demo
FAILED=()

now() { local s _; read -r s _ </proc/uptime; echo "${s%.*}"; }
T0=$(now)
if [ -n "${COLOR:-}" ]; then BOLD=$'\e[1m' PLAIN=$'\e[0m'; else BOLD='' PLAIN=''; fi
step() { printf '\n%s[%3ds] %s%s\n' "$BOLD" $(($(now) - T0)) "$*" "$PLAIN"; }
show() { printf '$ %s\n' "$*"; }
# run CMD...: shown, then run
run() { show "$@"; "$@" || stop "$* (status $?)"; }
stop() { printf '\nFAILED: %s\n' "$*"; dmesg | tail -n 15; exit 1; }
trap 'stop "line $LINENO: $BASH_COMMAND"' ERR
# prove WHAT CMD...: runs CMD with its output in a file; prove_end waits for all of them and tells
WHAT=() PIDS=()
prove() {
	local n=${#PIDS[@]}
	show "${@:2}"
	"${@:2}" >"$W/proof.$n" 2>&1 &
	PIDS+=($!)
	WHAT+=("$1")
}
prove_end() {
	local n
	for n in "${!PIDS[@]}"; do
		if wait "${PIDS[n]}"; then
			printf '  ok    %s\n' "${WHAT[n]}$(note "$n")"
		else
			printf '  WRONG %s\n' "${WHAT[n]}"
			tail -n 10 "$W/proof.$n" | sed 's/^/        /'
			FAILED+=("${WHAT[n]%:}")
		fi
	done
	WHAT=() PIDS=()
}
note() { case ${WHAT[$1]} in *:) printf ' '; tail -n 1 "$W/proof.$1" ;; esac; }
mib() { awk -v n="$1" 'BEGIN { printf "%.1f MiB", n / 1048576 }'; }
json() { jq -r "$2" "$W/$1.json"; }

mkdir -p $W /data/ext4 /data/xfs /backup /image/ext4 /image/xfs /restored/ext4 /restored/xfs

step "two volumes with real data, in use; a third disk for the backups"
mount $EXT4 /data/ext4
mount $XFS /data/xfs
mkfs.ext4 -q $BACKUP
mount $BACKUP /backup
df -hT /data/ext4 /data/xfs /backup | cut -c1-80
echo "kernel: $(uname -r), unmodified"

step "load the module; track changes from now on"
run modprobe bdsnap
run bdsnap track $EXT4 $XFS

step "an SQLite database under constant writing on the ext4; files that come, change and go on the XFS"
mkdir /data/ext4/db
/tests/demo/writer.py bank /data/ext4/db/bank.sqlite $W/count >$W/bank.log 2>&1 &
BANK=$!
/tests/demo/writer.py files /data/xfs/files >$W/files.log 2>&1 &
FILES=$!
writers_well() { { kill -0 $BANK && kill -0 $FILES; } 2>/dev/null || stop "a program that writes has ended: $(cat $W/bank.log $W/files.log)"; }
count() { cat $W/count 2>/dev/null || echo 0; }
while [ "$(count)" -lt 50 ]; do sleep 0.2; done
echo "$(count) transactions so far"

# backup NAME OPTION...: both volumes from one snapshot
backup() {
	show "bdsnap --json backup $EXT4 $XFS --to /backup ${2:+${*:2} }>$1.json"
	BEFORE=$(count)
	bdsnap --json backup $EXT4 $XFS --to /backup "${@:2}" >"$W/$1.json" || stop "backup: $(cat "$W/$1.json")"
	AFTER=$(count)
	writers_well
	json "$1" '.devices[] | "\(.device) -> \(.file): \(.kind), \(.changed_bytes / 1048576 * 10 | round / 10) MiB changed, \(.bytes_written / 1048576 * 10 | round / 10) MiB written in \(.seconds * 10 | round / 10) s"'
	echo "$BEFORE transactions when it began, $AFTER when it was done"
}

step "back up both, from one snapshot: fully, as there is no backup yet"
backup full
[ "$(json full '[.devices[].kind] | unique[]')" = full ] || stop "this backup should be a full one"

step "the work goes on: files are copied, changed and removed; the database never rests"
run cp -r /data/ext4/linux/kernel /data/ext4/linux/kernel.new
run rm -r /data/ext4/linux/lib
run mv /data/xfs/include/clang /data/xfs/include/clang.new
show "seq 300000 >>/data/xfs/lib/libclangSema.a"
seq 300000 >>/data/xfs/lib/libclangSema.a

step "back up both again: incrementally, by itself; the snapshot is kept, to compare with"
backup incremental --keep-snapshot
[ "$(json incremental '[.devices[].kind] | unique[]')" = incremental ] || stop "this backup should be an incremental one"
ID=$(json incremental .snapshot)
# image ORIGIN
image() { bdsnap --json snapshot show "$ID" | jq -r --arg d "$1" '.devices[] | select(.device == $d) | .image'; }
IMAGE_EXT4=$(image $EXT4) IMAGE_XFS=$(image $XFS)
run bdsnap status

step "restore the chains to blank disks, while the writing goes on"
run bdsnap restore /backup --device vdb --to $NEW_EXT4
run bdsnap restore /backup --device vdc --to $NEW_XFS
writers_well

step "proof 1: the restored disks are the snapshot, byte for byte; the chains are sound"
# (as cmp does, but with O_DIRECT and large reads: much faster in an emulator)
prove "restored ext4 disk = image, all $(mib "$(blockdev --getsize64 $NEW_EXT4)")" qemu-img compare -f raw -F raw -T none $NEW_EXT4 "$IMAGE_EXT4"
prove "restored XFS disk = image, all $(mib "$(blockdev --getsize64 $NEW_XFS)")" qemu-img compare -f raw -F raw -T none $NEW_XFS "$IMAGE_XFS"
prove_end
for f in /backup/vd[bc]/point-000[12].qcow2; do prove "qemu-img finds no fault in $f" qemu-img check -q "$f"; done
prove_end
# (a check that the comparison can fail: the volume itself has moved on)
! cmp -s $EXT4 "$IMAGE_EXT4" || FAILED+=("the live volume equals its image: nothing was written")

step "proof 2: all files, by checksum: restored = image, and what nobody touched = the originals"
run mount $NEW_EXT4 /restored/ext4
run mount -o nouuid $NEW_XFS /restored/xfs
run mount -o ro,noload "$IMAGE_EXT4" /image/ext4
run mount -o ro,nouuid,norecovery "$IMAGE_XFS" /image/xfs
# manifest DIR FILE: checksums of all files in FILE, everything else about them in FILE.list
manifest() {
	cd "$1"
	find . -type f -printf '%P\0' | sort -z | xargs -0r md5sum >"$2"
	find . -printf '%P %y %m %U:%G %s %T@ %l\n' | sort >"$2.list"
}
echo '$ find . -type f | sort | xargs md5sum, in each of them'
for i in image restored; do
	manifest /$i/ext4 $W/$i-ext4 &
	A=$!
	manifest /$i/xfs $W/$i-xfs &
	wait $A || stop "can't read all files of /$i/ext4"
	wait $! || stop "can't read all files of /$i/xfs"
done
# originals MANIFEST TYPE TOUCHED: those of the originals' checksums that must be found unchanged are
originals() {
	grep -vE "  ($3)" "/mnt/share/$2" | sort >"$W/wanted-$2"
	sort "$1" | comm -13 - "$W/wanted-$2" >"$W/missing-$2"
	! grep '' "$W/missing-$2" || return 1
	echo "$(wc -l <"$W/wanted-$2") files"
}
same() { diff "$1" "$2" && diff "$1.list" "$2.list" && echo "$(wc -l <"$1") files"; }
prove "ext4: restored files = files in the image:" same $W/image-ext4 $W/restored-ext4
prove "XFS: restored files = files in the image:" same $W/image-xfs $W/restored-xfs
prove "ext4: untouched files = the originals:" originals $W/restored-ext4 ext4 linux/lib/
prove "XFS: untouched files = the originals:" originals $W/restored-xfs xfs 'include/clang/|lib/libclangSema.a$'
prove_end
[ ! -e /restored/ext4/linux/lib ] || FAILED+=("a removed directory is back")
[ -d /restored/xfs/include/clang.new ] || FAILED+=("a renamed directory is missing")
diff -r /restored/ext4/linux/kernel /restored/ext4/linux/kernel.new || FAILED+=("the copied directory is not a copy")

step "proof 3: the database is consistent, with every transaction committed before the backup"
prove "SQLite:" /tests/demo/writer.py check /restored/ext4/db/bank.sqlite "$BEFORE" "$AFTER"
prove_end

step "proof 4: the restored file systems are clean"
run umount /restored/ext4 /restored/xfs /image/ext4 /image/xfs
prove "ext4 is clean" e2fsck -fn $NEW_EXT4
prove "XFS is clean" xfs_repair -n $NEW_XFS
prove_end
writers_well
bdsnap --json snapshot show "$ID" >$W/end.json

step "done: nothing is left behind"
kill $BANK $FILES
wait $BANK || FAILED+=("the database's writer failed: $(cat $W/bank.log)")
wait $FILES || FAILED+=("the files' writer failed: $(cat $W/files.log)")
run bdsnap snapshot delete "$ID"
run bdsnap untrack --all
run umount /data/ext4 /data/xfs
run rmmod bdsnap

echo
speed() { json "$1" '[.devices[] | .bytes_read] | add' | awk -v s="$(json "$1" '[.devices[].seconds] | add')" '{ printf "%.0f MiB/s", $1 / 1048576 / s }'; }
sum() { mib "$(json "$1" "[.devices[].$2] | add")"; }
line() { printf '%-36s %14s %14s\n' "$@"; }
line '' full incremental
line 'size of both volumes' "$(sum full size)" "$(sum incremental size)"
line "changed (with the store's blocks)" "$(sum full changed_bytes)" "$(sum incremental changed_bytes)"
line 'read from the image' "$(sum full bytes_read)" "$(sum incremental bytes_read)"
line 'written to /backup' "$(sum full bytes_written)" "$(sum incremental bytes_written)"
line 'reading and writing at' "$(speed full)" "$(speed incremental)"
line 'file systems frozen for' "$(json full '.freeze_ms * 10 | round / 10') ms" "$(json incremental '.freeze_ms * 10 | round / 10') ms"
line 'writes held for' "$(json full '.gate_ms * 10 | round / 10') ms" "$(json incremental '.gate_ms * 10 | round / 10') ms"
line "copied to the store (of $(mib "$(json full .store_capacity)"))" "$(sum full bytes_copied)" "$(sum incremental bytes_copied)"
line '  at the end of the proofs' '' "$(mib "$(json end '.store.used')")"

[ ${#FAILED[@]} -eq 0 ] || { echo; printf 'FAILED: %s\n' "${FAILED[@]}"; exit 1; }
printf '\nAll proofs hold, after %d s.\n' $(($(now) - T0))
