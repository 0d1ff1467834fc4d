//! Paths: the directory of a file; and in JSON, where what is no UTF-8 is replaced, since what was done must
//! be told all the same.

use serde::ser::SerializeSeq;
use serde::Serializer;
use std::path::Path;
use std::path::PathBuf;

/// The directory that a file is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A path.
pub fn one<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// A list of them.
pub fn many<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(paths.len()))?;
    for path in paths {
        list.serialize_element(&path.to_string_lossy())?;
    }
    list.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[derive(serde::Serialize)]
    struct Both {
        #[serde(serialize_with = "one")]
        path: PathBuf,
        #[serde(serialize_with = "many")]
        paths: Vec<PathBuf>,
    }

    #[test]
    fn no_utf8() {
        let path = PathBuf::from(OsStr::from_bytes(b"/mnt/caf\xe9"));
        let both = Both {
            path: path.clone(),
            paths: vec![path],
        };
        let text = serde_json::to_string(&both).unwrap();
        let shown = "/mnt/caf\u{fffd}";
        assert_eq!(text, format!(r#"{{"path":"{shown}","paths":["{shown}"]}}"#));
    }
}
