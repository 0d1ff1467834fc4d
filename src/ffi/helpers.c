// SPDX-License-Identifier: GPL-2.0
#include <linux/annotate.h>
#include <linux/anon_inodes.h>
#include <linux/blk-integrity.h>
#include <linux/blk-mq.h>
#include <linux/delay.h>
#include <linux/fileattr.h>
#include <linux/highmem.h>
#include <linux/ktime.h>
#include <linux/major.h>
#include <linux/mm.h>
#include <linux/part_stat.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/statfs.h>
#include <scsi/scsi_cmnd.h>
#include "helpers.h"

/*
 * ftrace. What runs inside the callback is notrace, so that tracing everything
 * can't trace the hook itself.
 */
notrace unsigned long bdsnap_ftrace_arg0(struct ftrace_regs *regs)
{
	return ftrace_regs_get_argument(regs, 0);
}

notrace void bdsnap_ftrace_set_ip(struct ftrace_regs *regs, unsigned long ip)
{
	ftrace_regs_set_instruction_pointer(regs, ip);
}

notrace unsigned long bdsnap_ftrace_arg1(struct ftrace_regs *regs)
{
	return ftrace_regs_get_argument(regs, 1);
}

/* The disk that a request goes to; NULL: to none (an admin queue). */
notrace struct gendisk *bdsnap_request_disk(struct request *rq)
{
	return READ_ONCE(rq->q->disk);
}

/*
 * Whether a disk is a path of an NVMe disk that has several: commands for that
 * one go to it, and which one that is, only the driver knows.
 */
notrace bool bdsnap_disk_is_nvme_path(struct gendisk *disk)
{
	return (disk->flags & GENHD_FL_HIDDEN) && !strncmp(disk->disk_name, "nvme", 4);
}

/* Whether a device is on an NVMe disk that has paths. */
bool bdsnap_bdev_is_nvme_head(struct block_device *bdev)
{
	return !queue_is_mq(bdev_get_queue(bdev)) && !strncmp(bdev->bd_disk->disk_name, "nvme", 4);
}

notrace unsigned int bdsnap_request_op(struct request *rq)
{
	return rq->cmd_flags & REQ_OP_MASK;
}

notrace unsigned int bdsnap_request_bytes(struct request *rq)
{
	return blk_rq_bytes(rq);
}

/* The command of a passthrough request to a SCSI disk (sd's majors); else NULL. */
notrace const unsigned char *bdsnap_request_cdb(struct request *rq, struct gendisk *disk, unsigned int *len)
{
	struct scsi_cmnd *cmd;

	*len = 0;
	if (!blk_op_is_passthrough(rq->cmd_flags & REQ_OP_MASK))
		return NULL;
	switch (disk->major) {
	case SCSI_DISK0_MAJOR:
	case SCSI_DISK1_MAJOR ... SCSI_DISK7_MAJOR:
	case SCSI_DISK8_MAJOR ... SCSI_DISK15_MAJOR:
		break;
	default:
		return NULL;
	}
	cmd = blk_mq_rq_to_pdu(rq);
	*len = min_t(unsigned int, cmd->cmd_len, sizeof(cmd->cmnd));
	return cmd->cmnd;
}

/* Runs instead of submit_bio_noacct() for a bio that the hook has taken. */
noinline notrace void bdsnap_hook_taken(struct bio *bio)
{
	barrier();
}

/* Runs instead of it for a REQ_NOWAIT bio that would have to wait. */
noinline notrace void bdsnap_hook_again(struct bio *bio)
{
	bio_wouldblock_error(bio);
}

/* Neither inlined nor cloned; clang does the latter to no function that others refer to. */
#ifdef CONFIG_CC_IS_CLANG
#define bdsnap_once noinline
#else
#define bdsnap_once __attribute__((noipa))
#endif

/*
 * Every bio of our own goes through this call, and nothing else does: inside the
 * hook, a parent_ip between the function and the label means "ours". The asm
 * keeps the call from becoming a jump (which would loop for ever).
 */
bdsnap_once notrace void bdsnap_submit_own(struct bio *bio)
{
	submit_bio_noacct(bio);
	asm volatile(".globl bdsnap_submit_own_end\n"
		     "bdsnap_submit_own_end:\n"
		     ANNOTATE_NOENDBR ::: "memory");
}

void bdsnap_bio_zero(struct bio *bio)
{
	struct bvec_iter iter;
	struct bio_vec bv;

	bio_for_each_segment(bv, bio, iter)
		memzero_bvec(&bv);
}

