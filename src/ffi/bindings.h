/* SPDX-License-Identifier: GPL-2.0 */
/* Input of bindgen: our ABI, the shims, and macros turned into constants. */
#include <linux/blkdev.h>
#include <linux/bio.h>
#include <linux/ftrace.h>
#include <linux/mm.h>
#include "bdsnap.h"
#include "helpers.h"

static const unsigned int BDSNAP_REQ_NOWAIT = REQ_NOWAIT;
static const unsigned int BDSNAP_REQ_POLLED = REQ_POLLED;
static const unsigned int BDSNAP_REQ_META = REQ_META | REQ_PRIO;
static const unsigned int BDSNAP_REQ_OP_MASK = REQ_OP_MASK;
static const unsigned int BDSNAP_REQ_SYNC = REQ_SYNC;
static const unsigned int BDSNAP_REQ_IDLE = REQ_IDLE;
static const unsigned int BDSNAP_REQ_RAHEAD = REQ_RAHEAD;
static const unsigned long BDSNAP_FTRACE_FLAGS = FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_PERMANENT;
static const unsigned int BDSNAP_BLK_OPEN_READ = (unsigned int)BLK_OPEN_READ;
static const unsigned int BDSNAP_BLK_OPEN_STORE =
	(unsigned int)(BLK_OPEN_READ | BLK_OPEN_WRITE | BLK_OPEN_RESTRICT_WRITES);
static const unsigned char BDSNAP_BLK_STS_IOERR = (unsigned char)BLK_STS_IOERR;
static const gfp_t BDSNAP_GFP_NOIO = GFP_NOIO;
static const gfp_t BDSNAP_GFP_STORE = GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN;
static const gfp_t BDSNAP_GFP_NOWAIT = GFP_NOWAIT;
/* as mempool_alloc() asks for it */
static const gfp_t BDSNAP_GFP_MODEST = GFP_NOWAIT | __GFP_NOMEMALLOC | __GFP_NORETRY | __GFP_NOWARN;

#define BDSNAP_NR(name) static const unsigned int BDSNAP_NR_##name = _IOC_NR(BDSNAP_IOC_##name)
BDSNAP_NR(VERSION);
BDSNAP_NR(TRACK);
BDSNAP_NR(UNTRACK);
BDSNAP_NR(LIST_ORIGINS);
BDSNAP_NR(STORE_ADD);
BDSNAP_NR(STORE_DROP);
BDSNAP_NR(SNAPSHOT_CREATE);
BDSNAP_NR(SNAPSHOT_KEEP);
BDSNAP_NR(SNAPSHOT_DELETE);
BDSNAP_NR(LIST_SNAPSHOTS);
BDSNAP_NR(LIST_VERSIONS);
BDSNAP_NR(MAP_READ);
BDSNAP_NR(MARK);
BDSNAP_NR(RECORD);
BDSNAP_NR(FREE);
BDSNAP_NR(EVENTS);
BDSNAP_NR(SNAPSHOT_NOTE);
BDSNAP_NR(SERVE);
BDSNAP_NR(SNAPSHOT_RELEASE);
BDSNAP_NR(SINCE);
