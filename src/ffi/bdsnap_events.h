/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM bdsnap
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE bdsnap_events

#if !defined(BDSNAP_EVENTS_H) || defined(TRACE_HEADER_MULTI_READ)
#define BDSNAP_EVENTS_H

#include <linux/types.h>
#include <linux/kdev_t.h>
#include <linux/tracepoint.h>

/* A write was parked: why 0 for a copy, 1 at a closed gate, 2 for want of memory. */
TRACE_EVENT(bdsnap_park,
	TP_PROTO(dev_t dev, u64 sector, u64 sectors, u32 why),
	TP_ARGS(dev, sector, sectors, why),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, sector)
		__field(u64, sectors)
		__field(u32, why)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->sector = sector;
		__entry->sectors = sectors;
		__entry->why = why;
	),
	TP_printk("%d,%d %llu + %llu %s", MAJOR(__entry->dev), MINOR(__entry->dev),
		__entry->sector, __entry->sectors,
		__print_symbolic(__entry->why, { 0, "copy" }, { 1, "gate" }, { 2, "memory" }))
);

/* A run of granules is being copied to the store. */
TRACE_EVENT(bdsnap_copy,
	TP_PROTO(dev_t dev, u64 granule, u64 granules, u64 slot),
	TP_ARGS(dev, granule, granules, slot),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, granule)
		__field(u64, granules)
		__field(u64, slot)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->granule = granule;
		__entry->granules = granules;
		__entry->slot = slot;
	),
	TP_printk("%d,%d %llu + %llu to %llu", MAJOR(__entry->dev), MINOR(__entry->dev),
		__entry->granule, __entry->granules, __entry->slot)
);

/* An origin was cut. */
TRACE_EVENT(bdsnap_cut,
	TP_PROTO(dev_t dev, u64 number, u64 gate_ns),
	TP_ARGS(dev, number, gate_ns),
	TP_STRUCT__entry(
		__field(dev_t, dev)
		__field(u64, number)
		__field(u64, gate_ns)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->number = number;
		__entry->gate_ns = gate_ns;
	),
	TP_printk("%d,%d number %llu, gate closed for %llu ns", MAJOR(__entry->dev),
		MINOR(__entry->dev), __entry->number, __entry->gate_ns)
);

#endif

#include <trace/define_trace.h>