/* Copies len bytes from src into the bio's data, from byte skip of it on. */
void bdsnap_bio_fill(struct bio *bio, unsigned int skip, const void *src, unsigned int len)
{
	struct bvec_iter iter = bio->bi_iter;

	bio_advance_iter(bio, &iter, skip);
	while (len && iter.bi_size) {
		struct bio_vec bv = bio_iter_iovec(bio, iter);
		unsigned int n = min(bv.bv_len, len);

		bv.bv_len = n;
		memcpy_to_bvec(&bv, src);
		src += n;
		len -= n;
		bio_advance_iter_single(bio, &iter, n);
	}
}

void bdsnap_bio_set_dev(struct bio *bio, struct block_device *bdev)
{
	bio_set_dev(bio, bdev);
}

notrace unsigned int bdsnap_cpu(void)
{
	return raw_smp_processor_id();
}

/*
 * Keeps the caller on its CPU while it works off completions. A plain preemption
 * lock where completions may run under one; PREEMPT_RT sleeps in spinlocks.
 */
notrace void bdsnap_cpu_hold(void)
{
	if (IS_ENABLED(CONFIG_PREEMPT_RT))
		migrate_disable();
	else
		preempt_disable();
}

notrace void bdsnap_cpu_release(void)
{
	if (IS_ENABLED(CONFIG_PREEMPT_RT))
		migrate_enable();
	else
		preempt_enable();
}

struct kmem_cache *bdsnap_cache_create(const char *name, unsigned int size, unsigned int align)
{
	return kmem_cache_create(name, size, align, 0, NULL);
}

struct mempool *bdsnap_slab_pool(int min, struct kmem_cache *cache)
{
	return mempool_create_slab_pool(min, cache);
}

unsigned int bdsnap_noio_save(void)
{
	return memalloc_noio_save();
}

void bdsnap_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

bool bdsnap_fatal_signal(void)
{
	return fatal_signal_pending(current);
}

unsigned long bdsnap_ram_pages(void)
{
	return totalram_pages();
}

struct page *bdsnap_alloc_page(gfp_t gfp)
{
	return alloc_page(gfp);
}

bool bdsnap_is_zero(const void *data, size_t len)
{
	return !memchr_inv(data, 0, len);
}

void *bdsnap_page_address(struct page *page)
{
	return page_address(page);
}

u64 bdsnap_realtime_ns(void)
{
	return ktime_get_real_ns();
}

u64 bdsnap_monotonic_ns(void)
{
	return ktime_get_ns();
}

sector_t bdsnap_bdev_sectors(struct block_device *bdev)
{
	return bdev_nr_sectors(bdev);
}

bool bdsnap_bdev_read_only(struct block_device *bdev)
{
	return bdev_read_only(bdev);
}

bool bdsnap_bdev_zoned(struct block_device *bdev)
{
	return bdev_is_zoned(bdev);
}

bool bdsnap_bdev_dax(struct block_device *bdev)
{
	return blk_queue_dax(bdev_get_queue(bdev));
}

bool bdsnap_bdev_integrity(struct block_device *bdev)
{
	return bdev_get_integrity(bdev) != NULL;
}

bool bdsnap_bdev_inline_crypto(struct block_device *bdev)
{
#ifdef CONFIG_BLK_INLINE_ENCRYPTION
	return bdev_get_queue(bdev)->crypto_profile != NULL;
#else
	return false;
#endif
}

bool bdsnap_bdev_live(struct block_device *bdev)
{
	return disk_live(bdev->bd_disk);
}

u64 bdsnap_bdev_diskseq(struct block_device *bdev)
{
	return bdev->bd_disk->diskseq;
}

bool bdsnap_bdev_has_requests(struct block_device *bdev)
{
	return queue_is_mq(bdev_get_queue(bdev));
}

/* Whether bios for it may be held back for a cgroup, as blk_throtl_activated(). */
bool bdsnap_bdev_throttled(struct block_device *bdev)
{
#ifdef CONFIG_BLK_DEV_THROTTLING
	return READ_ONCE(bdev_get_queue(bdev)->td) != NULL;
#else
	return false;
#endif
}

/* Bios in flight that are no reads, as bdev_start_io_acct() counts them. */
static int writes_in_flight(struct block_device *bdev)
{
	int cpu, writes = 0;

	for_each_possible_cpu(cpu)
		writes += part_stat_local_read_cpu(bdev, in_flight[WRITE], cpu);
	return writes;
}

/* Waits until nothing is on its way through a queue; what comes waits meanwhile. */
static int drain_queue(struct request_queue *q, unsigned int ms)
{
	int ret = 0;

	blk_freeze_queue_start(q);
	if (!blk_mq_freeze_queue_wait_timeout(q, msecs_to_jiffies(ms)))
		ret = -ETIMEDOUT;
	blk_mq_unfreeze_queue_nomemrestore(q);
	return ret;
}

