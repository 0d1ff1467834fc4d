// SPDX-License-Identifier: GPL-2.0
/*
 * A disk in memory that can be erased securely (tests/vm/38-secure-erase.test): no driver that a virtual
 * machine has does REQ_OP_SECURE_ERASE. Erased bytes are 0xee. While it is loaded, /dev/erase0 is there:
 *
 *   mib=16         its size
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/module.h>
#include <linux/vmalloc.h>

static unsigned int mib = 16;
module_param(mib, uint, 0444);

static struct gendisk *disk;
static u8 *bytes;

static void erase_disk_submit_bio(struct bio *bio)
{
	u8 *at = bytes + (bio->bi_iter.bi_sector << SECTOR_SHIFT);
	struct bvec_iter iter;
	struct bio_vec vec;

	switch (bio_op(bio)) {
	case REQ_OP_SECURE_ERASE:
		memset(at, 0xee, bio->bi_iter.bi_size);
		break;
	case REQ_OP_READ:
	case REQ_OP_WRITE:
		bio_for_each_segment(vec, bio, iter) {
			if (op_is_write(bio_op(bio)))
				memcpy_from_bvec(at, &vec);
			else
				memcpy_to_bvec(&vec, at);
			at += vec.bv_len;
		}
		break;
	default:
		bio->bi_status = BLK_STS_NOTSUPP;
	}
	bio_endio(bio);
}

static const struct block_device_operations erase_disk_ops = {
	.owner = THIS_MODULE,
	.submit_bio = erase_disk_submit_bio,
};

static int __init erase_disk_init(void)
{
	struct queue_limits limits = {
		.max_secure_erase_sectors = SZ_1M >> SECTOR_SHIFT,
	};
	int ret;

	bytes = vzalloc((size_t)mib << 20);
	if (!bytes)
		return -ENOMEM;
	disk = blk_alloc_disk(&limits, NUMA_NO_NODE);
	if (IS_ERR(disk)) {
		ret = PTR_ERR(disk);
		goto free;
	}
	disk->fops = &erase_disk_ops;
	strscpy(disk->disk_name, "erase0", DISK_NAME_LEN);
	set_capacity(disk, (sector_t)mib << (20 - SECTOR_SHIFT));
	ret = add_disk(disk);
	if (!ret)
		return 0;
	put_disk(disk);
free:
	vfree(bytes);
	return ret;
}
module_init(erase_disk_init);

static void __exit erase_disk_exit(void)
{
	del_gendisk(disk);
	put_disk(disk);
	vfree(bytes);
}
module_exit(erase_disk_exit);

MODULE_DESCRIPTION("A disk that can be erased securely");
MODULE_LICENSE("GPL");
