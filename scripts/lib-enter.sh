# scripts/lib-enter.sh CMD...: the inner half of scripts/in-root: already in a private mount namespace,
# mounts what the root needs, enters it and runs CMD. Reads IN_ROOT, IN_REPO, IN_PWD, BDSNAP_CACHE.
# shellcheck shell=sh
set -eu

# lend DIR-OR-FILE: the machine's own, at the same place in the root
lend() {
	if [ -d "$1" ]; then
		[ -d "$IN_ROOT$1" ] || mkdir -p "$IN_ROOT$1"
	elif [ ! -e "$IN_ROOT$1" ]; then
		mkdir -p "$IN_ROOT${1%/*}" && : >"$IN_ROOT$1"
	fi
	mount --rbind "$1" "$IN_ROOT$1"
}

for d in /proc /sys /dev /tmp; do lend $d; done
for d in "$BDSNAP_CACHE" "$IN_REPO" "$IN_PWD" ${IN_ALSO:-}; do
	case $d in /proc* | /sys* | /dev/* | /tmp/*) continue ;; esac
	# inside another directory that is lent already: visible as it is
	[ -e "$IN_ROOT$d" ] && [ "$(stat -c %d:%i "$d")" = "$(stat -c %d:%i "$IN_ROOT$d")" ] && continue
	lend "$d"
done
for f in /etc/resolv.conf /etc/hosts; do
	[ ! -e "$f" ] || mount --bind "$(readlink -f "$f")" "$IN_ROOT$f" || :
done
[ ! -e /etc/ssl/certs/ca-certificates.crt ] || mount --rbind /etc/ssl/certs "$IN_ROOT/etc/ssl/certs"
for f in "${SSL_CERT_FILE:-}" "${CURL_CA_BUNDLE:-}" "${CARGO_HTTP_CAINFO:-}"; do
	case $f in '' | /etc/ssl/certs/*) continue ;; esac
	[ ! -f "$f" ] || [ -e "$IN_ROOT$f" ] || lend "$f"
done

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec chroot "$IN_ROOT" /usr/bin/env -u IN_ROOT -u IN_REPO -u IN_PWD -u IN_ALSO -C "$IN_PWD" "$@"