/*
 * Waits until writes that were in flight have completed. A request-based disk is
 * frozen for the moment. A bio-based one too, so that no bio sleeps in its driver
 * that is not counted yet; but after that there is only the count, in which new
 * writes must not appear. A whole disk's holds its partitions', but one that was
 * sent to the whole disk is in that one only; for a partition it is waited for
 * a while, since its neighbours go on. (Targets of device-mapper that have
 * accounts_remapped_io count a bio only when they pass it on.)
 */
int bdsnap_bdev_settle(struct block_device *bdev, unsigned int ms)
{
	struct request_queue *q = bdev_get_queue(bdev);
	unsigned long end = jiffies + msecs_to_jiffies(ms);
	unsigned long grace = jiffies + msecs_to_jiffies(min(ms, 2000u));
	int ret;

	if (queue_is_mq(q))
		return drain_queue(q, ms);
	ret = drain_queue(q, min(ms, 2000u));
	if (ret)
		return ret;
	while (writes_in_flight(bdev) > 0 ||
	       (writes_in_flight(bdev_whole(bdev)) > 0 && time_before(jiffies, grace))) {
		if (time_after(jiffies, end))
			return -ETIMEDOUT;
		usleep_range(500, 1000);
	}
	return 0;
}

bool bdsnap_bdev_counts_writes(struct block_device *bdev)
{
	struct request_queue *q = bdev_get_queue(bdev);
	const char *name = bdev->bd_disk->disk_name;

	if (queue_is_mq(q) || blk_queue_io_stat(q))
		return true;
	/* these ask the queue; others always count, or end what they get before they return */
	return strncmp(name, "dm-", 3) && strncmp(name, "md", 2) && strncmp(name, "nvme", 4);
}

unsigned int bdsnap_bdev_logical(struct block_device *bdev)
{
	return bdev_logical_block_size(bdev);
}

unsigned int bdsnap_bdev_dma_alignment(struct block_device *bdev)
{
	return bdev_dma_alignment(bdev);
}

unsigned int bdsnap_bdev_physical(struct block_device *bdev)
{
	return bdev_physical_block_size(bdev);
}

void bdsnap_bdev_name(struct block_device *bdev, char *buf, size_t len)
{
	snprintf(buf, len, "%pg", bdev);
}

unsigned int bdsnap_major(dev_t dev)
{
	return MAJOR(dev);
}

unsigned int bdsnap_minor(dev_t dev)
{
	return MINOR(dev);
}

dev_t bdsnap_mkdev(unsigned int major, unsigned int minor)
{
	return MKDEV(major, minor);
}

bool bdsnap_is_err(const void *ptr)
{
	return IS_ERR(ptr);
}

long bdsnap_ptr_err(const void *ptr)
{
	return PTR_ERR(ptr);
}

struct gendisk *bdsnap_disk_alloc(unsigned int logical, unsigned int physical, unsigned int dma_alignment)
{
	struct queue_limits lim = {
		.logical_block_size	= logical,
		.physical_block_size	= physical,
		.io_min			= physical,
		.dma_alignment		= max_t(unsigned int, SECTOR_SIZE - 1, dma_alignment),
		.max_hw_sectors		= 8192,
		.max_hw_discard_sectors	= UINT_MAX >> SECTOR_SHIFT,
		.discard_granularity	= max_t(unsigned int, 4096, physical),
		.features		= BLK_FEAT_IO_STAT,
	};

	return blk_alloc_disk(&lim, NUMA_NO_NODE);
}

void bdsnap_disk_set_private(struct gendisk *disk, void *data)
{
	disk->private_data = data;
}

void bdsnap_disk_get(struct gendisk *disk)
{
	get_device(disk_to_dev(disk));
}

void bdsnap_disk_forget(struct gendisk *disk, u64 sector, u64 sectors)
{
	loff_t from = sector << SECTOR_SHIFT, to = (sector + sectors) << SECTOR_SHIFT;

	if (sectors)
		invalidate_inode_pages2_range(disk->part0->bd_mapping, from >> PAGE_SHIFT, (to - 1) >> PAGE_SHIFT);
}

bool bdsnap_bio_read_only(struct bio *bio)
{
	return bdev_read_only(bio->bi_bdev);
}

void bdsnap_disk_forget_all(struct gendisk *disk)
{
	/* (That they can't be written is what makes them clean.) */
	sync_blockdev(disk->part0);
	invalidate_inode_pages2(disk->part0->bd_mapping);
}

unsigned int bdsnap_disk_openers(struct gendisk *disk)
{
	return disk_openers(disk);
}

struct inode *bdsnap_file_inode(struct file *file)
{
	return file_inode(file);
}

bool bdsnap_file_writable_regular(struct file *file)
{
	return S_ISREG(file_inode(file)->i_mode) && (file->f_mode & FMODE_WRITE);
}

