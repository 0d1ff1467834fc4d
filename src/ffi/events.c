// SPDX-License-Identifier: GPL-2.0
#define CREATE_TRACE_POINTS
#include "bdsnap_events.h"
#include "helpers.h"

void bdsnap_trace_park(dev_t dev, u64 sector, u64 sectors, u32 why)
{
	trace_bdsnap_park(dev, sector, sectors, why);
}

void bdsnap_trace_copy(dev_t dev, u64 granule, u64 granules, u64 slot)
{
	trace_bdsnap_copy(dev, granule, granules, slot);
}

void bdsnap_trace_cut(dev_t dev, u64 number, u64 gate_ns)
{
	trace_bdsnap_cut(dev, number, gate_ns);
}
