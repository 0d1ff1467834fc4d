# scripts/lib.sh: what all scripts here share: the cache, messages with elapsed seconds, locks.
# Sourced by POSIX shells; sets REPO, CACHE, START.
# shellcheck shell=sh

REPO=$(cd "$(dirname "$0")/.." && pwd -P)
while [ ! -f "$REPO/scripts/lib.sh" ] && [ "$REPO" != / ]; do REPO=$(dirname "$REPO"); done
CACHE=${BDSNAP_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/bdsnap}
case $CACHE in /*) ;; *) CACHE=$PWD/$CACHE ;; esac
mkdir -p "$CACHE"
CACHE=$(cd "$CACHE" && pwd -P)
export BDSNAP_CACHE="$CACHE"
START=$(date +%s)
PROG=${0##*/}
umask 022

# say TEXT...: one line of progress on stderr, with the seconds since the script began
say() { printf '[%3ds] %s: %s\n' $(($(date +%s) - START)) "$PROG" "$*" >&2; }
die() { printf '%s: %s\n' "$PROG" "$*" >&2; exit 1; }

# step LOG TEXT CMD...: runs CMD with its output in LOG; on a terminal the newest line of the log is
# shown as it grows; a failure shows the end of the log and stops.
step() {
	_log=$1 _text=$2; shift 2
	say "$_text"
	_t0=$(date +%s)
	# a job of its own: there "set -e" holds, and a "cd" stays there
	(set -e; "$@") >"$_log" 2>&1 </dev/null &
	_pid=$!
	# such a job does not hear the terminal's Ctrl-C: pass it on to the whole process group
	trap 'trap "" TERM; kill -TERM 0; exit 130' INT
	trap 'kill $_pid; exit 143' TERM
	if [ -t 2 ]; then
		while kill -0 $_pid 2>/dev/null; do
			_last=$(tail -c 400 "$_log" 2>/dev/null | tr '\r' '\n' | tail -n 1 | tr -cd '[:print:]' | cut -c1-90)
			printf '\r\033[K  %4ds  %s' $(($(date +%s) - _t0)) "$_last" >&2
			sleep 1
		done
		printf '\r\033[K' >&2
	fi
	_rc=0; wait $_pid || _rc=$?
	trap - INT TERM
	if [ $_rc -ne 0 ]; then
		tail -n 30 "$_log" >&2
		die "failed after $(($(date +%s) - _t0)) s: $_text (whole log: $_log)"
	fi
}

# key TEXT...: a short name for what something is built from
key() { printf '%s\n' "$@" | sha256sum | cut -c1-12; }

# lock NAME: one process at a time builds NAME; held until the script ends (descriptor 9)
lock() {
	exec 9>"$CACHE/.lock-$1"
	if ! flock -n 9; then
		say "waiting for another process that builds $1"
		flock 9
	fi
}

# as_root CMD...: CMD with the rights of root over what this user owns: as it is for root, else in a
# user namespace where root is this user and the other ids are its subordinate ids.
as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else unshare --map-auto --map-root-user --mount "$@"; fi
}

# remove_tree DIR...: also what belongs to subordinate ids
remove_tree() { [ $# -eq 0 ] || as_root rm -rf --one-file-system -- "$@"; }

# need_host_tools: what the machine itself must have; installs them where it may
need_host_tools() {
	_miss=
	command -v mmdebstrap >/dev/null || _miss="mmdebstrap"
	[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || _miss="$_miss debian-archive-keyring"
	if [ "$(id -u)" != 0 ]; then
		command -v newuidmap >/dev/null || _miss="$_miss uidmap"
	fi
	if [ -n "$_miss" ]; then
		[ "$(id -u)" = 0 ] || die "missing on this machine; install it with: sudo apt-get install $_miss"
		say "installing $_miss"
		# shellcheck disable=SC2086
		{ apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $_miss
		} >"$CACHE/host-apt.log" 2>&1 </dev/null || die "apt-get install $_miss failed: see $CACHE/host-apt.log"
	fi
	[ "$(id -u)" = 0 ] && return
	unshare --map-auto --map-root-user --mount true 2>/dev/null ||
		die "this user may not use user namespaces with subordinate ids: add the user to /etc/subuid and /etc/subgid (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)), or run as root"
}

# mirror: the Debian mirror of this machine's own apt set-up
mirror() {
	# shellcheck disable=SC2016 # apt's own fields
	_m=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 2>/dev/null |
		awk -F'|' '$1 == "Debian" && $2 == "Debian" { print $3; exit }')
	# shellcheck disable=SC2016
	[ -n "$_m" ] || _m=$(apt-get indextargets --format '$(SITE)|$(REPO_URI)' 2>/dev/null |
		awk -F'|' '$2 ~ /\/debian\/?$/ { print $2; exit }')
	printf '%s\n' "${_m%/}"
}

# apt_sources SUITE...: sources.list lines, of the machine's own mirror
apt_sources() {
	_m=$(mirror)
	[ -n "$_m" ] || die "apt on this machine names no Debian mirror (apt-get indextargets): run apt-get update first"
	for _s in "$@"; do
		printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$_m" "$_s"
	done
}

# host_apt_options: this machine's apt proxy set-up, one option a line
host_apt_options() { apt-config dump 2>/dev/null | grep -E '^Acquire::(http|https)::(Proxy|Proxy-Auto-Detect|CAInfo)' || :; }
