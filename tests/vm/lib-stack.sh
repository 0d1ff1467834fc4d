# shellcheck shell=bash
# ---- stacks of devices ----------------------------------------------------------------

# node DEV: its kernel name, "dm-3"
node() { basename "$(readlink -f "$1")"; }

# number_of DEV: "MAJOR:MINOR"
number_of() { cat "/sys/class/block/$(node "$1")/dev"; }

# over_images TOP BOTTOM…: makes /dev/mapper/again, the device-mapper table of TOP over the images
# (in $IMAGES: of TOP first, then of BOTTOM…): what TOP would hold on disks like these images.
over_images() {
	local table i devs=("$@")
	table=$(dmsetup table --showkeys "$1")
	for ((i = 1; i < $#; i++)); do
		table=$(sed "s/\b$(number_of "${devs[i]}")\b/$(number_of "${IMAGES[i]}")/" <<<"$table")
	done
	dmsetup create again --readonly <<<"$table" || fail "can't make $1 over the images: $table"
	udevadm settle
}

# same_through REBUILD DEV…: REBUILD DEV… makes /dev/mapper/again out of the images of the lower
# devices; it must hold what the image of the upper one holds, so all were cut at one instant.
same_through() {
	digest take "${IMAGES[0]}" "$T/top.digest" --direct >/dev/null
	"$@"
	digest take /dev/mapper/again "$T/again.digest" --direct >/dev/null
	dmsetup remove --retry again
	digest diff "$T/top.digest" "$T/again.digest" ||
		fail "the images of ${*:2} are not of one instant"
}

# devices_at SUFFIX DEV…: their digests go to $T/0.SUFFIX, $T/1.SUFFIX …
devices_at() {
	local suffix=$1 i=0 dev
	for dev in "${@:2}"; do
		digest take "$dev" "$T/$i.$suffix" --direct >/dev/null
		i=$((i + 1))
	done
}

# images_at SUFFIX [image…]: the images ($IMAGES) must have these digests
images_at() {
	local i=0 image
	for image in "${IMAGES[@]}"; do
		same_image "$T/$i.$1" "$image" --direct
		i=$((i + 1))
	done
}

# stack NAME REBUILD STORE TOP BOTTOM…: TOP lies on BOTTOM…. One of them, or all in one set, are
# cut at rest and under writes to TOP: each image is its origin at the cut and stays so, all of a set are
# of one instant (see same_through; "-" for REBUILD: not checked), no change is missed.
# MIX is what it writes. Needs store_on before; STORE is what `file:/mnt/store,size=` takes.
stack() {
	local name=$1 rebuild=$2 store=file:/mnt/store,size=$3 top=$4 i
	shift 3
	local devs=("$@") n=$# back=() numbers first images
	for ((i = n - 1; i >= 0; i--)); do back+=("${devs[i]}"); done
	LOAD=(stomp run "$top" --writers 2 --max 128K --mix "${MIX:-write=90,discard=5,zeroout=5}" --pace-us 500)

	step "$name: top alone"
	stomp fill "$top" --seq 1
	quiet_down "${devs[@]}"
	devices_at a "$top"
	snap "$top" --no-freeze --store "$store"
	"${LOAD[@]}" --seconds 1 --seed 400 >/dev/null
	images_at a
	bd snapshot delete --all
	bd untrack --all

	step "$name: bottom alone"
	quiet_down "${devs[@]}"
	devices_at a "${devs[@]:1}"
	snap "${devs[@]:1}" --no-freeze --store "$store"
	"${LOAD[@]}" --seconds 1 --seed 401 >/dev/null
	quiet_down "${devs[@]}"
	images_at a
	devices_at b "${devs[@]:1}"
	digest diff "$T/0.a" "$T/0.b" --expect-different >/dev/null || fail "nothing was written to ${devs[1]}"
	bd snapshot delete --all

	step "$name: all in one set, at rest"
	devices_at a "${devs[@]}"
	snap "${devs[@]}" --no-freeze --store "$store"
	first=$SNAP images=("${IMAGES[@]}")
	mapfile -t numbers < <(json 'devices.*.number')
	images_at a
	[ "$rebuild" = - ] || same_through "$rebuild" "${devs[@]}"

	step "$name: the same under writes to the top, and another cut meanwhile, bottom named first"
	bg load "${LOAD[@]}" --seconds 3600 --seed 402 --seq-base 5000
	sleep 1
	images_at a
	snap "${back[@]}" --no-freeze --store "$store"
	note "held writes for $(json gate_ms) ms"
	back=()
	for ((i = n - 1; i >= 0; i--)); do back+=("${IMAGES[i]}"); done
	IMAGES=("${back[@]}")
	devices_at b "${IMAGES[@]}"
	[ "$rebuild" = - ] || same_through "$rebuild" "${devs[@]}"
	running load || fail "$top: the writer ended"
	for ((i = 0; i < n; i++)); do
		digest diff "$T/$i.a" "$T/$i.b" --expect-different >/dev/null || fail "${devs[i]} did not change between the cuts"
		bdj changes "${devs[i]}" --since "${numbers[i]}" >/dev/null
		cp "$OUT" "$T/changes.json"
		digest changes "$T/$i.a" "$T/$i.b" "$T/changes.json" | sed "s|^|   ${devs[i]}: |"
	done
	bg_stop load
	images_at b
	IMAGES=("${images[@]}")
	images_at a
	bdj status
	equal "states of the snapshots" "$(json 'snapshots.*.state' | sort -u)" ok
	note "the first snapshot's store holds $(json snapshots.0.store.used) bytes"
	stomp check "$top" --allow-zero | sed 's/^/   /'
	unsnap "$first"
	bd snapshot delete --all
	bd untrack --all
}

# quiet_down DEV…: waits until nothing is written to them any more (superblocks, bitmaps, write back)
quiet_down() {
	local before='' now dev
	sync
	udevadm settle
	while :; do
		now=$(for dev in "$@"; do awk '{ print $5, $7, $9 }' "/sys/class/block/$(node "$dev")/stat"; done)
		if [ "$now" = "$before" ]; then break; fi
		before=$now
		sleep 0.5
	done
}

# scsi_debug_up OPTION…: loads it; DEBUGS are its disks, as they were found
scsi_debug_up() {
	local disk
	modprobe -a sd_mod sg
	modprobe scsi_debug "$@" || fail "no scsi_debug"
	udevadm settle
	DEBUGS=()
	for disk in /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*; do
		DEBUGS+=("/dev/${disk##*/}")
	done
	[ -b "${DEBUGS[0]}" ] || fail "scsi_debug has no disk"
}

scsi_debug_down() {
	udevadm settle
	wait_for 20 modprobe -r scsi_debug || fail "scsi_debug can't be unloaded"
}

# null_blk NAME ATTRIBUTE=VALUE…: a disk in memory; NULL_BLK is its path. null_blk_down NAME…
null_blk() {
	local dir=/sys/kernel/config/nullb/$1 attribute
	modprobe null_blk nr_devices=0 || fail "no null_blk"
	mkdir "$dir"
	for attribute in size=64 memory_backed=1 "${@:2}"; do
		echo "${attribute#*=}" >"$dir/${attribute%%=*}" || fail "null_blk: no $attribute"
	done
	echo 1 >"$dir/power"
	NULL_BLK=/dev/$1
	wait_for 10 test -b "$NULL_BLK" || fail "no $NULL_BLK"
	udevadm settle
}
null_blk_down() {
	local name
	udevadm settle
	for name in "$@"; do rmdir "/sys/kernel/config/nullb/$name"; done
}

# vm_ask COMMAND ARGUMENTS: asks the emulator for a change of this machine (QMP), as JSON
vm_ask() {
	local port
	port=/dev/$(basename "$(dirname "$(grep -lx qmp /sys/class/virtio-ports/*/name)")")
	timeout 20 python3 - "$port" "$1" "$2" <<'END' || fail "the emulator refuses $1 $2"
import json, os, sys
port = os.open(sys.argv[1], os.O_RDWR)
lines = os.fdopen(os.dup(port))
for ask in {"execute": "qmp_capabilities"}, {"execute": sys.argv[2], "arguments": json.loads(sys.argv[3])}:
    os.write(port, json.dumps(ask).encode() + b"\n")
    answer = {}
    while not {"return", "error"} & answer.keys():
        answer = json.loads(lines.readline())
assert "return" in answer, answer
END
}

# snapshot_is ID STATE ERROR: what status says of it
snapshot_is() {
	local i
	bdj status >/dev/null
	for ((i = 0; i < $(json 'snapshots.#'); i++)); do
		if [ "$(json "snapshots.$i.id")" = "$1" ]; then
			equal "state and error of the snapshot" "$(json "snapshots.$i.state") $(json "snapshots.$i.error")" "$2 $3"
			return
		fi
	done
	fail "snapshot $1 is not in status"
}
