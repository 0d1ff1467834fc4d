// SPDX-License-Identifier: GPL-2.0
/*
 * example: the whole life of a snapshot through the ioctls alone, for those who
 * use the ABI from C. It needs nothing but <bdsnap.h>:
 *
 *	cc -std=c11 -Wall -Wextra -Werror -O2 -static -I include/uapi \
 *		-o example tests/abi/example.c
 *
 *	example DEVICE STORE_FILE [FILE_SYSTEM...]
 *
 * DEVICE is tracked and cut; STORE_FILE is made (on ext4 or XFS) and holds
 * the old data; the FILE_SYSTEMs (any path on each) are frozen for the cut.
 * It then changes one block of DEVICE and shows that the image has not
 * changed, and that the change map knows. THE FIRST 64 KiB OF DEVICE ARE
 * OVERWRITTEN. Exit status: 0 all well, 1 not, 2 wrong usage.
 */
#define _GNU_SOURCE
#include <bdsnap.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

/* The layout is a promise: what a compiler makes of the header must not change. */
#define AT(type, field, offset) \
	_Static_assert(offsetof(struct type, field) == (offset), #type "." #field)
#define SIZE(type, bytes) \
	_Static_assert(sizeof(struct type) == (bytes), #type)

SIZE(bdsnap_version, 56);
AT(bdsnap_version, abi, 8);
AT(bdsnap_version, hook, 12);
AT(bdsnap_version, features, 16);
AT(bdsnap_version, release, 24);
SIZE(bdsnap_track, 48);
AT(bdsnap_track, major, 8);
AT(bdsnap_track, minor, 12);
AT(bdsnap_track, block_size, 16);
AT(bdsnap_track, cause, 20);
AT(bdsnap_track, generation, 24);
AT(bdsnap_track, number, 40);
SIZE(bdsnap_untrack, 16);
SIZE(bdsnap_list, 40);
AT(bdsnap_list, count, 8);
AT(bdsnap_list, item_size, 12);
AT(bdsnap_list, buffer, 16);
AT(bdsnap_list, id, 24);
SIZE(bdsnap_origin_info, 112);
AT(bdsnap_origin_info, name, 8);
AT(bdsnap_origin_info, device_size, 40);
AT(bdsnap_origin_info, generation, 56);
AT(bdsnap_origin_info, number, 72);
AT(bdsnap_origin_info, oldest, 80);
AT(bdsnap_origin_info, snapshots, 88);
AT(bdsnap_origin_info, cause, 92);
AT(bdsnap_origin_info, bytes_copied, 96);
AT(bdsnap_origin_info, writes_parked, 104);
SIZE(bdsnap_store_add, 96);
AT(bdsnap_store_add, store, 8);
AT(bdsnap_store_add, kind, 16);
AT(bdsnap_store_add, fd, 20);
AT(bdsnap_store_add, major, 24);
AT(bdsnap_store_add, minor, 28);
AT(bdsnap_store_add, granule, 32);
AT(bdsnap_store_add, extent_count, 36);
AT(bdsnap_store_add, buffer, 40);
AT(bdsnap_store_add, offset, 48);
AT(bdsnap_store_add, length, 56);
AT(bdsnap_store_add, capacity, 64);
AT(bdsnap_store_add, cause, 72);
AT(bdsnap_store_add, run, 76);
AT(bdsnap_store_add, snapshot, 80);
SIZE(bdsnap_store_drop, 16);
AT(bdsnap_store_drop, store, 8);
SIZE(bdsnap_snapshot_device, 80);
AT(bdsnap_snapshot_device, image_major, 8);
AT(bdsnap_snapshot_device, image_name, 16);
AT(bdsnap_snapshot_device, device_size, 48);
AT(bdsnap_snapshot_device, generation, 56);
AT(bdsnap_snapshot_device, number, 72);
SIZE(bdsnap_snapshot_create, 128);
AT(bdsnap_snapshot_create, id, 8);
AT(bdsnap_snapshot_create, store, 24);
AT(bdsnap_snapshot_create, devices, 32);
AT(bdsnap_snapshot_create, freeze_fds, 40);
AT(bdsnap_snapshot_create, device_count, 48);
AT(bdsnap_snapshot_create, freeze_count, 52);
AT(bdsnap_snapshot_create, freeze_timeout_ms, 56);
AT(bdsnap_snapshot_create, drain_timeout_ms, 60);
AT(bdsnap_snapshot_create, cause, 64);
AT(bdsnap_snapshot_create, fail_index, 68);
AT(bdsnap_snapshot_create, created_ns, 72);
AT(bdsnap_snapshot_create, freeze_ns, 80);
AT(bdsnap_snapshot_create, gate_ns, 88);
AT(bdsnap_snapshot_create, store_limit, 96);
AT(bdsnap_snapshot_create, store_portion, 104);
AT(bdsnap_snapshot_create, note, 112);
AT(bdsnap_snapshot_create, note_len, 120);
AT(bdsnap_snapshot_create, hold_ms, 124);
SIZE(bdsnap_snapshot_note, 40);
AT(bdsnap_snapshot_note, id, 8);
AT(bdsnap_snapshot_note, buffer, 24);
AT(bdsnap_snapshot_note, length, 32);
AT(bdsnap_snapshot_note, reserved, 36);
SIZE(bdsnap_serve, 16);
AT(bdsnap_serve, served, 8);
AT(bdsnap_serve, reserved, 12);
SIZE(bdsnap_snapshot_ref, 24);
AT(bdsnap_snapshot_ref, id, 8);
SIZE(bdsnap_snapshot_info, 120);
AT(bdsnap_snapshot_info, created_ns, 16);
AT(bdsnap_snapshot_info, state, 24);
AT(bdsnap_snapshot_info, device_count, 32);
AT(bdsnap_snapshot_info, store_capacity, 40);
AT(bdsnap_snapshot_info, kept, 64);
AT(bdsnap_snapshot_info, store_waiting, 76);
AT(bdsnap_snapshot_info, store_wanted, 80);
AT(bdsnap_snapshot_info, store_rate, 88);
AT(bdsnap_snapshot_info, store_seconds, 96);
AT(bdsnap_snapshot_info, hold_ms, 104);
AT(bdsnap_snapshot_info, note_len, 108);
AT(bdsnap_snapshot_info, run, 112);
SIZE(bdsnap_version_info, 184);
AT(bdsnap_version_info, name, 8);
AT(bdsnap_version_info, image_major, 40);
AT(bdsnap_version_info, image_name, 48);
AT(bdsnap_version_info, device_size, 80);
AT(bdsnap_version_info, generation, 88);
AT(bdsnap_version_info, number, 104);
AT(bdsnap_version_info, state, 112);
AT(bdsnap_version_info, bytes_copied, 120);
AT(bdsnap_version_info, bytes_lost, 128);
AT(bdsnap_version_info, bytes_not_kept, 136);
AT(bdsnap_version_info, openers, 144);
AT(bdsnap_version_info, bytes_free, 152);
AT(bdsnap_version_info, bytes_unneeded, 160);
AT(bdsnap_version_info, bytes_released, 168);
AT(bdsnap_version_info, since, 176);
SIZE(bdsnap_since, 40);
AT(bdsnap_since, generation, 16);
AT(bdsnap_since, since, 32);
SIZE(bdsnap_record, 16);
AT(bdsnap_record, major, 8);
AT(bdsnap_record, minor, 12);
SIZE(bdsnap_map_read, 96);
AT(bdsnap_map_read, generation, 16);
AT(bdsnap_map_read, since, 32);
AT(bdsnap_map_read, first_block, 40);
AT(bdsnap_map_read, count, 48);
AT(bdsnap_map_read, buffer, 56);
AT(bdsnap_map_read, number, 64);
AT(bdsnap_map_read, oldest, 72);
AT(bdsnap_map_read, device_size, 80);
AT(bdsnap_map_read, block_size, 88);
AT(bdsnap_map_read, reserved, 92);
SIZE(bdsnap_range, 16);
SIZE(bdsnap_mark, 32);
AT(bdsnap_mark, ranges, 16);
AT(bdsnap_mark, count, 24);
AT(bdsnap_mark, reserved, 28);
SIZE(bdsnap_events, 16);
AT(bdsnap_events, fd, 8);
AT(bdsnap_events, reserved, 12);
SIZE(bdsnap_event, 104);
AT(bdsnap_event, time_ns, 8);
AT(bdsnap_event, type, 16);
AT(bdsnap_event, cause, 20);
AT(bdsnap_event, major, 24);
AT(bdsnap_event, minor, 28);
AT(bdsnap_event, name, 32);
AT(bdsnap_event, generation, 64);
AT(bdsnap_event, snapshot, 80);
AT(bdsnap_event, number, 96);

#define BLOCK		BDSNAP_BLOCK_SIZE_DEFAULT
#define STORE_BYTES	(16 << 20)
#define MAX_EXTENTS	1024

static void die(const char *what)
{
	fprintf(stderr, "example: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void check(int ok, const char *what)
{
	printf("example: %s: %s\n", what, ok ? "yes" : "NO");
	if (!ok)
		exit(1);
}

static __u64 addr(const void *p)
{
	return (__u64)(unsigned long)p;
}

static void *block_buffer(void)
{
	void *p = aligned_alloc(4096, BLOCK);

	if (!p)
		die("memory");
	return p;
}

static void read_block(const char *path, void *to)
{
	int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);

	if (fd < 0 || pread(fd, to, BLOCK, 0) != (ssize_t)BLOCK)
		die(path);
	close(fd);
}

static void write_block(const char *path, const void *from)
{
	int fd = open(path, O_WRONLY | O_DIRECT | O_CLOEXEC);

	if (fd < 0 || pwrite(fd, from, BLOCK, 0) != (ssize_t)BLOCK || fsync(fd))
		die(path);
	close(fd);
}

int main(int argc, char **argv)
{
	static struct fiemap_extent extents[MAX_EXTENTS];
	__s32 freeze[BDSNAP_MAX_FREEZE];
	struct timespec pause = { .tv_nsec = 50 * 1000 * 1000 };
	unsigned char *before, *now;
	char image[64];
	struct stat st;
	__u32 first = 0;
	int fd, file, i;

	if (argc < 3 || argc > 3 + (int)BDSNAP_MAX_FREEZE) {
		fprintf(stderr, "usage: %s DEVICE STORE_FILE [FILE_SYSTEM...]\n", argv[0]);
		return 2;
	}
	if (stat(argv[1], &st) || !S_ISBLK(st.st_mode)) {
		fprintf(stderr, "example: %s is not a block device\n", argv[1]);
		return 2;
	}
	fd = open(BDSNAP_DEVICE, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die(BDSNAP_DEVICE);

	/* What module is this? */
	struct bdsnap_version version = { .size = sizeof(version) };

	if (ioctl(fd, BDSNAP_IOC_VERSION, &version))
		die("BDSNAP_IOC_VERSION");
	printf("example: module %.32s, ABI %u, hook %s\n", version.release, version.abi,
	       version.hook ? "active" : "absent");
	check(version.abi == BDSNAP_ABI_VERSION, "the module speaks this header's ABI");

	/* Track the device. Again is no error. */
	struct bdsnap_track track = {
		.size = sizeof(track),
		.major = major(st.st_rdev),
		.minor = minor(st.st_rdev),
	};

	if (ioctl(fd, BDSNAP_IOC_TRACK, &track)) {
		fprintf(stderr, "example: cause %u\n", track.cause);
		die("BDSNAP_IOC_TRACK");
	}
	check(track.block_size == BLOCK, "changes are tracked in blocks of the default size");

	/* A file's blocks become the store: real blocks first, then the file is theirs. */
	file = open(argv[2], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (file < 0 || (errno = posix_fallocate(file, 0, STORE_BYTES)) || fsync(file))
		die(argv[2]);

	/* Once the kernel has it, it can't be unlinked any more. */
	if (unlink(argv[2]))
		die(argv[2]);

	struct bdsnap_store_add store = {
		.size = sizeof(store),
		.kind = BDSNAP_STORE_FILE,
		.fd = file,
		.buffer = addr(extents),
		.extent_count = MAX_EXTENTS,
	};

	if (ioctl(fd, BDSNAP_IOC_STORE_ADD, &store)) {
		fprintf(stderr, "example: cause %u\n", store.cause);
		die("BDSNAP_IOC_STORE_ADD");
	}
	printf("example: store of %llu bytes in %u extents\n",
	       (unsigned long long)store.capacity, store.extent_count);
	check(ftruncate(file, 0) == -1 && errno == ETXTBSY, "the store file can't be truncated");
	close(file);

	/* The cut. */
	struct bdsnap_snapshot_device device = { .major = track.major, .minor = track.minor };
	struct bdsnap_snapshot_create create = {
		.size = sizeof(create),
		.store = store.store,
		.devices = addr(&device),
		.device_count = 1,
		.freeze_fds = addr(freeze),
		.freeze_count = argc - 3,
	};

	for (i = 3; i < argc; i++) {
		freeze[i - 3] = open(argv[i], O_RDONLY | O_CLOEXEC);
		if (freeze[i - 3] < 0)
			die(argv[i]);
	}
	before = block_buffer();
	now = block_buffer();
	read_block(argv[1], before);
	if (ioctl(fd, BDSNAP_IOC_SNAPSHOT_CREATE, &create)) {
		fprintf(stderr, "example: cause %u, at index %u\n", create.cause, create.fail_index);
		die("BDSNAP_IOC_SNAPSHOT_CREATE");
	}
	printf("example: snapshot number %llu, image %.32s, %llu bytes, gate closed for %llu us\n",
	       (unsigned long long)device.number, device.image_name,
	       (unsigned long long)device.device_size, (unsigned long long)create.gate_ns / 1000);
	check(device.number == track.number + 1, "the number went up by one");
	check(!memcmp(device.generation, track.generation, 16), "the generation is the tracker's");

	/* udev may need a moment to make the node. */
	snprintf(image, sizeof(image), "/dev/%.32s", device.image_name);
	for (i = 0; i < 100 && access(image, F_OK); i++)
		nanosleep(&pause, NULL);

	/* Overwrite a block of the origin: the image must not care. */
	for (i = 0; i < (int)BLOCK; i++)
		now[i] = ~before[i];
	write_block(argv[1], now);
	read_block(argv[1], now);
	check(memcmp(before, now, BLOCK), "the origin has changed");
	read_block(image, now);
	check(!memcmp(before, now, BLOCK), "the image has not changed");

	/* Which versions are in the snapshot? */
	struct bdsnap_version_info info;
	struct bdsnap_list list = {
		.size = sizeof(list),
		.count = 1,
		.item_size = sizeof(info),
		.buffer = addr(&info),
	};

	memcpy(list.id, create.id, 16);
	if (ioctl(fd, BDSNAP_IOC_LIST_VERSIONS, &list))
		die("BDSNAP_IOC_LIST_VERSIONS");
	check(list.count == 1 && info.state == BDSNAP_SNAPSHOT_OK, "its one version is in order");
	check(info.bytes_copied >= BLOCK, "the block was copied on write");

	/* What has changed since this snapshot? (LIVE: the map as it is now.) */
	struct bdsnap_map_read map = {
		.size = sizeof(map),
		.flags = BDSNAP_MAP_LIVE,
		.major = track.major,
		.minor = track.minor,
		.since = device.number,
		.count = 1,
		.buffer = addr(&first),
	};

	memcpy(map.generation, device.generation, 16);
	if (ioctl(fd, BDSNAP_IOC_MAP_READ, &map))
		die("BDSNAP_IOC_MAP_READ");
	check(map.count == 1 && first > device.number, "the map says that block 0 has changed since");

	/* Was it a discard? (An older module says EINVAL to the flag: see BDSNAP_IOC_VERSION.) */
	map.flags |= BDSNAP_MAP_DISCARDS;
	if (ioctl(fd, BDSNAP_IOC_MAP_READ, &map))
		die("BDSNAP_IOC_MAP_READ");
	check(!(first & BDSNAP_MAP_DISCARDED) && first > device.number, "and not by a discard");

	/* Numbers of another generation say nothing. */
	map.generation[0] ^= 1;
	check(ioctl(fd, BDSNAP_IOC_MAP_READ, &map) == -1 && errno == ESTALE,
	      "another generation is refused");

	/* The snapshot would also end with close(fd): nobody called SNAPSHOT_KEEP. */
	struct bdsnap_snapshot_ref ref = { .size = sizeof(ref) };

	memcpy(ref.id, create.id, 16);
	/* EBUSY: its image is open. udev looks into new devices for a moment. */
	for (i = 0; ioctl(fd, BDSNAP_IOC_SNAPSHOT_DELETE, &ref); i++) {
		if (errno != EBUSY || i == 200)
			die("BDSNAP_IOC_SNAPSHOT_DELETE");
		nanosleep(&pause, NULL);
	}
	check(ioctl(fd, BDSNAP_IOC_SNAPSHOT_DELETE, &ref) == -1 && errno == ENOENT,
	      "a deleted snapshot is not there");

	struct bdsnap_untrack untrack = {
		.size = sizeof(untrack),
		.major = track.major,
		.minor = track.minor,
	};

	if (ioctl(fd, BDSNAP_IOC_UNTRACK, &untrack))
		die("BDSNAP_IOC_UNTRACK");
	close(fd);
	puts("example: done");
	return 0;
}
