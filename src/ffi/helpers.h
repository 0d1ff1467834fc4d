/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C shims for what Rust cannot reach: static inlines, flag macros, symbols that
 * the kernel's own bindings leave out. Each does one thing and decides nothing.
 */
#ifndef BDSNAP_HELPERS_H
#define BDSNAP_HELPERS_H

#include <linux/bio.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/mempool.h>
#include <linux/part_stat.h>
#include <linux/slab.h>

/* ftrace and the submission of bios */
unsigned long bdsnap_ftrace_arg0(struct ftrace_regs *regs);
void bdsnap_ftrace_set_ip(struct ftrace_regs *regs, unsigned long ip);
void bdsnap_hook_taken(struct bio *bio);
void bdsnap_hook_again(struct bio *bio);
void bdsnap_submit_own(struct bio *bio);
extern const char bdsnap_submit_own_end[];

/* what goes around the submission of bios, and changes of disks */
unsigned long bdsnap_ftrace_arg1(struct ftrace_regs *regs);
struct gendisk *bdsnap_request_disk(struct request *rq);
bool bdsnap_disk_is_nvme_path(struct gendisk *disk);
bool bdsnap_bdev_is_nvme_head(struct block_device *bdev);
unsigned int bdsnap_request_op(struct request *rq);
unsigned int bdsnap_request_bytes(struct request *rq);
const unsigned char *bdsnap_request_cdb(struct request *rq, struct gendisk *disk, unsigned int *len);

/* bio */
void bdsnap_bio_zero(struct bio *bio);
void bdsnap_bio_fill(struct bio *bio, unsigned int skip, const void *src, unsigned int len);
void bdsnap_bio_set_dev(struct bio *bio, struct block_device *bdev);

/* CPUs and memory */
unsigned int bdsnap_cpu(void);
void bdsnap_cpu_hold(void);
void bdsnap_cpu_release(void);
struct kmem_cache *bdsnap_cache_create(const char *name, unsigned int size, unsigned int align);
struct mempool *bdsnap_slab_pool(int min, struct kmem_cache *cache);
unsigned int bdsnap_noio_save(void);
void bdsnap_noio_restore(unsigned int flags);
bool bdsnap_fatal_signal(void);
unsigned long bdsnap_ram_pages(void);
struct page *bdsnap_alloc_page(gfp_t gfp);
bool bdsnap_is_zero(const void *data, size_t len);
void *bdsnap_page_address(struct page *page);
u64 bdsnap_realtime_ns(void);
u64 bdsnap_monotonic_ns(void);

/* block devices */
sector_t bdsnap_bdev_sectors(struct block_device *bdev);
bool bdsnap_bdev_read_only(struct block_device *bdev);
bool bdsnap_bdev_zoned(struct block_device *bdev);
bool bdsnap_bdev_dax(struct block_device *bdev);
bool bdsnap_bdev_integrity(struct block_device *bdev);
bool bdsnap_bdev_inline_crypto(struct block_device *bdev);
bool bdsnap_bdev_live(struct block_device *bdev);
u64 bdsnap_bdev_diskseq(struct block_device *bdev);
int bdsnap_bdev_settle(struct block_device *bdev, unsigned int ms);
bool bdsnap_bdev_has_requests(struct block_device *bdev);
bool bdsnap_bdev_throttled(struct block_device *bdev);
bool bdsnap_bdev_counts_writes(struct block_device *bdev);
unsigned int bdsnap_bdev_logical(struct block_device *bdev);
unsigned int bdsnap_bdev_dma_alignment(struct block_device *bdev);
unsigned int bdsnap_bdev_physical(struct block_device *bdev);
void bdsnap_bdev_name(struct block_device *bdev, char *buf, size_t len);
unsigned int bdsnap_major(dev_t dev);
unsigned int bdsnap_minor(dev_t dev);
dev_t bdsnap_mkdev(unsigned int major, unsigned int minor);
bool bdsnap_is_err(const void *ptr);
long bdsnap_ptr_err(const void *ptr);

/* the disk of an image */
struct gendisk *bdsnap_disk_alloc(unsigned int logical, unsigned int physical, unsigned int dma_alignment);
void bdsnap_disk_set_private(struct gendisk *disk, void *data);
void bdsnap_disk_get(struct gendisk *disk);
void bdsnap_disk_forget(struct gendisk *disk, u64 sector, u64 sectors);
bool bdsnap_bio_read_only(struct bio *bio);
void bdsnap_disk_forget_all(struct gendisk *disk);
unsigned int bdsnap_disk_openers(struct gendisk *disk);

/* files and file systems */
struct inode *bdsnap_file_inode(struct file *file);
bool bdsnap_file_writable_regular(struct file *file);
int bdsnap_inode_claim(struct inode *inode);
void bdsnap_inode_unclaim(struct inode *inode);
int bdsnap_inode_settle(struct inode *inode);
int bdsnap_inode_fiemap(struct inode *inode, u64 len, void __user *buf, u32 room, u32 *mapped);
int bdsnap_file_run(struct file *file, u64 first, u64 most, u64 *start, u64 *len);
unsigned int bdsnap_inode_blkbits(struct inode *inode);
bool bdsnap_file_realtime(struct file *file);
loff_t bdsnap_inode_size(struct inode *inode);
const char *bdsnap_fs_name(struct super_block *sb);
void bdsnap_sync_fs(struct super_block *sb);
int bdsnap_freeze(struct super_block *sb);
int bdsnap_thaw(struct super_block *sb);
bool bdsnap_is_frozen(struct super_block *sb);

/* files without a name */
int bdsnap_anon_fd(const char *name, const struct file_operations *fops, void *data);
bool bdsnap_file_nonblock(struct file *file);

/* tracepoints */
void bdsnap_trace_park(dev_t dev, u64 sector, u64 sectors, u32 why);
void bdsnap_trace_copy(dev_t dev, u64 granule, u64 granules, u64 slot);
void bdsnap_trace_cut(dev_t dev, u64 number, u64 gate_ns);

#endif
