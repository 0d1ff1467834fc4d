//! Compares `bdsnap::abi` with the C header, by asking a C compiler.

use bdsnap::abi;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

/// The directory of the header.
fn include_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../include/uapi")
}

fn header() -> String {
    std::fs::read_to_string(include_dir().join("bdsnap.h")).expect("the header")
}

/// Compiles a program against the header that prints `name value` for each expression.
fn ask(expressions: &[(String, String)]) -> BTreeMap<String, u64> {
    let mut program = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include <bdsnap.h>\nint main(void)\n{\n",
    );
    for (name, expression) in expressions {
        writeln!(
            program,
            "\tprintf(\"{name} %llu\\n\", (unsigned long long)({expression}));"
        )
        .unwrap();
    }
    program.push_str("\treturn 0;\n}\n");
    let dir = tempfile::tempdir().unwrap();
    let (source, binary) = (dir.path().join("abi.c"), dir.path().join("abi"));
    std::fs::write(&source, program).unwrap();
    let compiled = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-Wall", "-Werror", "-I"])
        .arg(include_dir())
        .arg("-o")
        .args([&binary, &source])
        .output()
        .expect("a C compiler");
    let messages = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{messages}");
    let output = Command::new(&binary).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let pairs = text.lines().filter_map(|line| line.rsplit_once(' '));
    pairs
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[test]
fn structs_lie_as_in_c() {
    let mut expressions = Vec::new();
    for (tag, _, fields) in abi::STRUCTS {
        expressions.push(((*tag).to_owned(), format!("sizeof(struct {tag})")));
        for (field, _) in *fields {
            let expression = format!("offsetof(struct {tag}, {field})");
            expressions.push((format!("{tag}.{field}"), expression));
            let expression = format!("sizeof(((struct {tag} *)0)->{field})");
            expressions.push((format!("{tag}.{field}.size"), expression));
        }
    }
    let known = ask(&expressions);
    for (tag, size, fields) in abi::STRUCTS {
        assert_eq!(known[*tag], *size as u64, "sizeof(struct {tag})");
        let mut end = 0;
        for (field, offset) in *fields {
            let path = format!("{tag}.{field}");
            assert_eq!(known[&path], *offset as u64, "offset of {path}");
            assert_eq!(
                *offset as u64, end,
                "padding or a missing field before {path}"
            );
            end = *offset as u64 + known[&format!("{path}.size")];
        }
        assert_eq!(
            end, *size as u64,
            "padding or a missing field at the end of {tag}"
        );
    }
}

#[test]
fn constants_and_ioctls_are_those_of_c() {
    let constants = abi::CONSTANTS.iter().map(|(name, value)| (*name, *value));
    let ioctls = abi::op::ALL
        .iter()
        .map(|(name, value)| (*name, u64::from(*value)));
    let mine: Vec<(&str, u64)> = constants.chain(ioctls).collect();
    let expressions: Vec<_> = mine
        .iter()
        .map(|(name, _)| ((*name).to_owned(), format!("({name})")))
        .collect();
    let known = ask(&expressions);
    for (name, value) in mine {
        assert_eq!(known[name], value, "{name}");
    }
}

/// Nothing in the header is missing here.
#[test]
fn nothing_is_left_out() {
    let header = header();
    let words = |line: &str| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_')
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut names = BTreeSet::new();
    let mut tags = BTreeSet::new();
    for line in header.lines() {
        let trimmed = line.trim_start();
        if let Some(rest) = trimmed.strip_prefix("#define BDSNAP_") {
            names.insert(format!("BDSNAP_{}", words(rest)[0]));
        } else if trimmed.starts_with("BDSNAP_") && trimmed.contains(" = ") {
            names.insert(words(trimmed)[0].clone());
        } else if let Some(rest) = line.strip_prefix("struct bdsnap_") {
            tags.insert(format!("bdsnap_{}", words(rest)[0]));
        }
    }
    let mut mine: BTreeSet<String> = abi::CONSTANTS.iter().map(|c| c.0.to_owned()).collect();
    mine.extend(abi::op::ALL.iter().map(|o| o.0.to_owned()));
    mine.insert("BDSNAP_DEVICE".into());
    assert_eq!(names, mine);
    let mine: BTreeSet<String> = abi::STRUCTS.iter().map(|s| s.0.to_owned()).collect();
    assert_eq!(tags, mine);
    assert!(header.contains(&format!("\"{}\"", abi::DEVICE)));
}
