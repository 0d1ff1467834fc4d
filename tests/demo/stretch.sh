#!/bin/bash
# In the VM, for make demo-stretch: a snapshot whose store starts with 64 MiB on the very file system that it is of, while
# that is overwritten for several GiB; the store is drawn as it grows. Then the image is compared.
set -euo pipefail
export LC_ALL=C
DISK=/dev/vdb W=/run/demo MIB=${MIB:-2048} FS=${FS:-ext4}
case $FS in
ext4) HOW=ro,noload CHECK=(e2fsck -fn) ;;
xfs) HOW=ro,norecovery,nouuid CHECK=(xfs_repair -n) ;;
esac
mkdir -p $W /data /image
if [ -n "${COLOR:-}" ]; then BOLD=$'\e[1m' PLAIN=$'\e[0m'; else BOLD='' PLAIN=''; fi
T0=$(date +%s)
step() { printf '\n%s[%3ds] %s%s\n' "$BOLD" $(($(date +%s) - T0)) "$*" "$PLAIN"; }
stop() { printf '\nFAILED: %s\n' "$*"; dmesg | tail -n 15; exit 1; }
run() { printf '$ %s\n' "$*"; "$@" || stop "$* (status $?)"; }
trap 'stop "line $LINENO: $BASH_COMMAND"' ERR

step "an $FS with a file of $MIB MiB in use, and as much in free space that was in use before"
mkfs.$FS -q $DISK
mount $DISK /data
dd if=/dev/urandom bs=1M count=64 status=none >$W/block
# fill FILE NAME: 64 MiB at a time, each with its own beginning
fill() {
	local i
	cp $W/block "$W/$2"
	for ((i = 0; i < MIB; i += 64)); do
		printf '%-31s\n' "$2 $i" | dd of="$W/$2" bs=32 conv=notrunc status=none
		dd if="$W/$2" of="$1" bs=4M seek=$((i / 4)) conv=notrunc status=none
	done
	rm "$W/$2"
}
fill /data/file first
fill /data/gone old
sync -f /data
rm /data/gone
sync -f /data
SUM=$(md5sum </data/file)
df -h /data | cut -c1-60

step "the service, and a snapshot with a store of 64 MiB beside the file"
run modprobe bdsnap
run bdsnap track $DISK
printf '$ bdsnap service &\n'
bdsnap service >$W/service.log 2>&1 &
SERVICE=$!
sleep 1
run bdsnap snapshot create $DISK --store file:/data,size=64M,limit=$((MIB * 3 / 2))M,portion=256M,on-full=hold=60

step "the file is overwritten, and more is written, as fast as can be"
{ fill /data/file second; fill /data/more third; fill /data/file fourth; sync -f /data; } &
WRITER=$!
while kill -0 $WRITER 2>/dev/null; do
	printf '[%3ds] %s\n' $(($(date +%s) - T0)) "$(bdsnap snapshot show "$(bdsnap --json snapshot list | jq -r '.snapshots[0].id')" | sed -n 's/^store *//p')"
	sleep 2
done
wait $WRITER || stop "the writer"
echo "what the service did:"
cut -d' ' -f4- $W/service.log | sed 's/^/  /'

step "the file in the image is what it was"
mount -o $HOW /dev/bdsnap-image0 /image
NOW=$(md5sum </image/file)
echo "at the cut $SUM"
echo "in the image $NOW"
[ "$SUM" = "$NOW" ] || stop "it differs"
umount /image
run bdsnap status
run bdsnap snapshot delete --all
run bdsnap untrack --all
kill $SERVICE
wait $SERVICE || stop "the service"
umount /data
"${CHECK[@]}" $DISK >/dev/null 2>&1 || stop "${CHECK[0]} finds errors on the disk"
step "done: $((3 * MIB)) MiB were written; the snapshot kept $MIB MiB of old data, and nothing of what was free"
