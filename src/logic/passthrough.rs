// SPDX-License-Identifier: GPL-2.0
//! Requests that go around the usual path of bios: which of them may change what a disk holds.
//!
//! A request whose effect is not known counts as one that writes. Sources of the opcodes: SPC-5,
//! SBC-4, SAT-5, ACS-4.

/// What kind of request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ordinary read, or a flush.
    Harmless,
    /// A command of the device's own that brings data in (`REQ_OP_DRV_IN`).
    CommandIn,
    /// One that takes data out (`REQ_OP_DRV_OUT`).
    CommandOut,
    /// Anything else.
    Other,
}

/// Whether a request may change what its disk holds. `bytes`: the data that it carries. `cdb`: the
/// SCSI command, if it is one; empty if not.
pub fn may_write(kind: Kind, bytes: u64, cdb: &[u8]) -> bool {
    match kind {
        Kind::Harmless => false,
        // What brings data in does not write, as far as can be told: an NVMe command can't be seen here.
        Kind::CommandIn if bytes > 0 && cdb.is_empty() => false,
        // (Which way data goes is the caller's word, the command says what is done.)
        Kind::CommandIn | Kind::CommandOut => !is_harmless_scsi(cdb),
        Kind::Other => true,
    }
}

/// Whether a SCSI command is known to leave the medium's data alone. Everyday tools send these: disk
/// monitors, cluster managers.
fn is_harmless_scsi(cdb: &[u8]) -> bool {
    match cdb.first() {
        // TEST UNIT READY, REZERO UNIT, REQUEST SENSE, SEEK(6), INQUIRY, RESERVE(6), RELEASE(6)
        Some(0x00 | 0x01 | 0x03 | 0x0b | 0x12 | 0x16 | 0x17) => true,
        // START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL, READ CAPACITY(10), SEEK(10)
        Some(0x1b | 0x1e | 0x25 | 0x2b) => true,
        // VERIFY(10), SYNCHRONIZE CACHE(10), LOG SELECT, LOG SENSE
        Some(0x2f | 0x35 | 0x4c | 0x4d) => true,
        // RESERVE(10), RELEASE(10), PERSISTENT RESERVE OUT, REPORT LUNS
        Some(0x56 | 0x57 | 0x5f | 0xa0) => true,
        // VERIFY(16), SYNCHRONIZE CACHE(16), VERIFY(12), MAINTENANCE OUT (target port groups)
        Some(0x8f | 0x91 | 0xaf | 0xa4) => true,
        // READ(6), (10), (16), (12), READ LONG(10), READ BUFFER(10), READ BUFFER(16), READ DEFECT DATA(10), (12)
        Some(0x08 | 0x28 | 0x88 | 0xa8 | 0x3e | 0x3c | 0x9b | 0x37 | 0xb7) => true,
        // MODE SENSE(6), (10), RECEIVE DIAGNOSTIC RESULTS, PERSISTENT RESERVE IN, RECEIVE COPY RESULTS
        Some(0x1a | 0x5a | 0x1c | 0x5e | 0x84) => true,
        // SERVICE ACTION IN(16), (12), SECURITY PROTOCOL IN, MAINTENANCE IN
        Some(0x9e | 0xab | 0xa2 | 0xa3) => true,
        // ATA PASS-THROUGH(16) and (12): the command is in the last byte but one, or two
        Some(0x85) => cdb.get(14).copied().is_some_and(is_harmless_ata),
        Some(0xa1) => cdb.get(9).copied().is_some_and(is_harmless_ata),
        _ => false,
    }
}

/// Whether an ATA command is known to leave the medium's data alone.
const fn is_harmless_ata(command: u8) -> bool {
    matches!(
        command,
        // READ VERIFY SECTOR(S) (EXT), EXECUTE DEVICE DIAGNOSTIC
        0x40 | 0x42 | 0x90
            // SMART (self tests, RETURN STATUS, logs)
            | 0xb0
            // STANDBY and IDLE IMMEDIATE, STANDBY, IDLE, CHECK POWER MODE, SLEEP
            | 0xe0
            ..=0xe3 | 0xe5 | 0xe6
            // FLUSH CACHE (EXT), IDENTIFY DEVICE, SET FEATURES
            | 0xe7 | 0xea | 0xec | 0xef
            // READ SECTOR(S) (EXT), READ DMA (EXT), READ MULTIPLE (EXT), READ FPDMA QUEUED
            | 0x20 | 0x24 | 0xc8 | 0x25 | 0xc4 | 0x29 | 0x60
            // READ LOG (DMA) EXT, RECEIVE FPDMA QUEUED, READ BUFFER (DMA), TRUSTED RECEIVE (DMA)
            | 0x2f | 0x47 | 0x65 | 0xe4 | 0xe9 | 0x5c | 0x5d
    )
}
