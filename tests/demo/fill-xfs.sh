#!/bin/bash
# In the VM, for tests/demo/data: makes an XFS on the disk and unpacks the archive that the other disk is.
set -euo pipefail
mkfs.xfs -q -f -L demo-xfs /dev/vdb
mount /dev/vdb /mnt
tar -xf /dev/vdc -C /mnt
umount /mnt
