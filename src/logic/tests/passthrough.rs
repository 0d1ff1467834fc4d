// SPDX-License-Identifier: GPL-2.0
//! Which requests count as writes.

use bdsnap_logic::passthrough::may_write;
use bdsnap_logic::passthrough::Kind;

#[test]
fn reads_and_flushes_do_not_write() {
    assert!(!may_write(Kind::Harmless, 4096, &[]));
    assert!(!may_write(Kind::Harmless, 0, &[0x2a]));
    assert!(!may_write(Kind::CommandIn, 512, &[0x28]));
    assert!(!may_write(Kind::CommandIn, 512, &[]));
}

#[test]
fn what_is_not_known_writes() {
    assert!(may_write(Kind::Other, 4096, &[]));
    assert!(may_write(Kind::Other, 0, &[]));
    assert!(may_write(Kind::CommandOut, 4096, &[]));
    assert!(may_write(Kind::CommandOut, 0, &[]));
    assert!(may_write(Kind::CommandIn, 0, &[]));
    assert!(may_write(Kind::CommandOut, 512, &[0xfe; 16]));
}

#[test]
fn scsi_commands() {
    // WRITE(6), (10), (12), (16), WRITE AND VERIFY, WRITE SAME(10), (16), UNMAP, FORMAT UNIT,
    // COMPARE AND WRITE, SANITIZE, MODE SELECT, SECURITY PROTOCOL OUT, EXTENDED COPY
    for opcode in [
        0x0a, 0x2a, 0xaa, 0x8a, 0x2e, 0x41, 0x93, 0x42, 0x04, 0x89, 0x48, 0x15, 0x55, 0xb5, 0x83,
    ] {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        assert!(may_write(Kind::CommandOut, 512, &cdb), "{opcode:#x}");
        // WRITE SAME, SANITIZE and FORMAT UNIT may carry no data, whatever the caller says.
        assert!(may_write(Kind::CommandIn, 0, &cdb), "{opcode:#x}");
        assert!(may_write(Kind::CommandIn, 512, &cdb), "{opcode:#x}");
    }
    // INQUIRY, MODE SENSE, READ(16), READ CAPACITY(16), LOG SENSE, REPORT LUNS, PERSISTENT RESERVE IN
    for opcode in [0x12, 0x1a, 0x88, 0x9e, 0x4d, 0xa0, 0x5e] {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        assert!(!may_write(Kind::CommandIn, 512, &cdb), "{opcode:#x}");
    }
    for opcode in [0x00, 0x1b, 0x1e, 0x35, 0x91, 0x5f, 0x2f] {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        assert!(!may_write(Kind::CommandIn, 0, &cdb), "{opcode:#x}");
        assert!(!may_write(Kind::CommandOut, 24, &cdb), "{opcode:#x}");
    }
}

#[test]
fn ata_in_scsi() {
    let ata16 = |command: u8| {
        let mut cdb = [0; 16];
        cdb[0] = 0x85;
        cdb[14] = command;
        cdb
    };
    // SMART RETURN STATUS, CHECK POWER MODE, FLUSH CACHE EXT
    for command in [0xb0, 0xe5, 0xea] {
        assert!(!may_write(Kind::CommandIn, 0, &ata16(command)));
        assert!(!may_write(
            Kind::CommandIn,
            0,
            &[0xa1, 0, 0, 0, 0, 0, 0, 0, 0, command, 0, 0]
        ));
    }
    // WRITE DMA EXT, DATA SET MANAGEMENT, SECURITY ERASE UNIT, SANITIZE DEVICE
    for command in [0x35, 0x06, 0xf4, 0xb4] {
        assert!(may_write(Kind::CommandOut, 512, &ata16(command)));
        assert!(may_write(Kind::CommandIn, 0, &ata16(command)));
        assert!(may_write(Kind::CommandIn, 512, &ata16(command)));
    }
    // IDENTIFY DEVICE, SMART READ DATA, READ LOG EXT
    for command in [0xec, 0xb0, 0x2f] {
        assert!(!may_write(Kind::CommandIn, 512, &ata16(command)));
    }
    assert!(may_write(Kind::CommandIn, 0, &[0x85]), "cut short");
}
