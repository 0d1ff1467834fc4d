//! Sends SCSI and NVMe commands past the block layer's bios: SG_IO on a disk or its sg
//! device, bsg, NVMe passthrough.

use bdsnap_tests::sys;
use bdsnap_tests::sys::Buf;
use bdsnap_tests::sys::Open;
use clap::Parser;
use clap::ValueEnum;
use std::fs::File;
use std::os::fd::AsRawFd;

/// Sends one command to a disk without a bio: writes, reads, or asks who it is.
#[derive(Parser)]
#[command(after_help = "Example:
  passthrough /dev/sda write --block 64 --blocks 8
  passthrough /dev/sg0 read
  passthrough /dev/bsg/0:0:0:0 --via bsg write
  passthrough /dev/nvme0n1 --via nvme write

Exit status: 0 done, 1 the command failed, 2 wrong usage.")]
struct Cli {
    /// Disk, sg or bsg device
    device: String,
    /// What to send
    command: Command,
    /// Which call takes it
    #[arg(long, default_value = "sg")]
    via: Via,
    /// First block, in logical blocks
    #[arg(long, default_value_t = 0)]
    block: u32,
    /// Number of blocks
    #[arg(long, default_value_t = 8)]
    blocks: u16,
    /// Bytes in a logical block
    #[arg(long, default_value_t = 512)]
    block_size: usize,
    /// The byte to write
    #[arg(long, default_value_t = 0xa5)]
    fill: u8,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Command {
    /// Write blocks
    Write,
    /// Read blocks
    Read,
    /// Ask the device who it is: INQUIRY, or a flush of NVMe
    Ask,
    /// Write zeros by a command that has no data, and claims to bring some in (not NVMe)
    Zero,
}

#[derive(Clone, Copy, ValueEnum)]
enum Via {
    /// SG_IO with the header of version 3
    Sg,
    /// SG_IO of a bsg device, version 4
    Bsg,
    /// NVME_IOCTL_IO_CMD
    Nvme,
}

/// SG_IO, for both versions.
const SG_IO: u64 = 0x2285;
/// `_IO('N', 0x40)`: the number of the namespace.
const NVME_IOCTL_ID: u64 = 0x4e40;
/// `_IOWR('N', 0x43, struct nvme_passthru_cmd)`
const NVME_IOCTL_IO_CMD: u64 = 0xc048_4e43;
/// Milliseconds that a command may take.
const TIMEOUT: u32 = 20_000;

/// Puts a number into a C struct.
fn put<const N: usize>(to: &mut [u8], at: usize, bytes: [u8; N]) {
    to[at..at + N].copy_from_slice(&bytes);
}

fn get32(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([from[at], from[at + 1], from[at + 2], from[at + 3]])
}

/// The command block of READ(10), WRITE(10), INQUIRY or WRITE SAME(16) without data.
fn scsi(cli: &Cli, len: usize) -> Vec<u8> {
    let code = match cli.command {
        Command::Write => 0x2a,
        Command::Read => 0x28,
        Command::Ask => return vec![0x12, 0, 0, 0, len as u8, 0],
        Command::Zero => {
            let mut block = vec![0; 16];
            (block[0], block[1]) = (0x93, 1);
            put(&mut block, 2, u64::from(cli.block).to_be_bytes());
            put(&mut block, 10, u32::from(cli.blocks).to_be_bytes());
            return block;
        }
    };
    let mut block = vec![0; 10];
    block[0] = code;
    put(&mut block, 2, cli.block.to_be_bytes());
    put(&mut block, 7, cli.blocks.to_be_bytes());
    block
}

/// Sends `block` with `struct sg_io_hdr`.
fn sg(f: &File, cli: &Cli, block: &[u8], data: &mut Buf) -> Result<(), String> {
    let mut sense = [0u8; 64];
    let mut header = [0u8; 88];
    let direction: i32 = if cli.command == Command::Write {
        -2
    } else {
        -3
    };
    put(&mut header, 0, u32::from(b'S').to_le_bytes());
    put(&mut header, 4, direction.to_le_bytes());
    header[8] = block.len() as u8;
    header[9] = sense.len() as u8;
    put(&mut header, 12, (data.len() as u32).to_le_bytes());
    put(&mut header, 16, (data.as_mut_ptr() as u64).to_le_bytes());
    put(&mut header, 24, (block.as_ptr() as u64).to_le_bytes());
    put(&mut header, 32, (sense.as_mut_ptr() as u64).to_le_bytes());
    put(&mut header, 40, TIMEOUT.to_le_bytes());
    sys::ioctl(f.as_raw_fd(), SG_IO, &mut header).map_err(|e| failed("SG_IO", e))?;
    // status, and those of host and driver
    if header[64] != 0 || get32(&header, 68) != 0 {
        return Err(format!(
            "the device answers {:#x}, the host {:#x}; sense {:02x?}",
            header[64],
            get32(&header, 68),
            &sense[..18]
        ));
    }
    Ok(())
}

/// Sends `block` with `struct sg_io_v4`.
fn bsg(f: &File, cli: &Cli, block: &[u8], data: &mut Buf) -> Result<(), String> {
    let mut sense = [0u8; 64];
    let mut header = [0u8; 160];
    let (len, pointer) = if cli.command == Command::Write {
        (60, 72)
    } else {
        (68, 80)
    };
    put(&mut header, 0, u32::from(b'Q').to_le_bytes());
    put(&mut header, 12, (block.len() as u32).to_le_bytes());
    put(&mut header, 16, (block.as_ptr() as u64).to_le_bytes());
    put(&mut header, 44, (sense.len() as u32).to_le_bytes());
    put(&mut header, 48, (sense.as_mut_ptr() as u64).to_le_bytes());
    put(&mut header, len, (data.len() as u32).to_le_bytes());
    put(
        &mut header,
        pointer,
        (data.as_mut_ptr() as u64).to_le_bytes(),
    );
    put(&mut header, 88, TIMEOUT.to_le_bytes());
    sys::ioctl(f.as_raw_fd(), SG_IO, &mut header).map_err(|e| failed("SG_IO (bsg)", e))?;
    // those of driver, transport and device
    let status = [108, 112, 116].map(|at| get32(&header, at));
    if status != [0; 3] {
        return Err(format!(
            "driver, transport and device answer {status:x?}; sense {:02x?}",
            &sense[..18]
        ));
    }
    Ok(())
}

/// Sends a command with `struct nvme_passthru_cmd`.
fn nvme(f: &File, cli: &Cli, data: &mut Buf) -> Result<(), String> {
    // A controller has no number: its first namespace.
    let namespace = sys::ioctl_at(f.as_raw_fd(), NVME_IOCTL_ID, 0).unwrap_or(1);
    let mut command = [0u8; 72];
    command[0] = match cli.command {
        Command::Ask => 0,
        Command::Write => 1,
        Command::Read => 2,
        Command::Zero => return Err("not by NVMe".into()),
    };
    put(&mut command, 4, namespace.to_le_bytes());
    if cli.command != Command::Ask {
        put(&mut command, 24, (data.as_mut_ptr() as u64).to_le_bytes());
        put(&mut command, 36, (data.len() as u32).to_le_bytes());
        put(&mut command, 40, cli.block.to_le_bytes());
        put(&mut command, 48, (u32::from(cli.blocks) - 1).to_le_bytes());
    }
    put(&mut command, 64, TIMEOUT.to_le_bytes());
    match sys::ioctl(f.as_raw_fd(), NVME_IOCTL_IO_CMD, &mut command) {
        Ok(0) => Ok(()),
        Ok(status) => Err(format!("the device answers {status:#x}")),
        Err(e) => Err(failed("NVME_IOCTL_IO_CMD", e)),
    }
}

fn failed(call: &str, errno: i32) -> String {
    format!("{call}: {}", std::io::Error::from_raw_os_error(errno))
}

fn main() {
    let cli = Cli::parse();
    bdsnap_tests::run(|| {
        if cli.blocks == 0 {
            return Err("no blocks".into());
        }
        let write = Open {
            write: true,
            ..Open::default()
        };
        let f = sys::open(&cli.device, write)?;
        let len = match cli.command {
            Command::Ask => 96,
            _ => usize::from(cli.blocks) * cli.block_size,
        };
        let mut data = Buf::new(len);
        data.fill(cli.fill);
        let sent = match cli.via {
            Via::Sg => sg(&f, &cli, &scsi(&cli, len), &mut data),
            Via::Bsg => bsg(&f, &cli, &scsi(&cli, len), &mut data),
            Via::Nvme => nvme(&f, &cli, &mut data),
        };
        sent.map_err(|e| format!("{}: {e}", cli.device))
    });
}
