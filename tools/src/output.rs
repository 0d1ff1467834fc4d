//! What the tool prints: JSON, tables and errors.

use bdsnap::error::Error;
use bdsnap::error::Kind;
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;
use std::sync::OnceLock;

/// The first thing that could not be printed: nothing is after that, and [`main`](crate::main) tells.
static LOST: OnceLock<std::io::Error> = OnceLock::new();

/// Prints bytes as they are to standard output. What goes wrong is told by [`lost`].
pub fn raw(bytes: &[u8]) {
    if LOST.get().is_none() {
        let mut out = std::io::stdout().lock();
        note(out.write_all(bytes).and_then(|()| out.flush()));
    }
}

/// Prints a line, likewise.
pub fn line(text: impl AsRef<str>) {
    raw(format!("{}\n", text.as_ref()).as_bytes());
}

/// Prints `value` as one line of JSON, likewise.
pub fn json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => line(text),
        Err(e) => note(Err(e.into())),
    }
}

fn note(result: std::io::Result<()>) {
    if let Err(e) = result {
        let _ = LOST.set(e);
    }
}

/// Whether something could not be printed.
pub fn is_lost() -> bool {
    LOST.get().is_some()
}

/// Whether all could be printed. A reader that went away is not worth a word, but is no success.
pub fn finish() -> ExitCode {
    match LOST.get() {
        None => return ExitCode::SUCCESS,
        Some(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
        Some(e) => {
            eprintln!("bdsnap: can't write to standard output: {e} (what was asked for is done)")
        }
    }
    ExitCode::from(Kind::Failed.exit_code())
}

/// Prints rows as columns, the first row being the heads.
pub fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|t| t.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(text, &width)| format!("{text:width$}"));
        line(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// A row of a table.
pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// The JSON of an error.
fn error_json(code: &str, message: &str, hint: Option<&str>) -> serde_json::Value {
    serde_json::json!({"error": {"code": code, "message": message, "hint": hint}})
}

/// Reports an error; returns its exit code.
pub fn failure(error: &Error, as_json: bool) -> ExitCode {
    eprintln!("bdsnap: {error}");
    if as_json {
        json(&error_json(
            error.code,
            &error.message,
            error.hint.as_deref(),
        ));
    }
    ExitCode::from(error.kind.exit_code())
}

/// Reports what the argument parser says: help, the version, or wrong usage.
pub fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().any(|arg| arg == "--json") {
        let text = error.to_string();
        // Up to the usage or the tips, in one line.
        let message = text.split("\n\n").next().unwrap_or_default();
        let message = message.strip_prefix("error: ").unwrap_or(message);
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        let hint = "see --help of the command";
        json(&error_json(Kind::Usage.code(), &message, Some(hint)));
    }
    ExitCode::from(Kind::Usage.exit_code())
}
