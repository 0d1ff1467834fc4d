// SPDX-License-Identifier: GPL-2.0
/*
 * What may keep bdsnap's hook from working (tests/vm/59-hook-conflict.test). While it is loaded, one of:
 *
 *   hold=FUNCTION  FUNCTION is held as by a livepatch (kernel/livepatch/patch.c), but nothing changes
 *   blind=1        submit_bio() is held, too, and reads of "bdsnap" end there, empty: to it, this is a kernel
 *                  whose bios don't pass submit_bio_noacct()
 *   flip=ADDRESS   this int of the kernel is 0 where it was 1, or 1 where it was 0
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/ftrace.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>

static char *hold;
module_param(hold, charp, 0444);
static bool blind;
module_param(blind, bool, 0444);
static unsigned long flip;
module_param(flip, ulong, 0444);

/* Runs instead of submit_bio(). */
static noinline notrace void swallow(struct bio *bio)
{
	bio_endio(bio);
}

static notrace void held(unsigned long ip, unsigned long parent_ip, struct ftrace_ops *ops,
			 struct ftrace_regs *fregs)
{
	struct bio *bio;

	if (!blind)
		return;
	bio = (struct bio *)ftrace_regs_get_argument(fregs, 0);
	/* (of a bio on the stack: what the page cache reads stays right) */
	if (bio_op(bio) == REQ_OP_READ && !bio->bi_pool && !strcmp(current->comm, "bdsnap"))
		ftrace_regs_set_instruction_pointer(fregs, (unsigned long)swallow);
}

static struct ftrace_ops ops = {
	.func = held,
	.flags = FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_PERMANENT,
};

static void flip_it(void)
{
	int *it = (int *)flip;

	if (it)
		WRITE_ONCE(*it, !READ_ONCE(*it));
}

static int __init hook_conflict_init(void)
{
	int ret;

	if (blind)
		hold = "submit_bio";
	if (hold) {
		ret = ftrace_set_filter(&ops, hold, strlen(hold), 1);
		if (!ret)
			ret = register_ftrace_function(&ops);
		if (ret) {
			ftrace_free_filter(&ops);
			return ret;
		}
	}
	flip_it();
	return 0;
}

static void __exit hook_conflict_exit(void)
{
	flip_it();
	if (!hold)
		return;
	unregister_ftrace_function(&ops);
	synchronize_rcu_tasks();
	ftrace_free_filter(&ops);
}

module_init(hook_conflict_init);
module_exit(hook_conflict_exit);
MODULE_DESCRIPTION("Keeps bdsnap's hook from working, for a test");
MODULE_LICENSE("GPL");
