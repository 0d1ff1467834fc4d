//! A value from JSON by its path: quicker to start than python or jq in an emulator.

use clap::Parser;
use serde_json::Value;
use std::io::Read;

/// Prints what is at a path of the JSON on standard input: strings as they
/// are, the rest as JSON, one value a line.
///
/// A path is keys and indices with dots between; `*` stands for every item of
/// a list or value of an object, `#` for their number, `@` for the keys, `?`
/// for the name of the type. An empty path is the whole.
#[derive(Parser)]
#[command(after_help = "Example:
  bdsnap --json status | jsonget devices.0.generation
  bdsnap --json status | jsonget 'snapshots.*.id'
  bdsnap --json status | jsonget 'devices.#'

Exit status: 0 found, 1 not there, or no JSON, 2 wrong usage.")]
struct Cli {
    /// The path
    path: String,
    /// Print nothing and succeed where a key or index is not there
    #[arg(long)]
    optional: bool,
}

fn kind(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

fn get(v: &Value, path: &[&str], out: &mut Vec<String>) -> Result<(), String> {
    let Some((step, rest)) = path.split_first() else {
        out.push(match v {
            Value::String(s) => s.clone(),
            other => other.to_string(),
        });
        return Ok(());
    };
    let missing = || format!("'{step}' is not there in {v}");
    match (*step, v) {
        ("?", _) => out.push(kind(v).into()),
        ("#", Value::Array(a)) => out.push(a.len().to_string()),
        ("#", Value::Object(o)) => out.push(o.len().to_string()),
        ("@", Value::Object(o)) => out.extend(o.keys().cloned()),
        ("*", Value::Array(a)) => a.iter().try_for_each(|x| get(x, rest, out))?,
        ("*", Value::Object(o)) => o.values().try_for_each(|x| get(x, rest, out))?,
        (key, Value::Object(o)) => get(o.get(key).ok_or_else(missing)?, rest, out)?,
        (i, Value::Array(a)) => get(
            i.parse::<usize>()
                .ok()
                .and_then(|i| a.get(i))
                .ok_or_else(missing)?,
            rest,
            out,
        )?,
        _ => return Err(missing()),
    }
    Ok(())
}

fn main() {
    let cli = Cli::parse();
    bdsnap_tests::run(|| {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| format!("standard input: {e}"))?;
        let path: Vec<&str> = cli
            .path
            .trim_start_matches('.')
            .split('.')
            .filter(|s| !s.is_empty())
            .collect();
        let v: Value = serde_json::from_str(&text).map_err(|e| format!("{e}, in: {text}"))?;
        let mut out = Vec::new();
        match get(&v, &path, &mut out) {
            Err(_) if cli.optional => {}
            r => r?,
        }
        for line in out {
            println!("{line}");
        }
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Result<Vec<String>, String> {
        let v = serde_json::from_str(r#"{"a":[{"id":"x","n":1},{"id":"y","n":2.5}],"e":[]}"#)
            .expect("json");
        let mut out = Vec::new();
        let path: Vec<&str> = path.split('.').filter(|s| !s.is_empty()).collect();
        get(&v, &path, &mut out).map(|()| out)
    }

    #[test]
    fn paths() {
        let strings = |s: &[&str]| Ok(s.iter().map(|s| s.to_string()).collect());
        assert_eq!(at("a.0.id"), strings(&["x"]));
        assert_eq!(at("a.*.id"), strings(&["x", "y"]));
        assert_eq!(at("a.#"), strings(&["2"]));
        assert_eq!(at("@"), strings(&["a", "e"]));
        assert_eq!(at("a.*.n.?"), strings(&["int", "float"]));
        assert_eq!(at("e.*"), strings(&[]));
        assert!(at("a.2").is_err());
        assert!(at("b").is_err());
        assert!(at("a.0.id.z").is_err());
    }
}