/* Makes the inode behave as a swap file does: its blocks stay where they are. */
int bdsnap_inode_claim(struct inode *inode)
{
	int ret = 0;

	inode_lock(inode);
	if (IS_SWAPFILE(inode))
		ret = -EBUSY;
	else
		inode->i_flags |= S_SWAPFILE;
	inode_unlock(inode);
	return ret;
}

void bdsnap_inode_unclaim(struct inode *inode)
{
	inode_lock(inode);
	inode->i_flags &= ~S_SWAPFILE;
	inode_unlock(inode);
}

/* Waits for what is on its way to the blocks, and empties the page cache. */
int bdsnap_inode_settle(struct inode *inode)
{
	int ret;

	inode_lock(inode);
	inode_dio_wait(inode);
	ret = filemap_write_and_wait(inode->i_mapping);
	if (!ret)
		ret = invalidate_inode_pages2(inode->i_mapping);
	inode_unlock(inode);
	return ret;
}

int bdsnap_inode_fiemap(struct inode *inode, u64 len, void __user *buf, u32 room, u32 *mapped)
{
	struct fiemap_extent_info info = {
		.fi_flags = FIEMAP_FLAG_SYNC,
		.fi_extents_max = room,
		.fi_extents_start = buf,
	};
	int ret;

	if (!inode->i_op->fiemap)
		return -EOPNOTSUPP;
	ret = inode->i_op->fiemap(inode, &info, 0, len);
	*mapped = info.fi_extents_mapped;
	return ret;
}

/*
 * Where a file without FIEMAP has its block `first`, the first one of a cluster, and how many of the `most`
 * from there on lie side by side on the device. Its file system consists of clusters (statfs tells their
 * size), so it is asked once for each. ENODATA: a hole; EOPNOTSUPP: that can't be asked; EINTR: a fatal
 * signal.
 */
int bdsnap_file_run(struct file *file, u64 first, u64 most, u64 *start, u64 *len)
{
	struct inode *inode = file_inode(file);
	struct kstatfs st;
	u64 step;
	int ret;

	*len = 0;
	ret = vfs_statfs(&file->f_path, &st);
	if (ret)
		return ret;
	step = max_t(u64, (u64)st.f_bsize >> inode->i_blkbits, 1);
	while (*len < most) {
		sector_t block = first + *len;

		ret = bmap(inode, &block);
		if (ret)
			return -EOPNOTSUPP;
		if (!block)
			return *len ? 0 : -ENODATA;
		if (!*len)
			*start = block;
		else if (block != *start + *len)
			return 0;
		*len += min(step, most - *len);
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

unsigned int bdsnap_inode_blkbits(struct inode *inode)
{
	return inode->i_blkbits;
}

/* Whether the file's data lies on a realtime device (XFS); yes, if that can't be told. */
bool bdsnap_file_realtime(struct file *file)
{
	struct file_kattr fa = {};

	if (vfs_fileattr_get(file->f_path.dentry, &fa))
		return true;
	return fa.fsx_xflags & FS_XFLAG_REALTIME;
}

loff_t bdsnap_inode_size(struct inode *inode)
{
	return i_size_read(inode);
}

const char *bdsnap_fs_name(struct super_block *sb)
{
	return sb->s_type->name;
}

/* As sync(2) for one file system; its errors come back with the freeze. */
void bdsnap_sync_fs(struct super_block *sb)
{
	down_read(&sb->s_umount);
	sync_filesystem(sb);
	up_read(&sb->s_umount);
}

#define BDSNAP_FREEZER (FREEZE_HOLDER_KERNEL | FREEZE_MAY_NEST)

/* As FIFREEZE: what has nothing to freeze can't be. */
int bdsnap_freeze(struct super_block *sb)
{
	if (!sb->s_op->freeze_fs && !sb->s_op->freeze_super)
		return -EOPNOTSUPP;
	if (sb->s_op->freeze_super)
		return sb->s_op->freeze_super(sb, BDSNAP_FREEZER, NULL);
	return freeze_super(sb, BDSNAP_FREEZER, NULL);
}

int bdsnap_thaw(struct super_block *sb)
{
	if (sb->s_op->thaw_super)
		return sb->s_op->thaw_super(sb, BDSNAP_FREEZER, NULL);
	return thaw_super(sb, BDSNAP_FREEZER, NULL);
}

bool bdsnap_is_frozen(struct super_block *sb)
{
	return READ_ONCE(sb->s_writers.frozen) == SB_FREEZE_COMPLETE;
}

/* A new, read-only descriptor of this process; on success it owns `data`. */
int bdsnap_anon_fd(const char *name, const struct file_operations *fops, void *data)
{
	return anon_inode_getfd(name, fops, data, O_RDONLY | O_CLOEXEC);
}

bool bdsnap_file_nonblock(struct file *file)
{
	return file->f_flags & O_NONBLOCK;
}
